"""Datasets and their class indices by Apache Beam, for sets too large for one machine.

`pip install segloss[beam]`; nothing else imports this module.
"""

from collections.abc import Sequence
from typing import Any

import apache_beam as beam
import tensorflow_datasets as tfds
from apache_beam.options.pipeline_options import PipelineOptions

from segloss.data.class_index import LabelCounter
from segloss.data.datasets import DATASETS, Dataset, open_dataset
from segloss.registry import bind


def prepare_on_beam(
    name: str,
    *,
    runner: str = "DirectRunner",
    options: Sequence[str] = (),
    **hyperparameters: Any,
) -> Dataset:
    """Opens a dataset that Beam prepares first, with the class index of every split.

    Shards, fingerprint and indices are those that `open_dataset` and `class_index`
    would make, which find them afterwards. A shard is one piece of work, and so is a
    part of an index; what was made before is not made again.

    Args:
        name: key of `DATASETS`.
        runner: where Beam runs; DirectRunner is this machine.
        options: Beam's own, such as "--direct_num_workers=2".
        **hyperparameters: keyword arguments of `DATASETS[name]`. Every worker must see
            the files that they name, and `data_dir`, under the same paths.

    Raises:
        ValueError: if the name or a hyperparameter is unknown, or out of range.
        DatasetError: if files of a `folder` are faulty; lists all faults.
    """
    bind("dataset", DATASETS, name, hyperparameters)().download_and_prepare(
        download_config=tfds.download.DownloadConfig(
            beam_runner=runner, beam_options=PipelineOptions([*options])
        )
    )
    dataset = open_dataset(name, **hyperparameters)
    for split in dataset.splits:
        if not dataset.class_index_path(split).exists():
            counter = dataset.label_counter(split)
            count_on_beam(counter, runner=runner, options=options)
        dataset.class_index(split)  # gathers the parts
    return dataset


def count_on_beam(
    counter: LabelCounter, *, runner: str = "DirectRunner", options: Sequence[str] = ()
) -> None:
    """Counts the parts of a class index that are not in `counter.parts_dir` yet.

    Args:
        counter: every worker must see its `parts_dir`, and what its source reads.
        runner: where Beam runs.
        options: Beam's own.
    """
    counter.parts_dir.mkdir(exist_ok=True)
    with beam.Pipeline(runner=runner, options=PipelineOptions([*options])) as pipeline:
        _ = (
            pipeline
            | beam.Create(counter.parts)
            | beam.Reshuffle()  # else one worker counts all
            | beam.Map(lambda part: len(counter.count_part(part)))
        )
