"""Every loss on the embedded scenes, with and without Balance-batch.

python -m experiments.run --config=configs/sweeps/losses.py --workdir=runs/losses
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from configs.sweeps.common import embedded
from configs.sweeps.common.arms import against_matched, with_matched, with_seeds

QUESTION = (
    "For which losses does Balance-batch help on the embedded scenes, and which loss "
    "is best with either kind of batches?"
)
# Mean IoU of this arm before differences of the study count; fixed before the first
# run.
BARS = {"softmax_cross_entropy-random": 0.80}
# A false detection in the background costs twice as much as any other error.
PENALTY = tuple(
    tuple(0.0 if k == y else 2.0 if y == 0 else 1.0 for k in range(21))
    for y in range(21)
)
LOSSES = {
    name: dict(name=name)
    for name in (
        "softmax_cross_entropy",
        "soft_dice",
        "soft_iou",
        "focal_loss",
        "poly_loss",
        "top_k_cross_entropy",
        "log_cosh_dice",
        "tversky",
        "focal_tversky",
        "generalized_dice",
        "lovasz_softmax",
        # Losses of sigmoids: each class against all others.
        "sigmoid_cross_entropy",
        "normalized_sigmoid_cross_entropy",
        "gated_sigmoid_cross_entropy",
        "sigmoid_focal_loss",
        "lovasz_hinge",
    )
}
LOSSES["log_bilinear_loss"] = dict(name="log_bilinear_loss", penalty=PENALTY)
# These losses ignore some pixels or classes, so cross-entropy is added to them. The
# weights scale them to about its magnitude.
LOSSES |= {
    name: [
        dict(name="softmax_cross_entropy", weight=1.0),
        dict(name=name, weight=weight),
    ]
    for name, weight in {"boundary_loss": 0.01, "soft_cldice": 0.5}.items()
}
# For each loss, Balance-batch (at equal steps and at equal images) against random
# batches, and against random batches of the same sizes; then each loss against
# cross-entropy.
COMPARISONS = (
    *(
        (f"{loss}-balance_batch{images}", f"{loss}-random")
        for loss in LOSSES
        for images in ("", "-images")
    ),
    *against_matched(f"{loss}-balance_batch" for loss in LOSSES),
    *(
        (f"{loss}-{batches}", f"softmax_cross_entropy-{batches}")
        for batches in ("random", "balance_batch")
        for loss in LOSSES
        if loss != "softmax_cross_entropy"
    ),
)


def get_config(size: str = "full") -> ConfigDict:
    return embedded.get_config(size)


def sweep() -> Iterator[dict]:
    arms = {}
    for name, loss in LOSSES.items():
        balanced = {"loss": loss, "sampler": embedded.BALANCE_BATCH}
        arms[f"{name}-random"] = {"loss": loss, "sampler": embedded.RANDOM}
        arms[f"{name}-balance_batch"] = balanced
        arms[f"{name}-balance_batch-images"] = {
            **balanced,
            "total_steps": embedded.equal_images("balance_batch"),
        }
    of_steps = [f"{loss}-balance_batch" for loss in LOSSES]
    yield from with_seeds(with_matched(arms, of_steps))
