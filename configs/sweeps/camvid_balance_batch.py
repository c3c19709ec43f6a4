r"""Random batches and Balance-batch on CamVid at half size, with three losses.

python -m experiments.run --config=configs/sweeps/camvid_balance_batch.py \
    --config.data.root=DIR --workdir=runs/camvid_balance_batch

DIR is as in configs/camvid.py. Results: experiments/camvid_balance_batch/README.md.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from configs import camvid, demo
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
# One percent of an image: a class counts where it can be seen. By a single pixel, one
# image in four holds all classes, and Balance-batch would be small random batches.
MIN_PIXELS = 1_728
# Images of a batch in the mean, by batch_cl: `segloss.data.estimate_acceptance`.
MEAN_BATCH_SIZES = {10: 4.06, 11: 4.69}

COMPARISONS = balance_batch_with_random(LOSSES, MEAN_BATCH_SIZES)


def get_config(size: str = "full") -> ConfigDict:
    if size == "smoke":
        config = demo.get_config(size).unlock()
        # So few and large that batches with so many classes can be found.
        config.data.update(train=10, val=4, image_hw=(128, 128))
        return config.lock()
    config = camvid.get_config(size).unlock()
    config.total_steps = TOTAL_STEPS
    config.checkpoint_every_steps = 100
    # At the end alone.
    config.evaluate_every_steps = 10_000
    # Half size: the network sees images of 180x240, cropped in training, whole
    # afterwards. Scores are those of the full size.
    config.data.crop_hw = (160, 208)
    config.augment.scale_range = (0.45, 0.65)
    config.evaluate.update(scales=(0.5,), batch_size=8)
    # In so few steps it learns more from large crops than from fine ones: after 150
    # steps a loss of 0.8 where stride 2 and crops of 96x128 are at 1.2.
    config.model.update(depth=3, width=16, input_stride=4)
    config.sampler = dict(name="random", batch_max=BATCH_MAX)
    del config.loss
    config.loss = LOSSES["ce"]
    config.schedule.learning_rate = 5e-3
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
