"""A finished or interrupted run put to use: its weights, their evaluation, pictures."""

import contextlib
import dataclasses
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import UInt8
from ml_collections import ConfigDict
from rich.console import Console

from segloss.data import Dataset, put_on_canvas, round_up
from segloss.report import class_table, example_figure, save_figure, summary_table
from segloss.train.checkpoints import Checkpoints
from segloss.train.confusions import ConfusionStore
from segloss.train.evaluation import (
    Evaluation,
    evaluate,
    make_results,
    rank_images,
)
from segloss.train.inference import Inference, predict_labels
from segloss.train.log import make_console, make_progress
from segloss.train.setup import (
    check_fields,
    check_split,
    make_configured_model,
    make_configured_optimizer,
    make_inference,
    open_configured_dataset,
)
from segloss.train.step import (
    make_state,
    pmap_evaluation_step,
    replicate,
)
from segloss.writing import replacing, write_json


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """What a checkpoint holds: weights, and the classes that they tell apart."""

    model: nn.Module
    variables: Any
    class_names: tuple[str, ...]
    ignore_label: int
    inference: Inference
    step: int
    images_seen: int | None
    seconds: float
    commit: str | None
    # The file of weights that the run began with, and its SHA-256.
    pretrained: dict[str, str] | None

    @functools.cached_property
    def _predict(self) -> Callable[[jax.Array, jax.Array], jax.Array]:
        how = dict(model=self.model, inference=self.inference)
        predict = jax.jit(functools.partial(predict_labels, **how))
        return functools.partial(predict, jax.device_put(self.variables))

    def predict(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w"]:
        """Class ids of one RGB image; compiled once per size of the padded image."""
        h, w, _ = image.shape
        canvas = put_on_canvas(image, round_up((h, w), self.inference.size_multiple))
        return np.asarray(self._predict(canvas[None], np.array([[h, w]])))[0, :h, :w]


def load_trained(config: ConfigDict, workdir: Path) -> TrainedModel:
    """Reads the checkpoint that `config.evaluate.checkpoint` names, newest or best.

    Raises:
        FileNotFoundError: if the run has none.
        ValueError: if it does not fit the config.
    """
    check_fields(config)
    which = config.evaluate.checkpoint
    with contextlib.closing(
        Checkpoints(workdir / "checkpoints", read_only=True)
    ) as checkpoints:
        meta = checkpoints.read_meta(which)
        model = make_configured_model(config, len(meta["class_names"]))
        like = jax.eval_shape(
            functools.partial(
                make_state,
                model,
                make_configured_optimizer(config),
                seed=config.seed,
                image_hw=tuple(config.data.crop_hw),
            )
        )
        restored = checkpoints.restore(like, which=which)
    return TrainedModel(
        model=model,
        variables=restored.state.variables,
        class_names=tuple(meta["class_names"]),
        ignore_label=meta["ignore_label"],
        inference=make_inference(config),
        step=restored.step,
        images_seen=meta.get("images_seen"),
        seconds=meta["seconds"],
        commit=meta["commit"],
        pretrained=meta.get("pretrained"),
    )


def evaluate_run(
    config: ConfigDict, workdir: str | Path, *, split: str | None = None
) -> dict[str, Any]:
    """Evaluates a run's checkpoint, and prints the tables.

    Writes `evaluations/SPLIT_STEP/results.json` and a figure; where `config.evaluate`
    asks for scales, flip or windows, the directory's name says so.

    Args:
        config: the run's config.
        workdir: the run.
        split: the split; None is `config.evaluate.final_split`.

    Raises:
        ValueError: if the dataset has other classes than the run, or no such split.
    """
    workdir = Path(workdir)
    trained = load_trained(config, workdir)
    dataset = open_configured_dataset(config)
    split = split or config.evaluate.final_split
    check_split(dataset, split)
    if trained.class_names != dataset.class_names:
        raise ValueError(
            f"{workdir} was trained on the classes {', '.join(trained.class_names)}; "
            f"{dataset.name} has {', '.join(dataset.class_names)}."
        )
    name = "_".join(filter(None, (split, str(trained.step), trained.inference.name)))
    directory = workdir / "evaluations" / name
    return final_evaluation(config, dataset, split, trained, directory, make_console())


def final_evaluation(
    config: ConfigDict,
    dataset: Dataset,
    split: str,
    trained: TrainedModel,
    directory: Path,
    console: Console,
    *,
    evaluation_step: Callable | None = None,
    on_progress: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Scores a split: `results.json`, `confusions.npz`, a figure and tables.

    The step, if there is one that does the same, need not be compiled again.
    `on_progress` is called after every batch and picture; if it raises, there will be
    no `results.json`.
    """
    step = evaluation_step or pmap_evaluation_step(
        model=trained.model,
        inference=trained.inference,
        num_classes=dataset.num_classes,
    )
    num_images = len(dataset.source(split))
    with (
        make_progress(console) as progress,
        tempfile.TemporaryFile() as file,
    ):
        confusions = ConfusionStore(file, num_images, dataset.num_classes)
        task = progress.add_task(split, total=num_images, status="")

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
            num_threads=config.data.num_threads,
            on_batch=on_batch,
            on_confusions=confusions.add,
        )
        directory.mkdir(parents=True, exist_ok=True)
        # So that scores of a part of the images, or of several runs, can be had later.
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
    )
    figure = directory / "figures" / "examples.png"
    _draw_examples(evaluation, dataset, trained, figure, on_progress)
    # Last, because a run with results is a finished run.
    write_json(directory / "results.json", results)
    console.print(class_table(results))
    console.print(summary_table({directory.name: results}))
    console.print(f"pictures: {figure}", soft_wrap=True)
    return results


def _draw_examples(
    evaluation: Evaluation,
    dataset: Dataset,
    trained: TrainedModel,
    path: Path,
    on_progress: Callable[[], None],
) -> None:
    source = dataset.source(evaluation.split)
    examples = []
    for rank, position, score in rank_images(evaluation):
        sample = source[position]
        examples.append(
            {
                "title": f"{rank} (mean IoU {score:.2f})  {sample['stem']}",
                "image": sample["image"],
                "labels": sample["labels"],
                "predicted": trained.predict(sample["image"]),
            }
        )
        on_progress()
    if examples:
        figure = example_figure(
            examples, dataset.class_names, ignore_label=dataset.ignore_label
        )
        save_figure(figure, path)
