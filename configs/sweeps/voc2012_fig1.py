r"""Figure 1 of the Balance-batch paper: cross-entropy, random and Balance-batch.

python -m experiments.run --config=configs/sweeps/voc2012_fig1.py \
    --config.data.root=DIR --config.model.pretrained=FILE --workdir=runs/voc2012_fig1

DIR and FILE are those of `configs/voc2012_paper.py`.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from configs.sweeps.common import voc2012_figures
from configs.sweeps.common.arms import with_seeds

QUESTION = (
    "With cross-entropy on PASCAL VOC 2012, what does the batch size do to the mean "
    "IoU, and what does Balance-batch add to random batches of 9?"
)
PAPER = "ce"
# Values of `batch_cl` with numbers in the paper. `cl2` needs no control: nearly all its
# batches are one image, so `random1` is that.
CONTROLLED = (8, 12)
COMPARISONS = voc2012_figures.compare(
    9, (8, 12, 2, 3, 4, 5, 6, 7, 9, 10, 11), controlled=CONTROLLED
)


def get_config(size: str = "full") -> ConfigDict:
    return voc2012_figures.get_config(size, loss=PAPER, batch_max=9)


def sweep() -> Iterator[dict]:
    arms = voc2012_figures.random_batches()
    arms |= voc2012_figures.balance_batch(9, range(2, 13))
    yield from with_seeds(voc2012_figures.with_controls(arms, CONTROLLED))
