r"""Random batches and Balance-batch on VOC 2012's animals, with two losses.

python -m experiments.run --config=configs/sweeps/voc_animals.py \
    --config.data.root=DIR --workdir=runs/voc_animals

DIR holds images with a long side of 256 in the `folder` format (configs/folder.py).
Results: experiments/voc_animals/README.md.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from configs import demo, folder
from configs.sweeps.common.arms import (
    balance_batch_with_random,
    random_and_balance_batch,
    with_seeds,
)

QUESTION = (
    "Does Balance-batch help cross-entropy and soft Dice where an image holds two or "
    "three of 21 classes, and the rarest are in one of three thousand images?"
)
LOSSES = {
    "ce": dict(name="softmax_cross_entropy"),
    "dice": dict(name="soft_dice"),
}
TOTAL_STEPS = 1_200
BATCH_MAX = 9
# A class counts if it covers half a percent of an image of 256x192, so that it is
# visible.
MIN_PIXELS = 250
# batch_cl to the mean number of images in a batch (`segloss.data.estimate_acceptance`).
MEAN_BATCH_SIZES = {6: 5.64, 8: 7.25}

COMPARISONS = balance_batch_with_random(LOSSES, MEAN_BATCH_SIZES)


def get_config(size: str = "full") -> ConfigDict:
    if size == "smoke":
        config = demo.get_config(size).unlock()
        # Large enough for objects of `MIN_PIXELS` pixels.
        config.data.image_hw = (96, 96)
        return config.lock()
    config = folder.get_config(size).unlock()
    config.total_steps = TOTAL_STEPS
    config.checkpoint_every_steps = 100
    config.evaluate_every_steps = 400
    config.data.num_threads = 1
    # Half size: the network gets images with a long side of 128. Scores are computed
    # at 256.
    config.data.crop_hw = (96, 96)
    config.augment.scale_range = (0.375, 0.625)
    config.augment.keep_classes = False  # as in the Balance-batch paper
    config.evaluate.update(scales=(0.5,), batch_size=8)
    config.model.update(depth=4, width=12, input_stride=2)
    config.sampler = dict(name="random", batch_max=BATCH_MAX)
    config.loss = LOSSES["ce"]
    config.schedule.update(learning_rate=4e-3, warmup_steps=50)
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
