r"""Figure 5 of the Balance-batch paper: soft Dice, random and Balance-batch.

python -m experiments.run --config=configs/sweeps/voc2012_fig5.py \
    --config.data.root=DIR --config.model.pretrained=FILE --workdir=runs/voc2012_fig5

DIR and FILE are those of `configs/voc2012_paper.py`.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from configs.sweeps.common import voc2012_figures
from configs.sweeps.common.arms import with_seeds

QUESTION = (
    "With soft Dice on PASCAL VOC 2012, what does the batch size do to the mean "
    "IoU, and what does Balance-batch add to random batches of 6?"
)
PAPER = "soft_dice"
# The values of `batch_cl` with numbers in the paper.
CONTROLLED = (7, 8)
COMPARISONS = voc2012_figures.compare(6, (8, 7, 2, 3, 4, 5, 6), controlled=CONTROLLED)


def get_config(size: str = "full") -> ConfigDict:
    return voc2012_figures.get_config(size, loss=PAPER, batch_max=6)


def sweep() -> Iterator[dict]:
    arms = voc2012_figures.random_batches()
    arms |= voc2012_figures.balance_batch(6, range(2, 9))
    yield from with_seeds(voc2012_figures.with_controls(arms, CONTROLLED))
