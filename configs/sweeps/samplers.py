"""Every sampler on the embedded scenes, each with three losses.

python -m experiments.run --config=configs/sweeps/samplers.py --workdir=runs/samplers
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from configs.sweeps.common import embedded
from configs.sweeps.common.arms import against_matched, with_matched, with_seeds

QUESTION = (
    "Which sampler is better than random batches on the embedded scenes, whose classes "
    "are as rare as those of PASCAL VOC 2012, and does that depend on the loss?"
)
# Mean IoU of this arm before differences of the study count; fixed before the first
# run.
BARS = {"ce-random": 0.80}
LOSSES = {
    "ce": dict(name="softmax_cross_entropy"),
    "dice": dict(name="soft_dice"),
    "iou": dict(name="soft_iou"),
}
SAMPLERS = (
    embedded.RANDOM,
    embedded.BALANCE_BATCH,
    dict(name="greedy_cover", batch_max=embedded.BATCH_MAX, batch_cl=embedded.BATCH_CL),
    dict(name="repeat_factor", batch_max=embedded.BATCH_MAX, threshold=0.1),
    dict(
        name="rare_class",
        batch_max=embedded.BATCH_MAX,
        temperature=0.1,
        min_pixels=100,
    ),
    dict(name="class_uniform", batch_max=embedded.BATCH_MAX),
    dict(name="foreground_oversample", batch_max=embedded.BATCH_MAX),
)


def _arms() -> dict[tuple[str, str], dict]:
    """Returns the overrides of each arm (compared variant), by loss and batches.

    All samplers are used at equal steps; those with smaller batches than random ones
    also at equal images, as "SAMPLER-images".
    """
    arms = {}
    for sampler in SAMPLERS:
        for loss, fields in LOSSES.items():
            name, overrides = sampler["name"], {"loss": fields, "sampler": sampler}
            arms[loss, name] = overrides
            if name in embedded.MEAN_BATCH_SIZES:
                arms[loss, f"{name}-images"] = {
                    **overrides,
                    "total_steps": embedded.equal_images(name),
                }
    return arms


BALANCED = tuple(
    f"{loss}-balance_batch{images}" for loss in LOSSES for images in ("", "-images")
)
COMPARISONS = (
    *(
        (f"{loss}-{batches}", f"{loss}-random")
        for loss, batches in _arms()
        if batches != "random"
    ),
    *against_matched(BALANCED),
)
HEADLINE = (
    *(f"{loss}-random" for loss in LOSSES),
    *BALANCED,
    *(f"{arm}-matched" for arm in BALANCED),
)


def get_config(size: str = "full") -> ConfigDict:
    return embedded.get_config(size)


def sweep() -> Iterator[dict]:
    arms = {f"{loss}-{batches}": fields for (loss, batches), fields in _arms().items()}
    yield from with_seeds(with_matched(arms), headline=HEADLINE)
