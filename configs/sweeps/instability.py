r"""Small batches, random and of Balance-batch: are Dice and IoU unstable with them?

python -m experiments.run --config=configs/sweeps/instability.py \
    --workdir=runs/instability --jobs=2

`experiments.instability.gradient_variance` measures gradients at the checkpoints.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from configs.sweeps.common import embedded
from configs.sweeps.common.arms import against_matched, with_matched, with_seeds

QUESTION = (
    "The Balance-batch paper says that soft Dice and soft IoU are unstable with small "
    "batches, and that Balance-batch cures it: with batches of 1, 2, 4 and 8 images, "
    "how do loss and gradient vary from batch to batch, and which classes collapse?"
)
LOSSES = {
    "ce": dict(name="softmax_cross_entropy"),
    "iou": dict(name="soft_iou"),
    "dice": dict(name="soft_dice"),
}
# Batch size to `batch_cl`: the largest with which four attempts in ten succeed, so that
# batches are nearly full and an epoch uses many of the scenes.
BATCHES = {1: 3, 2: 4, 4: 6, 8: 9}
# One image has the size of any other, so `random1` is the control of `balanced1`.
BALANCED = tuple(f"{loss}-balanced{n}" for loss in LOSSES for n in BATCHES if n > 1)
COMPARISONS = (
    *((f"{x}-balanced{n}", f"{x}-random{n}") for x in LOSSES for n in BATCHES),
    *against_matched(BALANCED),
)


def get_config(size: str = "full") -> ConfigDict:
    config = embedded.get_config(size).unlock()
    config.augment.keep_classes = False  # as in the Balance-batch paper
    if size != "smoke":
        # Half-way and at the end: the two that are kept.
        config.checkpoint_every_steps = embedded.TOTAL_STEPS // 2
    return config.lock()


def sweep() -> Iterator[dict]:
    arms = {}
    for name, loss in LOSSES.items():
        for n, batch_cl in BATCHES.items():
            random = dict(name="random", batch_max=n)
            balanced = dict(name="balance_batch", batch_max=n, batch_cl=batch_cl)
            arms[f"{name}-random{n}"] = {"loss": loss, "sampler": random}
            arms[f"{name}-balanced{n}"] = {"loss": loss, "sampler": balanced}
    yield from with_seeds(with_matched(arms, BALANCED))
