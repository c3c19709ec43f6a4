r"""Random batches against Balance-batch on the embedded scenes, at equal steps.

python -m experiments.run --config=configs/sweeps/demo_samplers.py \
    --workdir=runs/demo-compare
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from configs import demo

QUESTION = (
    "Do random batches and Balance-batch both train the default network on the "
    "embedded scenes, at equal steps? One seed cannot tell which is better."
)
COMPARISONS = (("balance_batch", "random"),)


def get_config(size: str = "full") -> ConfigDict:
    return demo.get_config(size)


def sweep() -> Iterator[dict]:
    random = dict(name="random", batch_max=9)
    balance_batch = dict(name="balance_batch", batch_max=9, batch_cl=8)
    yield {"arm": "random", "seed": 0, "sampler": random}
    yield {"arm": "balance_batch", "seed": 0, "sampler": balance_batch}
