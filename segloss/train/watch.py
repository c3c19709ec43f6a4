"""Evaluates during training: scores on one split, and gradient shares by class."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from rich.console import Console
from rich.progress import Progress

from segloss import metrics
from segloss.config import find_ignored_classes
from segloss.data import Batch
from segloss.devices import map_over_devices
from segloss.train.log import MetricWriter
from segloss.train.setup import Setup
from segloss.train.step import TrainState, attention_step
from segloss.trained.evaluation import evaluate, evaluation_step


class Watch:
    """Evaluates a run on `config.evaluate.split` while it is trained.

    Args:
        setup: the model, dataset and loss of the run.
        console: prints the scores.
        on_progress: called after every batch of an evaluation, which it may stop, in
            all processes, by raising `hosts.Interrupted`.
    """

    def __init__(self, setup: Setup, console: Console, on_progress: Callable[[], None]):
        self._setup = setup
        self._console = console
        self._on_progress = on_progress

    @functools.cached_property
    def evaluation_step(self) -> Callable:
        """`evaluation_step` mapped over the devices of this process.

        It uses a single scale and no flip.
        """
        return map_over_devices(
            evaluation_step,
            mapping=self._setup.config.mapping,
            model=self._setup.model,
            inference=self._setup.config.evaluate.inference.in_one_look,
            num_classes=self._setup.dataset.num_classes,
            bands=self._setup.dataset.bands,
            # Each process evaluates images of its own.
            devices=jax.local_devices(),
        )

    @functools.cached_property
    def _attention_step(self) -> Callable:
        return map_over_devices(
            attention_step,
            mapping=self._setup.config.mapping,
            model=self._setup.model,
            loss=self._setup.loss,
            augment=self._setup.augment,
            class_names=self._setup.dataset.class_names,
            bands=self._setup.dataset.bands,
        )

    def attention(self, state: TrainState, batch: Batch) -> dict[str, jax.Array]:
        """Returns the scalars of `attention_step`, each with a device axis.

        Args:
            state: the replicated state before the step that uses the batch.
            batch: a batch on the devices.
        """
        # Wait for the result: two concurrent programs with collectives can deadlock on
        # CPU devices.
        return jax.block_until_ready(self._attention_step(state, batch))

    def scores(self, state: TrainState, progress: Progress) -> dict[str, float]:
        """Evaluates a replicated state and returns its scores (`metrics.summary`).

        The processes of the run share the images, and all return the same scores. A bar
        in `progress` shows the number of images evaluated.

        Raises:
            hosts.Interrupted: in all processes, if `on_progress` raises it in one.
        """
        config, dataset = self._setup.config, self._setup.dataset
        split = config.evaluate.split
        task = progress.add_task(split, total=len(dataset.source(split)))

        def on_batch(images: int) -> None:
            self._on_progress()
            progress.advance(task, images)

        inference = config.evaluate.inference
        try:
            evaluation = evaluate(
                self.evaluation_step,
                state.variables,
                dataset,
                split,
                batch_size=config.evaluate.batch_size,
                size_multiple=inference.size_multiple,
                max_pixels=inference.max_pixels,
                num_threads=config.data.num_threads,
                on_batch=on_batch,
            )
        finally:
            progress.remove_task(task)
        ignored = find_ignored_classes(config, dataset.class_names)
        return metrics.summary(evaluation.confusion, ignore_classes=ignored)

    @property
    def score_name(self) -> str:
        """Name of the mean IoU in `metrics.jsonl`, such as "val_mean_iou"."""
        return f"{self._setup.config.evaluate.split}_mean_iou"

    def has_scores(self, writer: MetricWriter, step: int) -> bool:
        """Whether `metrics.jsonl` had the scores of a step when the run resumed."""
        return writer.has(step, self.score_name)

    def write(self, writer: MetricWriter, step: int, summary: dict[str, Any]) -> None:
        """Writes the scores of a step by `writer`, and prints the main ones."""
        split = self._setup.config.evaluate.split
        writer.write(step, {f"{split}_{k}": v for k, v in summary.items()})
        writer.flush()
        line = f"step {step}: {split} mean IoU {summary['mean_iou']:.4f}, "
        if "mean_iou_without_ignored" in summary:
            line += f"without ignored {summary['mean_iou_without_ignored']:.4f}, "
        self._console.print(f"{line}pixel accuracy {summary['pixel_accuracy']:.4f}")
