"""The setting of the studies on the embedded scenes: images that segloss draws."""

from ml_collections import ConfigDict

from configs import demo
from configs.sweeps.common.arms import steps_at_equal_images

TOTAL_STEPS = 1_000
BATCH_MAX = 9
BATCH_CL = 8
# Mean number of images in a batch for the 600 scenes; other samplers use BATCH_MAX. One
# crop or another can hold all classes of a scene, so `keep_classes` changes none of it.
MEAN_BATCH_SIZES = {"balance_batch": 6.38, "greedy_cover": 5.36}
# The same for Balance-batch by `batch_max` and `batch_cl`.
FIGURES_MEAN_BATCH_SIZES = {
    (9, 8): 6.38,
    (9, 12): 8.37,
    (4, 3): 1.64,
    (4, 4): 2.42,
    (6, 7): 4.83,
    (6, 8): 5.27,
}
RANDOM = dict(name="random", batch_max=BATCH_MAX)
BALANCE_BATCH = dict(name="balance_batch", batch_max=BATCH_MAX, batch_cl=BATCH_CL)


def get_config(size: str = "full") -> ConfigDict:
    """Returns `configs/demo.py` for many runs on few cores.

    Numbers of steps are given, instead of shares of the run, so that arms with another
    `total_steps` differ in nothing else. Crops of 64x64 hold about half of an image, as
    those of the paper do, and cost half of whole images. All scenes are drawn at one
    scale, so crops vary it by a quarter only. A network of three levels and a learning
    rate of 1e-2 were chosen by single runs of random batches with another seed: they
    reach a mean IoU of 0.8 in half the time that the demo's need. Of 300 validation
    images, at least five hold each class. BatchNorm, whose statistics suffer from small
    batches as well: with group norm, the mean IoU stays low for longer.
    """
    config = demo.get_config(size)
    if size != "smoke":
        config.unlock()
        config.total_steps = TOTAL_STEPS
        config.update(checkpoint_every_steps=400, evaluate_every_steps=10_000)
        config.schedule.update(learning_rate=1e-2, warmup_steps=50)
        config.model.depth = 3
        config.augment.scale_range = (0.75, 1.25)
        config.data.update(val=300, crop_hw=(64, 64))
        config.lock()
    return config


def smoke_config(**data: object) -> ConfigDict:
    """Returns the config with which a study of other data is tried out in seconds.

    `data` changes the embedded scenes, so that the study's batches exist.
    """
    config = demo.get_config("smoke").unlock()
    config.data.update(data)
    config.augment.keep_classes = False
    return config.lock()


def equal_images(sampler: str) -> int:
    """Returns the steps in which a sampler uses as many images as random batches do.

    `sampler` is a key of `MEAN_BATCH_SIZES`.
    """
    return steps_at_equal_images(
        TOTAL_STEPS,
        batch_max=BATCH_MAX,
        mean_batch_size=MEAN_BATCH_SIZES[sampler],
    )
