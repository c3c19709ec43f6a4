"""Arms (compared variants) of the figures of the Balance-batch paper.

`random9` uses random batches of nine images. `cl8` is Balance-batch with `batch_cl` 8
for the same number of steps. `cl8-images` runs until it has used as many images as
random batches of `batch_max`. The arms for which the paper has a number have controls,
`cl8-matched` and `cl8-images-matched`: random batches of the same sizes.
"""

from collections.abc import Iterable

from ml_collections import ConfigDict

from configs import voc2012_paper
from configs.sweeps.common.arms import (
    against_matched,
    steps_at_equal_images,
    with_matched,
)
from segloss.errors import SeglossError

TOTAL_STEPS = 20_000
BATCH_SIZES = range(1, 13)
# Mean number of images in a batch by `batch_max` and `batch_cl` for VOC 2012's labels:
# experiments/voc2012/balance_batch_statistics.md.
MEAN_BATCH_SIZES = {
    9: {
        2: 1.00,
        3: 1.67,
        4: 2.46,
        5: 3.37,
        6: 4.37,
        7: 5.43,
        8: 6.42,
        9: 7.21,
        10: 7.78,
        11: 8.17,
        12: 8.42,
    },
    4: {2: 1.00, 3: 1.67, 4: 2.44, 5: 3.12, 6: 3.51},
    6: {2: 1.00, 3: 1.67, 4: 2.47, 5: 3.35, 6: 4.20, 7: 4.87, 8: 5.28},
}


def get_config(size: str, *, loss: str, batch_max: int) -> ConfigDict:
    """Returns the config of `configs/voc2012_paper.py` with random batches.

    `size` is "full" or "smoke" (seconds), `loss` is "ce", "soft_iou" or "soft_dice".
    """
    if size not in ("full", "smoke"):
        raise SeglossError(f"config size must be 'full' or 'smoke', got {size!r}.")
    smoke = "smoke," if size == "smoke" else ""
    return voc2012_paper.get_config(f"{smoke}loss={loss},batch_max={batch_max}")


def random_batches(sizes: Iterable[int] = BATCH_SIZES) -> dict[str, dict]:
    """Returns an arm, i.e. overrides of the config by name, for each batch size."""
    return {f"random{n}": {"sampler": voc2012_paper.sampler(n)} for n in sizes}


def balance_batch(batch_max: int, classes: Iterable[int]) -> dict[str, dict]:
    """Returns two arms for each `batch_cl`: at equal steps, and at equal images.

    An arm has a name and overrides of the config. Equal means equal to random batches.
    """
    arms = {}
    for batch_cl in classes:
        chosen = {"sampler": voc2012_paper.sampler(batch_max, batch_cl)}
        steps = steps_at_equal_images(
            TOTAL_STEPS,
            batch_max=batch_max,
            mean_batch_size=MEAN_BATCH_SIZES[batch_max][batch_cl],
        )
        arms[f"cl{batch_cl}"] = chosen
        arms[f"cl{batch_cl}-images"] = {**chosen, "total_steps": steps}
    return arms


def with_controls(arms: dict[str, dict], classes: Iterable[int]) -> dict[str, dict]:
    """Returns arms, and the controls of those of `balance_batch` with `classes`."""
    return with_matched(arms, [arm for arm in _names(classes) if arm in arms])


def compare(
    batch_max: int, classes: Iterable[int], *, controlled: Iterable[int] = ()
) -> tuple[tuple[str, str], ...]:
    """Returns pairs of arms to compare.

    They are each arm of `balance_batch` with random batches, then those with a
    `batch_cl` in `controlled` with their controls.
    """
    pairs = ((arm, f"random{batch_max}") for arm in _names(classes))
    return (*pairs, *against_matched(_names(controlled)))


def _names(classes: Iterable[int]) -> list[str]:
    return [f"cl{n}{images}" for n in classes for images in ("", "-images")]
