r"""Figure 3 of the Balance-batch paper: soft IoU, random and Balance-batch.

python -m experiments.run --config=configs/sweeps/voc2012_fig3.py \
    --config.data.root=DIR --config.model.pretrained=FILE --workdir=runs/voc2012_fig3

DIR and FILE are those of `configs/voc2012_paper.py`.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from configs.sweeps.common import voc2012_figures
from configs.sweeps.common.arms import with_seeds

QUESTION = (
    "With soft IoU on PASCAL VOC 2012, what does the batch size do to the mean "
    "IoU, and what does Balance-batch add to random batches of 4?"
)
PAPER = "soft_iou"
# The values of `batch_cl` with numbers in the paper.
CONTROLLED = (3, 4)
COMPARISONS = voc2012_figures.compare(4, (4, 3, 2, 5, 6), controlled=CONTROLLED)


def get_config(size: str = "full") -> ConfigDict:
    return voc2012_figures.get_config(size, loss=PAPER, batch_max=4)


def sweep() -> Iterator[dict]:
    arms = voc2012_figures.random_batches()
    arms |= voc2012_figures.balance_batch(4, range(2, 7))
    yield from with_seeds(voc2012_figures.with_controls(arms, CONTROLLED))
