"""Writes `gradient_variance.md` from the numbers and the runs that are stored."""

import csv
import dataclasses
import math
import pathlib
from collections.abc import Sequence

import numpy as np
from rich.table import Table

from configs.sweeps import instability
from experiments.analysis.store import Run, Study, check_complete, load
from segloss import metrics
from segloss.errors import SeglossError
from segloss.report import make_table, markdown_table
from segloss.writing import replacing, write_text

# A class is collapsed if its IoU is below this share.
COLLAPSED = 0.01
NAME = "gradient_variance"


@dataclasses.dataclass(frozen=True)
class Measured:
    """Loss and gradient over the batches of one sampler, at one checkpoint.

    Attributes:
        loss: name in `configs/sweeps/instability.py`.
        seed: seed of the network and of the sampler.
        step: step of the checkpoint.
        batches: arm without the loss, such as "balanced4".
        images: mean number of images in a batch.
        mean: mean of the loss.
        std: standard deviation of the loss over batches.
        norm: norm of the mean gradient, without the bias of few batches.
        variance: trace of the covariance of the gradient over batches, divided by the
            square of `norm`: the noise-to-signal ratio of one step, which is the
            "simple noise scale" of McCandlish et al. 2018 (arXiv:1812.06162), eq. 2.9,
            divided by the batch size.
    """

    loss: str
    seed: int
    step: int
    batches: str
    images: float
    mean: float
    std: float
    norm: float
    variance: float


def save(rows: Sequence[Measured], folder: pathlib.Path) -> None:
    """Writes `gradient_variance.csv`, each number with six digits."""
    with replacing(folder / f"{NAME}.csv") as path, path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([field.name for field in dataclasses.fields(Measured)])
        for row in rows:
            values = dataclasses.astuple(row)
            writer.writerow([f"{x:.6g}" if type(x) is float else x for x in values])


def read(folder: pathlib.Path) -> list[Measured]:
    """Reads what `save` wrote."""
    types = {field.name: field.type for field in dataclasses.fields(Measured)}
    with (folder / f"{NAME}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [Measured(**{k: types[k](x) for k, x in row.items()}) for row in rows]


def variance_table(rows: Sequence[Measured], loss: str, step: int) -> Table:
    """Makes a table of the variances of a loss at a step, a row per kind of batches."""
    table = make_table(
        ["batches"], ["images", "loss", "its deviation", "variance of the gradient"]
    )
    here = [row for row in rows if (row.loss, row.step) == (loss, step)]
    for batches in dict.fromkeys(row.batches for row in here):
        of_seeds = [row for row in here if row.batches == batches]
        cells = (
            _over_seeds([getattr(row, field) for row in of_seeds])
            for field in ("mean", "std", "variance")
        )
        images = np.mean([row.images for row in of_seeds])
        table.add_row(batches, f"{images:.2f}", *cells)
    return table


def growth_table(rows: Sequence[Measured]) -> Table:
    """Makes a table of how much more a gradient of one image varies than of eight.

    These are random batches. Of a mean over images, and without BatchNorm, it would be
    eight times as much.
    """
    steps = sorted({row.step for row in rows})
    table = make_table(["loss"], [f"step {step:,}" for step in steps])
    for loss in dict.fromkeys(row.loss for row in rows):
        shares = [_shares(rows, loss, step, "random1", "random8") for step in steps]
        table.add_row(loss, *(_each(x, ".3g") for x in shares))
    return table


def control_table(rows: Sequence[Measured], study: Study) -> Table:
    """Makes a table of Balance-batch against random batches of the same sizes.

    A row per loss and batch size has the variance of the gradient as a share of the
    control's, the difference of the numbers of collapsed classes, each by seed, and
    which of them is smaller in every seed (of the variance: at every step as well).
    """
    steps = sorted({row.step for row in rows})
    table = make_table(
        ["loss", "batches", "control"],
        [*(f"variance, step {step:,}" for step in steps), "collapsed classes"],
        ["smaller in every seed"],
    )
    for loss in dict.fromkeys(row.loss for row in rows):
        for n in instability.BATCHES:
            ours = f"balanced{n}"
            control = "random1" if n == 1 else f"{ours}-matched"
            shares = [_shares(rows, loss, step, ours, control) for step in steps]
            pairs = study.pairs(f"{loss}-{ours}", f"{loss}-{control}")
            counts = (map(count_collapsed, runs) for runs in pairs)
            fewer = [a - b for a, b in zip(*counts, strict=True)]
            smaller = {
                # A comparison with NaN is False.
                "variance": all(x < 1 for of_step in shares for x in of_step),
                "collapsed classes": all(x < 0 for x in fewer),
            }
            words = " and ".join(name for name, is_so in smaller.items() if is_so)
            cells = [_each(of_step, ".2f") for of_step in shares]
            row = (loss, ours, control, *cells, _each(fewer, "+d"), words or "neither")
            table.add_row(*row)
    return table


def collapsed_table(study: Study) -> Table:
    """Makes a table of the collapsed classes of each arm at the end."""
    table = make_table(
        ["arm"], ["mean IoU", "collapsed classes"], ["collapsed in every seed"]
    )
    for arm, runs in study.arms.items():
        scores = [100 * float(metrics.mean_iou(_confusion(run))) for run in runs]
        collapsed = [_collapsed(run) for run in runs]
        always = np.flatnonzero(np.all(collapsed, axis=0))
        names = ", ".join(runs[0].class_names[k] for k in always)
        counts = [int(x.sum()) for x in collapsed]
        table.add_row(arm, _over_seeds(scores), _over_seeds(counts), names)
    return table


def count_collapsed(run: Run) -> int:
    """Counts the labelled classes with an IoU below `COLLAPSED` on all images."""
    return int(_collapsed(run).sum())


def write_page(folder: pathlib.Path) -> None:
    """Writes `gradient_variance.md` from `gradient_variance.csv` and `results/`.

    Raises:
        ValueError: if a file is missing, or the study lacks runs.
    """
    rows, study = read(folder), load(folder / "results")
    check_complete(study)
    parts = [
        "# Loss and gradient from batch to batch",
        "Written by `experiments.instability.gradient_variance`, whose head says how "
        "it measures.\nMeans over seeds, in brackets the smallest and the largest. "
        "The variance is that of the whole\ngradient over batches, divided by the "
        "squared norm of its mean: 1 is as much noise as signal\nin one step "
        "(McCandlish et al. 2018, arXiv:1812.06162). It is inf where the mean is lost "
        "in the noise,\nand a share of it nan.",
    ]
    parts += [
        "## Small batches",
        "The variance of the gradient of random batches of one image, divided by that "
        "of batches of eight,\nby seed. It would be 8 of a mean over images, without "
        "BatchNorm; so compare the losses with each\nother.",
        markdown_table(growth_table(rows)).strip(),
        "## Balance-batch against its controls",
        "Random batches of the same sizes, by seed: the variance of the gradient as a "
        "share of the\ncontrol's, and collapsed classes more (+) or fewer (-) than "
        "the control has. Of three seeds, a\nmeasure that nothing changes is smaller "
        "in all by chance in one row of eight.",
        markdown_table(control_table(rows, study)).strip(),
    ]
    for loss in dict.fromkeys(row.loss for row in rows):
        for step in sorted({row.step for row in rows}):
            table = markdown_table(variance_table(rows, loss, step))
            parts += [f"## {loss}, network of step {step:,}", table.strip()]
    text = f"Classes whose IoU is below {COLLAPSED:.0%} when training ends."
    collapsed = markdown_table(collapsed_table(study)).strip()
    parts += ["## Collapsed classes", text, collapsed]
    write_text(folder / f"{NAME}.md", "\n\n".join(parts) + "\n")


def _confusion(run: Run) -> np.ndarray:
    return run.per_image.sum(axis=0, dtype=np.int64)


def _collapsed(run: Run) -> np.ndarray:
    confusion = _confusion(run)
    labelled = confusion.sum(axis=1) > 0
    return labelled & (metrics.iou_per_class(confusion) < COLLAPSED)


def _shares(
    rows: Sequence[Measured], loss: str, step: int, ours: str, control: str
) -> list[float]:
    """Returns the variance of `ours` divided by that of `control`, by seed.

    NaN where either cannot be measured, since the mean gradient is lost in the noise.

    Raises:
        ValueError: if a seed or all of them are missing.
    """
    found = [
        {
            row.seed: row.variance
            for row in rows
            if (row.loss, row.step, row.batches) == (loss, step, batches)
        }
        for batches in (ours, control)
    ]
    if not found[0] or found[0].keys() != found[1].keys():
        raise SeglossError(
            f"{NAME}.csv: {loss} at step {step} needs the same seeds of {ours} and "
            f"{control}, got {sorted(found[0])} and {sorted(found[1])}; "
            "experiments.instability.gradient_variance --workdir=DIR writes it anew."
        )
    return [
        a / b if 0 < b < math.inf and a < math.inf else math.nan
        for a, b in ((found[0][seed], found[1][seed]) for seed in sorted(found[0]))
    ]


def _each(values: Sequence[float], how: str) -> str:
    return ", ".join(format(value, how) for value in values)


def _over_seeds(values: Sequence[float]) -> str:
    mean, low, high = np.mean(values), np.min(values), np.max(values)
    return f"{mean:.3g} ({low:.3g} to {high:.3g})"
