"""What the sweeps of several studies are made of."""

from collections.abc import Iterator, Mapping

SEEDS = (0, 1, 2)


def with_seeds(arms: Mapping[str, Mapping]) -> Iterator[dict]:
    """A run per arm and seed; a sweep that is stopped early has whole seeds."""
    for seed in SEEDS:
        for arm, overrides in arms.items():
            yield {"arm": arm, "seed": seed, **overrides}


def steps_at_equal_images(
    total_steps: int, *, batch_max: int, mean_batch_size: float
) -> int:
    """Steps whose smaller batches hold the images of `total_steps` full ones."""
    return round(total_steps * batch_max / mean_batch_size)
