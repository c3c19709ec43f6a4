r"""Random batches and Balance-batch on CamVid at half size, with three losses.

python -m experiments.run --config=configs/sweeps/camvid_balance_batch.py \
    --config.data.root=DIR --workdir=runs/camvid_balance_batch

DIR is as in configs/camvid.py. Results: experiments/camvid_balance_batch/README.md.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from configs import camvid
from configs.sweeps.common import embedded
from configs.sweeps.common.arms import (
    balance_batch_with_random,
    random_and_balance_batch,
    with_seeds,
)

QUESTION = (
    "Does Balance-batch help cross-entropy, soft Dice and soft IoU on street scenes, "
    "where every image holds most of the classes but some of them hardly visibly?"
)
LOSSES = {
    "ce": dict(name="softmax_cross_entropy"),
    "dice": dict(name="soft_dice"),
    "iou": dict(name="soft_iou"),
}
TOTAL_STEPS = 800
BATCH_MAX = 6
# A class counts if it covers one percent of the image, so that it is clearly visible.
# If a single pixel were enough, one image in four would have all classes, and
# Balance-batch would make small random batches.
MIN_PIXELS = 1_728
# batch_cl to the mean number of images in a batch (`segloss.data.estimate_acceptance`).
MEAN_BATCH_SIZES = {10: 4.06, 11: 4.69}

COMPARISONS = balance_batch_with_random(LOSSES, MEAN_BATCH_SIZES)


def get_config(size: str = "full") -> ConfigDict:
    if size == "smoke":
        # Large images with many classes, so that batches with `batch_cl` classes exist.
        return embedded.smoke_config(train=10, val=4, image_hw=(128, 128))
    config = camvid.get_config(size, LOSSES["ce"]).unlock()
    config.total_steps = TOTAL_STEPS
    config.checkpoint_every_steps = 100
    # Evaluates only at the end.
    config.evaluate_every_steps = 10_000
    # Half size: the network gets images of 180x240, cropped in training and whole in
    # evaluation. Scores are computed at full size.
    config.data.crop_hw = (160, 208)
    config.augment.scale_range = (0.45, 0.65)
    config.augment.keep_classes = False  # as in the Balance-batch paper
    config.evaluate.update(scales=(0.5,), batch_size=8)
    # With this few steps, large crops at low resolution work better: the loss after 150
    # steps is 0.8, against 1.2 with stride 2 and crops of 96x128.
    config.model.update(depth=3, width=16, input_stride=4)
    config.sampler = dict(name="random", batch_max=BATCH_MAX)
    config.schedule.update(learning_rate=5e-3, warmup_steps=50)
    return config.lock()


def sweep() -> Iterator[dict]:
    arms = random_and_balance_batch(
        LOSSES,
        total_steps=TOTAL_STEPS,
        batch_max=BATCH_MAX,
        mean_batch_sizes=MEAN_BATCH_SIZES,
        min_pixels=MIN_PIXELS,
    )
    yield from with_seeds(arms)
