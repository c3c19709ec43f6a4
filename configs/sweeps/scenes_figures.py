r"""Figures 1, 3 and 5 of the Balance-batch paper, on the embedded scenes.

python -m experiments.run --config=configs/sweeps/scenes_figures.py \
    --workdir=runs/scenes_figures --jobs=2

The figures' batch sizes and values of `batch_cl` are all here, except that `batch_cl` 2
is `random1`: every scene has at least two classes, so each of its batches is one image.
At equal images, with the guarantee in crops and with controls there are only the arms
that carry a headline; a control of the others would be a point of the curve of random
batches, whose sizes are all there.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from configs.sweeps.common import embedded
from configs.sweeps.common.arms import (
    against_matched,
    steps_at_equal_images,
    with_matched,
    with_seeds,
)

QUESTION = (
    "On the embedded scenes, where networks learn all classes in minutes: what does "
    "the batch size do to the mean IoU of cross-entropy, soft IoU and soft Dice, and "
    "what does Balance-batch add to random batches?"
)
# Mean IoU of this arm before differences of the study count; fixed before the first
# run.
BARS = {"ce-random9": 0.80}
LOSSES = {
    "ce": dict(name="softmax_cross_entropy"),
    "iou": dict(name="soft_iou"),
    "dice": dict(name="soft_dice"),
}
PAPER = ("ce", "soft_iou", "soft_dice")
# Largest batch of random ones, `batch_max`, largest `batch_cl`: figures 1, 3 and 5.
FIGURES = {"ce": (12, 9, 12), "iou": (6, 4, 6), "dice": (8, 6, 8)}
# Each figure's `batch_cl` that is best in the paper, and the other with a number there.
BEST = {"ce": 12, "iou": 4, "dice": 8}
SECOND = {"ce": 8, "iou": 3, "dice": 7}


# With `batch_cl` classes promised in the images, as in the paper.
HEADLINES = tuple(
    f"{loss}-cl{n[loss]}{images}"
    for loss in LOSSES
    for n in (BEST, SECOND)
    for images in ("", "-images")
)
# With the same promised in the crops that the network sees.
CROPS = {
    f"{loss}-cl{n}-crops{images}": f"{loss}-cl{n}{images}"
    for loss, n in BEST.items()
    for images in ("", "-images")
}
BASELINES = {loss: f"{loss}-random{FIGURES[loss][1]}" for loss in LOSSES}
COMPARISONS = (
    *((arm, BASELINES[arm.split("-")[0]]) for arm in (*HEADLINES, *CROPS)),
    *against_matched(HEADLINES),
    # Random batches owe crops no class, so `keep_classes` does not change the controls.
    *((arm, f"{same}-matched") for arm, same in CROPS.items()),
)


def get_config(size: str = "full") -> ConfigDict:
    config = embedded.get_config(size).unlock()
    config.augment.keep_classes = False  # as in the Balance-batch paper
    return config.lock()


def sweep() -> Iterator[dict]:
    arms: dict[str, dict] = {}
    for loss in LOSSES:
        arms |= _arms(loss)
    arms = with_matched(arms, HEADLINES)
    compared = {arm for pair in COMPARISONS for arm in pair}
    yield from with_seeds(arms, headline=compared)


def _arms(loss: str) -> dict[str, dict]:
    largest, batch_max, most_classes = FIGURES[loss]
    arms = {}
    for n in range(1, largest + 1):
        sampler = dict(name="random", batch_max=n)
        arms[f"{loss}-random{n}"] = {"loss": LOSSES[loss], "sampler": sampler}
    for n in range(3, most_classes + 1):
        sampler = dict(name="balance_batch", batch_max=batch_max, batch_cl=n)
        arms[f"{loss}-cl{n}"] = {"loss": LOSSES[loss], "sampler": sampler}
    for n in (BEST[loss], SECOND[loss]):
        arms[f"{loss}-cl{n}-images"] = arms[f"{loss}-cl{n}"] | {
            "total_steps": steps_at_equal_images(
                embedded.TOTAL_STEPS,
                batch_max=batch_max,
                mean_batch_size=embedded.FIGURES_MEAN_BATCH_SIZES[batch_max, n],
            )
        }
    for arm, same in CROPS.items():
        if same in arms:
            arms[arm] = arms[same] | {"augment.keep_classes": True}
    return arms
