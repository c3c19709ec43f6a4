"""Counts the classes that random crops leave in Balance-batch batches of VOC 2012.

python -m experiments.voc2012.classes_in_crops ROOT

`ROOT` holds `VOC2012`, whole or a part of it. Batches are planned by the classes of the
images, as in the paper, and by those that crops can keep (`augment.keep_classes`). The
random scales and the crop are those of `configs/voc2012_paper.py`. Writes
`classes_in_crops.md` next to this file.
"""

import pathlib
import tempfile

import numpy as np
from rich.table import Table

from configs import voc2012_paper
from experiments.voc2012.balance_batch_statistics import PAIRS, write_page
from segloss import cli
from segloss.config import choose_windows, index_windows, parse_config
from segloss.console import make_progress
from segloss.data import BalanceBatch, CropCounts, Dataset, count_in_crops, open_dataset
from segloss.report import make_table, markdown_table

BATCHES = 500


def count_pairs(dataset: Dataset, *, keep: bool) -> dict[tuple[int, int], CropCounts]:
    """Counts the classes in the first 500 batches of each (`batch_max`, `batch_cl`).

    `keep` sets `augment.keep_classes`: True chooses crops that keep classes, False
    crops at random.
    """
    config = voc2012_paper.get_config("batch_cl=2").unlock()
    config.augment.keep_classes = keep
    run = parse_config(config)
    index = dataset.class_index("train")
    windows = choose_windows(run)(index)
    planned = index_windows(dataset, index, run.sampler, windows).presence()
    source = dataset.source("train", images=False)
    pairs = [(n, batch_cl) for n, some in PAIRS.items() for batch_cl in some]
    counted = {}
    with make_progress() as progress:
        for batch_max, batch_cl in progress.track(pairs, description=f"{keep=}"):
            sampler = BalanceBatch(planned, batch_cl=batch_cl, batch_max=batch_max)
            counted[batch_max, batch_cl] = count_in_crops(
                source,
                sampler,
                windows,
                range(BATCHES),
                num_classes=dataset.num_classes,
                ignore_label=dataset.ignore_label,
            )
    return counted


def pair_table(
    plain: dict[tuple[int, int], CropCounts], kept: dict[tuple[int, int], CropCounts]
) -> Table:
    """Makes a table with a row per (`batch_max`, `batch_cl`).

    It shows the mean number of classes of a batch, and the share of the batches with
    `batch_cl` classes in the crops, without (`plain`) and with (`kept`) `keep_classes`.
    """
    table = make_table(
        ("batch_max", "batch_cl"),
        (
            "in images",
            "in crops",
            "batches kept",
            "in crops, keep_classes",
            "batches kept, keep_classes",
            "windows drawn an image",
        ),
    )
    for (batch_max, batch_cl), without in plain.items():
        with_classes = kept[batch_max, batch_cl]
        table.add_row(
            str(batch_max),
            str(batch_cl),
            f"{mean(without.in_images):.2f}",
            f"{mean(without.in_crops):.2f}",
            f"{without.share_with(batch_cl):.1%}",
            f"{mean(with_classes.in_crops):.2f}",
            f"{with_classes.share_with(batch_cl):.1%}",
            f"{with_classes.tries:.2f}",
        )
    return table


def mean(held: np.ndarray) -> float:
    return float(held.sum(axis=1).mean())


def main(argv: list[str]) -> None:
    """Writes `classes_in_crops.md`."""
    with tempfile.TemporaryDirectory() as scratch:
        dataset = open_dataset("voc2012", root=argv[1], partial=True, data_dir=scratch)
        counted = [count_pairs(dataset, keep=keep) for keep in (False, True)]
        write_page(
            pathlib.Path(__file__),
            num=f"{len(dataset.source('train')):,}",
            batches=BATCHES,
            pairs=markdown_table(pair_table(*counted)),
        )


if __name__ == "__main__":
    cli.run(main, arguments=("ROOT",))
