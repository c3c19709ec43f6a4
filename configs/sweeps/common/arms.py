"""Building blocks of sweeps. An arm is a variant that a study compares."""

from collections.abc import Collection, Iterable, Iterator, Mapping

SEEDS = (0, 1, 2)
# Of the arms that carry a headline.
MORE_SEEDS = (0, 1, 2, 3, 4)


def with_seeds(
    arms: Mapping[str, Mapping], *, headline: Collection[str] = ()
) -> Iterator[dict]:
    """Yields the overrides of a run for each seed and arm.

    All arms come with the first seed, then with the next, so a study that is stopped
    early has complete seeds. Arms have `SEEDS`, those of `headline` `MORE_SEEDS`.
    """
    for seed in MORE_SEEDS:
        for arm, overrides in arms.items():
            if seed in (MORE_SEEDS if arm in headline else SEEDS):
                yield {"arm": arm, "seed": seed, **overrides}


def headline_first(
    arms: Mapping[str, Mapping], headline: Collection[str]
) -> Iterator[dict]:
    """Yields what `with_seeds` does, with all runs of `headline` before the others.

    For sweeps of many hours: they answer their question before they are complete.
    """
    yield from with_seeds({arm: arms[arm] for arm in headline}, headline=headline)
    yield from with_seeds({arm: arms[arm] for arm in arms if arm not in headline})


def with_matched(
    arms: Mapping[str, Mapping], names: Iterable[str] | None = None
) -> dict[str, dict]:
    """Returns arms and, after each of Balance-batch, its control `ARM-matched`.

    The control has random batches of the same sizes in as many steps, and differs in
    nothing else. With `augment.keep_classes`, which holds for classes that were chosen,
    its crops are random as well. It tells "more classes" from "fewer images", if the
    arm has as many steps as another with larger random batches, and from "more steps",
    if it has more.

    Args:
        arms: overrides of the config by the name of the arm.
        names: the arms that get a control; None means all of Balance-batch.
    """
    made: dict[str, dict] = {}
    for arm, overrides in arms.items():
        made[arm] = dict(overrides)
        sampler = overrides.get("sampler", {})
        if sampler.get("name") == "balance_batch" and (names is None or arm in names):
            sampler = {**sampler, "name": "matched_random"}
            made[f"{arm}-matched"] = {**overrides, "sampler": sampler}
    return made


def against_matched(names: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Returns pairs of arms to compare: those of `names`, and their controls."""
    return tuple((arm, f"{arm}-matched") for arm in names)


def steps_at_equal_images(
    total_steps: int, *, batch_max: int, mean_batch_size: float
) -> int:
    """Returns the number of steps with batches of `mean_batch_size` images.

    They use as many images as `total_steps` with `batch_max` images.
    """
    return round(total_steps * batch_max / mean_batch_size)


def random_and_balance_batch(
    losses: Mapping[str, Mapping],
    *,
    total_steps: int,
    batch_max: int,
    mean_batch_sizes: Mapping[int, float],
    **fields: int,
) -> dict[str, dict]:
    """Returns the arms of each loss: variants that a study compares, by name.

    `LOSS-random` has random batches. For each `batch_cl`, `LOSS-cl8` (if it is 8) is
    Balance-batch for as many steps, and `LOSS-cl8-images` for as many images.

    Args:
        losses: config of each loss, by the name to use in the names of arms.
        total_steps: number of steps with random batches.
        batch_max: largest number of images in a batch.
        mean_batch_sizes: mean number of images in a batch, by `batch_cl`.
        **fields: further fields of the config of Balance-batch.
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
    """Returns pairs of arms to compare: Balance-batch, and random batches, per loss.

    The arms are those of `random_and_balance_batch`, and `classes` are its `batch_cl`.
    Pairs at equal steps come first.
    """
    return tuple(
        (f"{loss}-cl{batch_cl}{images}", f"{loss}-random")
        for images in ("", "-images")
        for loss in losses
        for batch_cl in classes
    )
