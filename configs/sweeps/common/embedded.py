"""Samplers on the embedded scenes, for studies that take hours on two CPU cores."""

from configs import demo
from configs.sweeps.common.arms import steps_at_equal_images

BATCH_MAX = 9
BATCH_CL = 8
# Images of a batch, on the labels of the 600 scenes; other samplers have BATCH_MAX.
MEAN_BATCH_SIZES = {"balance_batch": 6.38, "greedy_cover": 5.36}
RANDOM = dict(name="random", batch_max=BATCH_MAX)
BALANCE_BATCH = dict(name="balance_batch", batch_max=BATCH_MAX, batch_cl=BATCH_CL)


def equal_images(sampler: str) -> int:
    """Steps until a sampler has shown as many images as random batches have."""
    return steps_at_equal_images(
        demo.get_config().total_steps,
        batch_max=BATCH_MAX,
        mean_batch_size=MEAN_BATCH_SIZES[sampler],
    )
