"""What the sweeps of several studies are made of."""

from collections.abc import Iterable, Iterator, Mapping

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


def random_and_balance_batch(
    losses: Mapping[str, Mapping],
    *,
    total_steps: int,
    batch_max: int,
    mean_batch_sizes: Mapping[int, float],
    **fields: int,
) -> dict[str, dict]:
    """Per loss random batches, and Balance-batch at equal steps and at equal images.

    Args:
        losses: by the name that their arms begin with.
        total_steps: of random batches.
        batch_max: of both.
        mean_batch_sizes: by `batch_cl`.
        fields: of Balance-batch, beside these.
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
    """The comparisons of these arms: all at equal steps, then all at equal images."""
    return tuple(
        (f"{loss}-cl{batch_cl}{images}", f"{loss}-random")
        for images in ("", "-images")
        for loss in losses
        for batch_cl in classes
    )
