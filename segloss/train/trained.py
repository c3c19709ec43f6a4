"""A finished or interrupted run put to use: its weights, their evaluation, pictures."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import UInt8
from ml_collections import ConfigDict
from rich.console import Console

from segloss.data import Dataset
from segloss.report import class_table, example_figure, save_figure, summary_table
from segloss.train.checkpoints import Checkpoints
from segloss.train.evaluation import (
    Evaluation,
    evaluate,
    make_results,
    rank_images,
    write_json,
)
from segloss.train.log import make_progress
from segloss.train.setup import (
    make_configured_model,
    make_configured_optimizer,
    make_setup,
)
from segloss.train.step import (
    make_state,
    pmap_evaluation_step,
    predict_labels,
    replicate,
)


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """What a checkpoint holds: weights, and the classes that they tell apart."""

    model: nn.Module
    variables: Any
    class_names: tuple[str, ...]
    ignore_label: int
    fingerprint: str
    step: int
    seconds: float

    @functools.cached_property
    def predict(
        self,
    ) -> Callable[[UInt8[np.ndarray, "h w 3"]], UInt8[np.ndarray, "h w"]]:
        """From one RGB image to its class ids; compiled once per size of image."""
        predict = jax.jit(functools.partial(predict_labels, model=self.model))
        variables = jax.device_put(self.variables)
        return lambda image: np.asarray(predict(variables, image[None])[0])


def load_trained(config: ConfigDict, workdir: Path) -> TrainedModel:
    """Reads the checkpoint that `config.evaluate.checkpoint` names, newest or best.

    Raises:
        FileNotFoundError: if the run has none.
    """
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    which = config.evaluate.checkpoint
    meta = checkpoints.read_meta(which)
    model = make_configured_model(config, len(meta["class_names"]))
    like = make_state(
        model,
        make_configured_optimizer(config),
        seed=config.seed,
        image_hw=tuple(config.data.crop_hw),
    )
    restored = checkpoints.restore(like, which=which)
    checkpoints.close()
    return TrainedModel(
        model=model,
        variables=restored.state.variables,
        class_names=tuple(meta["class_names"]),
        ignore_label=meta["ignore_label"],
        fingerprint=meta["fingerprint"],
        step=restored.step,
        seconds=meta["seconds"],
    )


def evaluate_run(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Evaluates a run's checkpoint on `config.evaluate.final_split`.

    Writes `evaluations/SPLIT_STEP/results.json` and a figure, and prints the tables.
    """
    workdir = Path(workdir)
    dataset = make_setup(config).dataset
    trained = load_trained(config, workdir)
    if trained.class_names != dataset.class_names:
        raise ValueError(
            f"{workdir} was trained on the classes {', '.join(trained.class_names)}; "
            f"{dataset.name} has {', '.join(dataset.class_names)}."
        )
    split = config.evaluate.final_split
    directory = workdir / "evaluations" / f"{split}_{trained.step}"
    return final_evaluation(config, dataset, trained, directory, Console())


def final_evaluation(
    config: ConfigDict,
    dataset: Dataset,
    trained: TrainedModel,
    directory: Path,
    console: Console,
) -> dict[str, Any]:
    """Scores the final split: `results.json`, `figures/examples.png` and tables."""
    split = config.evaluate.final_split
    step = pmap_evaluation_step(model=trained.model, num_classes=dataset.num_classes)
    with make_progress(console) as progress:
        task = progress.add_task(split, total=len(dataset.source(split)), status="")
        evaluation = evaluate(
            step,
            replicate(trained.variables),
            dataset,
            split,
            batch_size=config.evaluate.batch_size,
            num_threads=config.data.num_threads,
            on_batch=lambda images: progress.advance(task, images),
        )
    results = make_results(
        evaluation, dataset, step=trained.step, seconds=trained.seconds
    )
    figure = directory / "figures" / "examples.png"
    _draw_examples(evaluation, dataset, trained, figure)
    # Last, because a run with results is a finished run.
    write_json(directory / "results.json", results)
    console.print(class_table(results))
    console.print(summary_table({directory.name: results}))
    console.print(f"pictures: {figure}", soft_wrap=True)
    return results


def _draw_examples(
    evaluation: Evaluation, dataset: Dataset, trained: TrainedModel, path: Path
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
    if examples:
        figure = example_figure(
            examples, dataset.class_names, ignore_label=dataset.ignore_label
        )
        save_figure(figure, path)
