"""Prepares datasets and class indices with Apache Beam, on one or many machines.

Needs `pip install segloss[beam]`. No other module imports this one.
"""

from collections.abc import Sequence
from typing import Any

import apache_beam as beam
import tensorflow_datasets as tfds
from apache_beam.options.pipeline_options import PipelineOptions

from segloss.data.class_index import LabelCounter
from segloss.data.datasets.chosen_classes import Classes
from segloss.data.datasets.dataset import DATASETS, Dataset, open_dataset
from segloss.data.datasets.tfds_dataset import ForeignDataset
from segloss.registry import bind


def prepare_on_beam(
    name: str,
    *,
    runner: str = "DirectRunner",
    options: Sequence[str] = (),
    classes: Classes | None = None,
    **hyperparameters: Any,
) -> Dataset:
    """Writes a dataset and the class index of each split with Beam, and opens it.

    A class index holds the pixel counts of each class in each sample. Records and
    indices equal those that `open_dataset` and `Dataset.class_index` write without
    Beam; these functions reuse them later. Workers process a record file or a range of
    samples at a time. A dataset, indices and ranges that are already written are kept.

    Args:
        name: key of `DATASETS`.
        runner: name of the Beam runner; DirectRunner runs on this machine.
        options: Beam options, such as "--direct_num_workers=2".
        classes: the classes to choose, see `Dataset.choose`; None has all.
        **hyperparameters: keyword arguments of `DATASETS[name]`. Every worker must see
            the files that they name, and `data_dir`, under the same paths.

    Raises:
        ValueError: if the name or a hyperparameter is unknown, or out of range.
        DatasetError: if files are missing or faulty; lists all faults.
    """
    builder = bind("dataset", DATASETS, name, hyperparameters)()
    if not isinstance(builder, ForeignDataset):  # else TFDS has prepared it
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(
                beam_runner=runner, beam_options=PipelineOptions([*options])
            )
        )
    dataset = open_dataset(name, classes=classes, **hyperparameters)
    for split in dataset.splits:
        if not dataset.class_index_path(split).exists():
            counter = dataset.label_counter(split)
            count_on_beam(counter, runner=runner, options=options)
        dataset.class_index(split)  # joins the parts
    return dataset


def count_on_beam(
    counter: LabelCounter, *, runner: str = "DirectRunner", options: Sequence[str] = ()
) -> None:
    """Counts the pixels of each class in each sample, and writes the counts to files.

    Each part, i.e. a range of samples in `counter.parts`, becomes one file in
    `counter.parts_dir`. Valid files that are already there are kept.

    Args:
        counter: what to count. Every worker must see its `parts_dir` and the files of
            its source under the same paths.
        runner: name of the Beam runner.
        options: Beam options.
    """
    counter.parts_dir.mkdir(parents=True, exist_ok=True)
    with beam.Pipeline(runner=runner, options=PipelineOptions([*options])) as pipeline:
        _ = (
            pipeline
            | beam.Create(counter.parts)
            | beam.Reshuffle()  # otherwise one worker counts all parts
            | beam.Map(lambda part: len(counter.count_part(part)))
        )
