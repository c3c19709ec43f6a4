r"""Every loss of class ids on the embedded scenes with Balance-batch.

python -m experiments.run --config=configs/sweeps/demo_losses.py \
    --workdir=runs/demo-losses
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from configs import demo

ALONE = (
    "softmax_cross_entropy",
    "focal_loss",
    "poly_loss",
    "top_k_cross_entropy",
    "soft_dice",
    "log_cosh_dice",
    "soft_iou",
    "tversky",
    "focal_tversky",
    "generalized_dice",
    "lovasz_softmax",
)
# These say nothing of some pixels or classes, so cross-entropy stands beside them. The
# weights bring them to about its size.
BESIDE_CROSS_ENTROPY = {"boundary_loss": 0.01, "soft_cldice": 0.5}
# It costs twice as much to see something in the background as to overlook it.
PENALTY = tuple(
    tuple(0.0 if k == y else 2.0 if y == 0 else 1.0 for k in range(21))
    for y in range(21)
)


QUESTION = (
    "What does each loss of class ids make of the embedded scenes with Balance-batch? "
    "One seed: an overview, no ranking."
)
_LOSSES = {name: dict(name=name) for name in ALONE}
_LOSSES["log_bilinear_loss"] = dict(name="log_bilinear_loss", penalty=PENALTY)
for _name, _weight in BESIDE_CROSS_ENTROPY.items():
    _LOSSES[_name] = [
        dict(name="softmax_cross_entropy", weight=1.0),
        dict(name=_name, weight=_weight),
    ]
COMPARISONS = tuple((arm, ALONE[0]) for arm in _LOSSES if arm != ALONE[0])


def get_config(size: str = "full") -> ConfigDict:
    return demo.get_config(size)


def sweep() -> Iterator[dict]:
    for arm, loss in _LOSSES.items():
        yield {"arm": arm, "seed": 0, "loss": loss}
