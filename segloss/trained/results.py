"""Evaluates a run on a split and writes its scores as files, tables and figures."""

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt
from ml_collections import ConfigDict
from rich.console import Console

from segloss import hosts, metrics
from segloss.config import (
    Inference,
    RunConfig,
    check_split,
    find_ignored_classes,
    open_configured_dataset,
    parse_config,
)
from segloss.console import make_console, make_progress
from segloss.data import Dataset
from segloss.data.bands import to_rgb
from segloss.devices import map_over_devices, replicate
from segloss.errors import SeglossError
from segloss.provenance import versions
from segloss.remote import opened, shown
from segloss.report import class_table, example_figure, save_figure, summary_table
from segloss.trained.classes import check_same_classes
from segloss.trained.confusions import ConfusionStore
from segloss.trained.evaluation import (
    Evaluation,
    describe_large_images,
    evaluate,
    evaluation_step,
)
from segloss.trained.model import TrainedModel, load_checkpoint
from segloss.writing import replacing, without_nan, write_json

# Images with a side of at least twice this are drawn with fewer pixels.
_DRAWN_PX = 1024


def evaluate_run(
    config: ConfigDict, workdir: str | Path, *, split: str | None = None
) -> dict[str, Any]:
    """Evaluates a run's checkpoint and prints the scores as tables.

    Writes the files of `final_evaluation` to `evaluations/SPLIT_STEP/` in `workdir`. If
    `config.evaluate` changes scales, flip, windows or `max_pixels`, they are added to
    the name of the directory. Several processes share the images; the first one writes
    and prints, and all return the same results.

    Args:
        config: the run's config.
        workdir: directory of the run, a path or a URL such as `gs://bucket/run`.
        split: name of the split; None means `config.evaluate.final_split`.

    Returns:
        The contents of `results.json`.

    Raises:
        ValueError: if the dataset lacks the split or has other classes than the run.
    """
    with hosts.watched():
        parsed = parse_config(config)
        with opened(workdir) as local:
            return _evaluate_run(parsed, local, split)


def _evaluate_run(
    parsed: RunConfig, workdir: Path, split: str | None
) -> dict[str, Any]:
    trained = load_checkpoint(parsed, workdir)
    dataset = open_configured_dataset(parsed)
    where = "--split" if split else "config.evaluate"
    split = split or parsed.evaluate.final_split
    check_split(dataset, split, where=where)
    check_same_classes(workdir, trained.class_names, dataset)
    if not trained.bands.are_like(dataset.bands):
        raise SeglossError(
            f"{workdir} was trained on {trained.bands}; {dataset.name} has "
            f"{dataset.bands}."
        )
    # The model knows the mean and deviation of the images it was trained on.
    dataset = dataclasses.replace(dataset, bands=trained.bands)
    name = "_".join(filter(None, (split, str(trained.step), trained.inference.name)))
    directory = workdir / "evaluations" / name
    console = make_console(quiet=not hosts.is_first())
    if trained.fingerprint not in (None, dataset.fingerprint):
        console.print(
            f"this is another dataset than the run was trained on, or it has changed: "
            f"its fingerprint is {dataset.fingerprint}, was {trained.fingerprint}",
            soft_wrap=True,
        )
    if line := describe_large_images(dataset, split, trained.inference):
        console.print(line, soft_wrap=True)
    return final_evaluation(parsed, dataset, split, trained, directory, console)


def final_evaluation(
    config: RunConfig,
    dataset: Dataset,
    split: str,
    trained: TrainedModel,
    directory: Path,
    console: Console,
    *,
    mapped_step: Callable | None = None,
    on_progress: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Evaluates a split, writes its results and a figure, and prints tables.

    Writes `confusions.npz` (a confusion matrix per image), `figures/examples.png` and,
    last, `results.json` to `directory`. With several processes, the first one writes
    and prints; the others return when it is done.

    `mapped_step` is `evaluation_step` with the inference of `trained`, already mapped
    by `map_over_devices` over the devices of this process; None maps it here.
    `on_progress` is called after every batch and every example in the figure. If it
    raises, no `results.json` is written.

    Returns:
        The contents of `results.json`, in all processes.

    Raises:
        hosts.Interrupted: in all processes, if `on_progress` raises it in one of them
            before the results are written.
    """
    ignored = find_ignored_classes(config, dataset.class_names)
    step = mapped_step or map_over_devices(
        evaluation_step,
        mapping=config.mapping,
        model=trained.model,
        inference=trained.inference,
        num_classes=dataset.num_classes,
        bands=trained.bands,
        devices=jax.local_devices(),
    )
    num_images = len(dataset.source(split))
    with (
        make_progress(console) as progress,
        tempfile.TemporaryFile() as file,
    ):
        confusions = ConfusionStore(file, num_images, dataset.num_classes)
        task = progress.add_task(split, total=num_images)

        def on_batch(images: int) -> None:
            on_progress()
            progress.advance(task, images)

        evaluation = evaluate(
            step,
            replicate(trained.variables),
            dataset,
            split,
            batch_size=config.evaluate.batch_size,
            size_multiple=trained.inference.size_multiple,
            max_pixels=trained.inference.max_pixels,
            num_threads=config.data.num_threads,
            on_batch=on_batch,
            on_confusions=confusions.add,
        )
        confusions.gather()
        if hosts.is_first():
            directory.mkdir(parents=True, exist_ok=True)
            # Scores of a subset of the images can be computed from it later.
            with replacing(directory / "confusions.npz") as path:
                confusions.save(path)
    results = make_results(
        evaluation,
        dataset,
        inference=trained.inference,
        step=trained.step,
        images_seen=trained.images_seen,
        seconds=trained.seconds,
        commit=trained.commit,
        pretrained=trained.pretrained,
        changes=trained.changes,
        ignore_classes=ignored,
    )
    with hosts.shared_work(on_progress) as poll:
        if hosts.is_first():
            figure = directory / "figures" / "examples.png"
            for _ in _draw_examples(evaluation, dataset, trained, figure):
                on_progress()
                poll()
            # Write this last: a run with `results.json` counts as finished.
            write_json(directory / "results.json", results)
            console.print(class_table(results))
            console.print(summary_table({directory.name: results}))
            console.print(f"pictures: {shown(figure)}", soft_wrap=True)
    return results


def make_results(
    evaluation: Evaluation,
    dataset: Dataset,
    *,
    inference: Inference,
    step: int,
    images_seen: int | None,
    seconds: float,
    commit: str | None,
    pretrained: dict[str, Any] | None,
    changes: Sequence[dict[str, Any]] = (),
    ignore_classes: Sequence[int] = (),
) -> dict[str, Any]:
    """Makes the contents of `results.json`, with None for NaN.

    A score is NaN if it is undefined, such as the IoU of a class without pixels.

    Args:
        evaluation: confusion matrix of the split.
        dataset: the dataset with the split.
        inference: how the images were predicted.
        step: number of training steps.
        images_seen: number of images used in training; None if unknown.
        seconds: duration of training.
        commit: commit of the code that trained the model.
        pretrained: `file` and `sha256` of the pretrained weights that training started
            from, and `step` if they are those of a run; None if there were none.
        changes: the changes of the config with which training was resumed.
        ignore_classes: ids of classes that a second mean IoU leaves out.
    """
    confusion = evaluation.confusion
    ignored = [dataset.class_names[c] for c in ignore_classes]
    scores = {
        "iou": metrics.iou_per_class(confusion),
        "precision": metrics.precision_per_class(confusion),
        "recall": metrics.recall_per_class(confusion),
        "f1": metrics.f1_per_class(confusion),
        "pixel_share": confusion.sum(axis=1) / max(1, confusion.sum()),
    }
    per_class = [
        {"name": name, **{key: float(value[c]) for key, value in scores.items()}}
        for c, name in enumerate(dataset.class_names)
    ]
    return without_nan(
        {
            "summary": metrics.summary(confusion, ignore_classes=ignore_classes),
            **({"ignored_in_mean": ignored} if ignored else {}),
            "per_class": per_class,
            "confusion": confusion.tolist(),
            "dataset": dataset.name,
            "fingerprint": dataset.fingerprint,
            "split": evaluation.split,
            "num_images": len(evaluation.image_scores),
            "step": step,
            "images_seen": images_seen,
            "seconds": round(seconds, 1),
            "inference": dataclasses.asdict(inference),
            "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "versions": versions(),
            "commit": commit,
            "pretrained": pretrained,
            **({"changes": list(changes)} if changes else {}),
        }
    )


def rank_images(evaluation: Evaluation) -> Iterator[tuple[str, int, float]]:
    """Yields ("best", position in the split, mean IoU), then "median" and "worst".

    Images without labelled pixels have no score and are left out. Yields nothing if
    there are no others.
    """
    scores = evaluation.image_scores
    order = np.argsort(-scores, kind="stable")
    order = order[~np.isnan(scores[order])]
    if len(order):
        places = {"best": 0, "median": len(order) // 2, "worst": len(order) - 1}
        for rank, place in places.items():
            yield rank, int(order[place]), float(scores[order[place]])


def _draw_examples(
    evaluation: Evaluation,
    dataset: Dataset,
    trained: TrainedModel,
    path: Path,
) -> Iterator[None]:
    """Saves the figure; yields after each example."""
    source = dataset.source(evaluation.split)
    examples, predicted = [], {}
    for rank, position, score in rank_images(evaluation):
        if position not in predicted:  # of few images, one has several ranks
            sample = source[position]
            labels = trained.predict(sample["image"])
            picture = to_rgb(sample["image"], trained.bands)
            predicted[position] = (
                sample["stem"],
                _thin(image=picture, labels=sample["labels"], predicted=labels),
            )
        stem, maps = predicted[position]
        title = f"{rank} (mean IoU {score:.2f})  {stem}"
        examples.append({"title": title, **maps})
        yield
    if examples:
        figure = example_figure(
            examples, dataset.class_names, ignore_label=dataset.ignore_label
        )
        save_figure(figure, path)


def _thin(**maps: UInt[np.ndarray, "h w *_"]) -> dict[str, UInt[np.ndarray, "..."]]:
    """Keeps every n-th row and column; `n` grows with the size of `maps["labels"]`."""
    every = max(1, *(n // _DRAWN_PX for n in maps["labels"].shape))
    return {name: x[::every, ::every].copy() for name, x in maps.items()}
