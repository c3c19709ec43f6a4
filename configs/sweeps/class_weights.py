"""Class weights for cross-entropy against Balance-batch, on the embedded scenes.

python -m experiments.run --config=configs/sweeps/class_weights.py \
    --workdir=runs/class_weights
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from configs.sweeps.common import embedded
from configs.sweeps.common.arms import against_matched, with_matched, with_seeds

QUESTION = (
    "Rare classes can weigh more in cross-entropy, or come more evenly in the batches: "
    "which is better on the embedded scenes, class weights or Balance-batch?"
)
# Mean IoU of this arm before differences of the study count; fixed before the first
# run.
BARS = {"none": 0.80}
WEIGHTS = ("median_frequency", "inverse_frequency", "effective_number")
BALANCED = ("balance_batch", "balance_batch-images")
COMPARISONS = (
    *((arm, "none") for arm in (*BALANCED, *WEIGHTS)),
    *((arm, weights) for weights in WEIGHTS for arm in BALANCED),
    *against_matched(BALANCED),
)
HEADLINE = ("none", *BALANCED, *(f"{arm}-matched" for arm in BALANCED))


def get_config(size: str = "full") -> ConfigDict:
    return embedded.get_config(size)


def sweep() -> Iterator[dict]:
    plain = dict(name="softmax_cross_entropy")
    balanced = {"loss": plain, "sampler": embedded.BALANCE_BATCH}
    arms = {"none": {"loss": plain, "sampler": embedded.RANDOM}}
    for name in WEIGHTS:
        weighted = dict(plain, class_weights=dict(name=name))
        arms[name] = {"loss": weighted, "sampler": embedded.RANDOM}
    arms["balance_batch"] = balanced
    arms["balance_batch-images"] = {
        **balanced,
        "total_steps": embedded.equal_images("balance_batch"),
    }
    yield from with_seeds(with_matched(arms), headline=HEADLINE)
