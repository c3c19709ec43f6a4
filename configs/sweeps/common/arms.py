"""Building blocks that several sweeps share."""

from collections.abc import Iterable, Iterator, Mapping

SEEDS = (0, 1, 2)


def with_seeds(arms: Mapping[str, Mapping]) -> Iterator[dict]:
    """Yields a run per seed and arm, seeds first: early stops leave whole seeds."""
    for seed in SEEDS:
        for arm, overrides in arms.items():
            yield {"arm": arm, "seed": seed, **overrides}


def steps_at_equal_images(
    total_steps: int, *, batch_max: int, mean_batch_size: float
) -> int:
    """Number of steps with smaller batches that use as many images as `total_steps`."""
    return round(total_steps * batch_max / mean_batch_size)


def random_and_balance_batch(
    losses: Mapping[str, Mapping],
    *,
    total_steps: int,
    batch_max: int,
    mean_batch_sizes: Mapping[int, float],
    **fields: int,
) -> dict[str, dict]:
    """Makes the arms (variants that a study compares) of each loss.

    These are random batches, and for each `batch_cl` Balance-batch at equal steps and
    at equal images.

    Args:
        losses: name (the prefix of the arms' names) to config of a loss.
        total_steps: number of steps with random batches.
        batch_max: largest batch of both samplers.
        mean_batch_sizes: `batch_cl` to the mean number of images in a batch.
        **fields: further fields of Balance-batch.
    """
    arms = {}
    for name, loss in losses.items():
        random = dict(name="random", batch_max=batch_max)
        arms[f"{name}-random"] = {"loss": loss, "sampler": random}
        for batch_cl, size in mean_batch_sizes.items():
            sampler = dict(
                name="balance_batch", batch_max=batch_max, batch_cl=batch_cl, **fields
            )
            steps = steps_at_equal_images(
                total_steps, batch_max=batch_max, mean_batch_size=size
            )
            balanced = {"loss": loss, "sampler": sampler}
            arms[f"{name}-cl{batch_cl}"] = balanced
            arms[f"{name}-cl{batch_cl}-images"] = {**balanced, "total_steps": steps}
    return arms


def balance_batch_with_random(
    losses: Iterable[str], classes: Iterable[int]
) -> tuple[tuple[str, str], ...]:
    """Compares these arms with random batches: at equal steps, then at equal images."""
    return tuple(
        (f"{loss}-cl{batch_cl}{images}", f"{loss}-random")
        for images in ("", "-images")
        for loss in losses
        for batch_cl in classes
    )
