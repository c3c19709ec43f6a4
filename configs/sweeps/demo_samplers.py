r"""Random against Balance-batch on the embedded scenes, on equal steps.

python -m experiments.run --config=configs/sweeps/demo_samplers.py \
    --workdir=runs/demo-compare
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from configs import demo


def get_config(size: str = "full") -> ConfigDict:
    return demo.get_config(size)


def sweep() -> Iterator[dict]:
    yield {"sampler": dict(name="random", batch_max=9)}
    yield {"sampler": dict(name="balance_batch", batch_max=9, batch_cl=8)}
