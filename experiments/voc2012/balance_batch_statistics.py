"""Measures what each sampler draws from PASCAL VOC 2012, given its pixel counts.

python -m experiments.voc2012.balance_batch_statistics COUNTS.csv.gz

`COUNTS.csv.gz` has a line per image: id, split ("val" is left out), width, height, the
pixel counts of the 21 classes, and void pixels. Writes `balance_batch_statistics.md`
next to this file.
"""

import csv
import gzip
import pathlib
from typing import Any

import jinja2
import numpy as np
from rich.table import Table

from segloss import cli
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
from segloss.report import make_table, markdown_table
from segloss.writing import write_text

# Maps each batch_max to the values of batch_cl that are tried.
PAIRS = {9: range(2, 13), 4: range(2, 7), 6: range(2, 9)}
TRIALS = 100_000
EPOCHS = 20
# Share of the drawn samples that one block of a bar stands for.
BLOCK = 0.02
# A sampler that takes long to draw every image, and the number of epochs it also runs.
REQUEUED, LONGER = "balance_batch 12, requeue", 60


def read_counts(path: pathlib.Path) -> tuple[list[str], np.ndarray]:
    """Returns class names, and pixel counts `[n, c]` of the images outside "val"."""
    with gzip.open(path, "rt") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] != "val"]
    names = list(rows[0])[4:-1]
    counts = np.array([[int(row[name]) for name in names] for row in rows])
    return names, counts


def pair_table(sets: ClassSets) -> Table:
    """Makes a table of `estimate_acceptance`: a row per `batch_max` and `batch_cl`."""
    numbers = ("acceptance", "size", "classes", "reads per image used")
    table = make_table(("batch_max", "batch_cl"), numbers)
    for batch_max, batch_cls in PAIRS.items():
        for batch_cl in batch_cls:
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
    """Returns samplers by label, with batches of at most nine images.

    `counts` are the pixel counts `[n, c]` of the images.
    """
    sets = ClassSets.from_counts(counts)
    of_3000 = ClassSets.from_counts(counts, min_pixels=3_000)
    pixels = counts.sum(axis=0)
    samplers = {"random": RandomBatch(sets, batch_max=9)}
    for batch_cl in (8, 12):
        name, pair = f"balance_batch {batch_cl}", dict(batch_cl=batch_cl, batch_max=9)
        samplers |= {
            name: BalanceBatch(sets, **pair),
            f"{name}, requeue": BalanceBatch(sets, on_reject="requeue", **pair),
            f"{name}, exact": BalanceBatch(sets, exact=True, **pair),
            f"greedy_cover {batch_cl}": GreedyCover(sets, **pair),
        }
    rare = RareClass(of_3000, batch_max=9, class_pixels=pixels)
    return samplers | {
        "repeat_factor, threshold 0.1": RepeatFactor(sets, batch_max=9, threshold=0.1),
        "rare_class, 3,000 pixels": rare,
        "class_uniform": ClassUniform(sets, batch_max=9),
        "foreground_oversample": ForegroundOversample(sets, batch_max=9),
    }


def exposure_table(counts: dict[str, np.ndarray], batches: dict[str, int]) -> Table:
    """Makes a table of how often images are drawn, a row per sampler.

    The arguments are by label of a sampler: draws of each image, batches per epoch.
    """
    numbers = ("batches an epoch", "mean size", "min", "median", "max", "never chosen")
    table = make_table(("sampler",), numbers)
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
    """Makes a table of the share of drawn images that have each class.

    It has a row per class but the background. `presence[n, c]` is True if image n has
    class c; `counts` are the draws of each image, by label of a sampler.
    """
    table = make_table(("class", *counts), ())
    shares = [n @ presence / n.sum() for n in counts.values()]
    for c, name in list(enumerate(names))[1:]:  # nearly all hold the background
        bars = (f"{s[c]:.1%} {'█' * round(s[c] / BLOCK)}" for s in shares)
        table.add_row(name, *bars)
    return table


def write_page(script: pathlib.Path, **fields: Any) -> None:
    """Writes the markdown next to a script from the template next to it."""
    template = jinja2.Template(script.with_suffix(".md.jinja").read_text())
    path = script.with_suffix(".md")
    write_text(path, template.render(**fields))
    print(f"wrote {path.name}")


def main(argv: list[str]) -> None:
    """Writes `balance_batch_statistics.md`."""
    names, counts = read_counts(pathlib.Path(argv[1]))
    sets = ClassSets.from_counts(counts)
    samplers = make_samplers(counts)
    batches = {label: s.batches_per_epoch for label, s in samplers.items()}
    chosen = {
        label: exposures(s, EPOCHS * batches[label]) for label, s in samplers.items()
    }
    longer = exposures(samplers[REQUEUED], LONGER * batches[REQUEUED])
    reachable = {n: bound_distinct_classes(sets, batch_max=n)[1] for n in sorted(PAIRS)}
    write_page(
        pathlib.Path(__file__),
        num=f"{len(counts):,}",
        trials=f"{TRIALS:,}",
        pairs=markdown_table(pair_table(sets)),
        reachable=", ".join(f"{v} classes in {k}" for k, v in reachable.items()),
        epochs=EPOCHS,
        longer=LONGER,
        unlucky=(chosen[REQUEUED] == 0).sum(),
        unlucky_longer=(longer == 0).sum(),
        exposure=markdown_table(exposure_table(chosen, batches)),
        block=f"{BLOCK:.0%}",
        classes=markdown_table(class_table(names, counts > 0, chosen)),
    )


if __name__ == "__main__":
    cli.run(main, arguments=("COUNTS",))
