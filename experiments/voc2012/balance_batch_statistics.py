"""What each sampler does to PASCAL VOC 2012, from its label statistics alone.

python -m experiments.voc2012.balance_batch_statistics COUNTS.csv.gz

`COUNTS.csv.gz` has a line per image: id, split ("val" is left out), width, height, the
pixel counts of the 21 classes, and void pixels. Writes the markdown beside this file.
"""

import csv
import gzip
import pathlib

import numpy as np
from absl import app
from rich.table import Table

from segloss.data import (
    BalanceBatch,
    ClassSets,
    ClassUniform,
    ForegroundOversample,
    GreedyCover,
    RandomBatch,
    RareClass,
    RepeatFactor,
    bound_distinct_classes,
    estimate_acceptance,
    exposures,
)
from segloss.data.samplers import EpochSampler
from segloss.report import markdown_table
from segloss.writing import write_text

PAIRS = [
    *((9, batch_cl) for batch_cl in range(2, 13)),
    *((4, batch_cl) for batch_cl in range(2, 7)),
    *((6, batch_cl) for batch_cl in range(2, 9)),
]
TRIALS = 100_000
EPOCHS = 20
# One block of a bar, as a share of the samples seen.
BLOCK = 0.02
# What may take longer to choose every image, and how many epochs it gets.
REQUEUED, LONGER = "balance_batch 12, requeue", 60
TEXT = """\
# Balance-batch on the labels of PASCAL VOC 2012

What do Balance-batch and the samplers it is compared with do to the {num} training
images (VOC and SBD), before a network sees any? No image is read: the label statistics
say which classes each holds, and {trials:,} random attempts per pair, seed 0, how often
the rule is met.

```sh
python -m experiments.voc2012.balance_batch_statistics COUNTS.csv.gz
```

## Pairs

`acceptance` is the share of the attempts that hold `batch_cl` distinct classes,
background included, within `batch_max` images; size and classes are means over those.
`reads per image used` is what a loader that reads and discards has to read; planned
from the class index it is always 1. The most that any images hold: {reachable}.

{pairs}
## Exposure

How often an image is chosen in {epochs} epochs, an epoch being what the sampler calls
one. The number is `batch_cl`, `batch_max` is 9.

{exposure}
Under `requeue` the images that are never chosen in {epochs} epochs had bad luck, not a
rule against them, for those of equal classes fare alike: with `batch_cl` 12 it is
{unlucky} images, and {unlucky_longer} in {longer} epochs.

## Classes

Share of the images seen that hold a class; a block is {block:.0%}.

{classes}"""


def read_counts(path: pathlib.Path) -> tuple[list[str], np.ndarray]:
    """Class names, and pixel counts of the training images."""
    with gzip.open(path, "rt") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] != "val"]
    names = list(rows[0])[4:-1]
    counts = np.array([[int(row[name]) for name in names] for row in rows])
    return names, counts


def pair_table(sets: ClassSets) -> Table:
    """A row per pair."""
    table = _make_table(
        ("batch_max", "batch_cl"),
        ("acceptance", "size", "classes", "reads per image used"),
    )
    for batch_max, batch_cl in PAIRS:
        got = estimate_acceptance(
            sets, batch_cl=batch_cl, batch_max=batch_max, trials=TRIALS
        )
        table.add_row(
            str(batch_max),
            str(batch_cl),
            f"{got.acceptance:.1%}",
            f"{got.mean_batch_size:.2f}",
            f"{got.mean_distinct_classes:.2f}",
            f"{got.draws_per_used_sample:.2f}",
        )
    return table


def make_samplers(counts: np.ndarray) -> dict[str, EpochSampler]:
    """Label to sampler, all of at most nine images."""
    sets = ClassSets.from_counts(counts)
    of_3000 = ClassSets.from_counts(counts, min_pixels=3_000)
    pixels = counts.sum(axis=0)
    samplers = {"random": RandomBatch(sets, batch_max=9)}
    for batch_cl in (8, 12):
        pair = dict(batch_cl=batch_cl, batch_max=9)
        samplers |= {
            f"balance_batch {batch_cl}": BalanceBatch(sets, **pair),
            f"balance_batch {batch_cl}, requeue": BalanceBatch(
                sets, on_reject="requeue", **pair
            ),
            f"balance_batch {batch_cl}, exact": BalanceBatch(sets, exact=True, **pair),
            f"greedy_cover {batch_cl}": GreedyCover(sets, **pair),
        }
    return samplers | {
        "repeat_factor, threshold 0.1": RepeatFactor(sets, batch_max=9, threshold=0.1),
        "rare_class, 3,000 pixels": RareClass(
            of_3000, batch_max=9, class_pixels=pixels
        ),
        "class_uniform": ClassUniform(sets, batch_max=9),
        "foreground_oversample": ForegroundOversample(sets, batch_max=9),
    }


def exposure_table(counts: dict[str, np.ndarray], batches: dict[str, int]) -> Table:
    """A row per sampler: batches of an epoch, and how often images are chosen."""
    table = _make_table(
        ("sampler",),
        ("batches an epoch", "mean size", "min", "median", "max", "never chosen"),
    )
    for label, chosen in counts.items():
        table.add_row(
            label,
            str(batches[label]),
            f"{chosen.sum() / EPOCHS / batches[label]:.2f}",
            str(chosen.min()),
            f"{np.median(chosen):.0f}",
            str(chosen.max()),
            str((chosen == 0).sum()),
        )
    return table


def class_table(
    names: list[str], presence: np.ndarray, counts: dict[str, np.ndarray]
) -> Table:
    """A row per class but the first, a bar per sampler."""
    table = Table("class", *counts)
    shares = {label: n @ presence / n.sum() for label, n in counts.items()}
    for c, name in list(enumerate(names))[1:]:  # nearly all hold the background
        table.add_row(name, *(_bar(shares[label][c]) for label in counts))
    return table


def _bar(share: float) -> str:
    return f"{share:.1%} {'█' * round(share / BLOCK)}"


def _make_table(texts: tuple[str, ...], numbers: tuple[str, ...]) -> Table:
    table = Table(*texts)
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def main(argv: list[str]) -> None:
    """Writes `balance_batch_statistics.md`."""
    if len(argv) != 2:
        raise app.UsageError("give the file of pixel counts, and nothing else.")
    names, counts = read_counts(pathlib.Path(argv[1]))
    sets = ClassSets.from_counts(counts)
    samplers = make_samplers(counts)
    batches = {label: s.batches_per_epoch for label, s in samplers.items()}
    chosen = {
        label: exposures(s, EPOCHS * batches[label]) for label, s in samplers.items()
    }
    reachable = {
        batch_max: bound_distinct_classes(sets, batch_max=batch_max)[1]
        for batch_max in (4, 6, 9)
    }
    text = TEXT.format(
        num=f"{len(counts):,}",
        trials=TRIALS,
        pairs=markdown_table(pair_table(sets)),
        reachable=", ".join(f"{v} classes in {k}" for k, v in reachable.items()),
        epochs=EPOCHS,
        longer=LONGER,
        unlucky=(chosen[REQUEUED] == 0).sum(),
        unlucky_longer=(
            exposures(samplers[REQUEUED], LONGER * batches[REQUEUED]) == 0
        ).sum(),
        exposure=markdown_table(exposure_table(chosen, batches)),
        block=BLOCK,
        classes=markdown_table(class_table(names, counts > 0, chosen)),
    )
    path = pathlib.Path(__file__).with_suffix(".md")
    write_text(path, text)
    print(f"wrote {path.name}")


if __name__ == "__main__":
    app.run(main)
