"""Samplers of the studies on the embedded scenes: synthetic images drawn by segloss.

The studies take hours on two CPU cores.
"""

from ml_collections import ConfigDict

from configs import demo
from configs.sweeps.common.arms import steps_at_equal_images

BATCH_MAX = 9
BATCH_CL = 8
# Mean number of images in a batch for the 600 scenes; other samplers use BATCH_MAX.
MEAN_BATCH_SIZES = {"balance_batch": 6.38, "greedy_cover": 5.36}
RANDOM = dict(name="random", batch_max=BATCH_MAX)
BALANCE_BATCH = dict(name="balance_batch", batch_max=BATCH_MAX, batch_cl=BATCH_CL)


def get_config(size: str = "full") -> ConfigDict:
    """Returns `configs/demo.py` with numbers of steps, instead of shares of the run.

    Arms with another `total_steps` then differ in nothing else.
    """
    config = demo.get_config(size)
    if size != "smoke":
        config.update(checkpoint_every_steps=100, evaluate_every_steps=300)
        config.schedule.warmup_steps = 50
    return config


def equal_images(sampler: str) -> int:
    """Returns the steps in which a sampler uses as many images as random batches do.

    `sampler` is a key of `MEAN_BATCH_SIZES`.
    """
    return steps_at_equal_images(
        demo.get_config().total_steps,
        batch_max=BATCH_MAX,
        mean_batch_size=MEAN_BATCH_SIZES[sampler],
    )
