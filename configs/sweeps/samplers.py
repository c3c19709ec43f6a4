"""Every sampler on the embedded scenes, on equal steps.

python -m experiments.run --config=configs/sweeps/samplers.py --workdir=runs/samplers
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from configs import demo

SAMPLERS = (
    dict(name="random"),
    dict(name="balance_batch", batch_cl=8),
    dict(name="greedy_cover", batch_cl=8),
    dict(name="repeat_factor", threshold=0.1),
    dict(name="rare_class", temperature=0.1, min_pixels=100),
    dict(name="class_uniform"),
    dict(name="foreground_oversample"),
)


QUESTION = "What does each sampler make of the embedded scenes, on equal steps?"
COMPARISONS = tuple((s["name"], "random") for s in SAMPLERS if s["name"] != "random")


def get_config(size: str = "full") -> ConfigDict:
    return demo.get_config(size)


def sweep() -> Iterator[dict]:
    for sampler in SAMPLERS:
        yield {
            "arm": sampler["name"],
            "seed": 0,
            "sampler": dict(batch_max=9, **sampler),
        }
