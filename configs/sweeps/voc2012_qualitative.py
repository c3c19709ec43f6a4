r"""Figures 2, 4 and 6 of the Balance-batch paper: predictions with and without it.

python -m experiments.run --config=configs/sweeps/voc2012_qualitative.py \
    --config.data.root=DIR --config.model.pretrained=FILE \
    --workdir=runs/voc2012_qualitative

DIR and FILE are those of `configs/voc2012_paper.py`.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from configs import voc2012_paper
from configs.sweeps.common import voc2012_figures
from configs.sweeps.common.arms import with_seeds
from segloss.errors import SeglossError

QUESTION = (
    "On which images of PASCAL VOC 2012 does Balance-batch change the prediction, and "
    "how, with cross-entropy, soft IoU and soft Dice?"
)
# Loss to `batch_max` and the `batch_cl` with the highest mean IoU in the paper.
BEST = {"ce": (9, 12), "soft_iou": (4, 4), "soft_dice": (6, 8)}
# All three losses at equal steps, as in the paper, then at equal images.
COMPARISONS = tuple(
    (f"{loss}-cl{batch_cl}{images}", f"{loss}-random{batch_max}")
    for images in ("", "-images")
    for loss, (batch_max, batch_cl) in BEST.items()
)


def get_config(size: str = "full") -> ConfigDict:
    if size not in ("full", "smoke"):
        raise SeglossError(f"config size must be 'full' or 'smoke', got {size!r}.")
    return voc2012_paper.get_config("smoke" if size == "smoke" else "")


def sweep() -> Iterator[dict]:
    yield from with_seeds(
        {
            f"{loss}-{arm}": {"loss": voc2012_paper.LOSSES[loss], **overrides}
            for loss, (batch_max, batch_cl) in BEST.items()
            for arm, overrides in (
                voc2012_figures.random_batches([batch_max])
                | voc2012_figures.balance_batch(batch_max, [batch_cl])
            ).items()
        }
    )
