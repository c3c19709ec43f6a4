"""The training loop: steps, evaluations, checkpoints, and what is left of a run."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.console import Console

from segloss import metrics
from segloss.data import Batch, iterate_batches
from segloss.train.checkpoints import Checkpoints, Restored
from segloss.train.evaluation import evaluate
from segloss.train.log import MetricWriter, StepMeter, make_progress
from segloss.train.setup import Setup, make_setup, write_config
from segloss.train.signals import StopRequest, stop_on_signals
from segloss.train.step import (
    TrainState,
    first_replica,
    make_state,
    pmap_evaluation_step,
    pmap_train_step,
    replicate,
    shard,
)
from segloss.train.trained import TrainedModel, final_evaluation


class Stopped(SystemExit):
    """The run was asked to stop; its code is 128 plus the signal, as shells have it."""


class _EvaluationStopped(Exception):  # noqa: N818, it is no error
    """The run was asked to stop while it evaluated."""


def train(
    config: ConfigDict,
    workdir: str | Path,
    *,
    on_step: Callable[[int], None] = lambda step: None,
) -> dict[str, Any]:
    """Trains, or goes on from the newest checkpoint, and evaluates the result.

    Args:
        config: see `configs/`; every field is checked before anything is written.
        workdir: where `config.json`, checkpoints, metrics, results and figures go.
        on_step: called with the number of each step that was handed to the devices.

    Returns:
        What `results.json` holds.

    Raises:
        ValueError: if the config is wrong, or `workdir` holds a run of another one.
        NonFiniteError: if the loss or the gradient is NaN or infinite.
        Stopped: after SIGINT or SIGTERM, once the state is saved.
    """
    workdir = Path(workdir)
    setup = make_setup(config)
    workdir.mkdir(parents=True, exist_ok=True)
    write_config(config, workdir)
    with stop_on_signals() as stop:
        return _Run(setup, workdir, Console(), stop, on_step).train()


@dataclasses.dataclass
class _Run:
    setup: Setup
    workdir: Path
    console: Console
    stop: StopRequest
    on_step: Callable[[int], None]
    started: float = dataclasses.field(default_factory=time.monotonic)
    seconds_before: float = 0.0

    def train(self) -> dict[str, Any]:
        setup, config = self.setup, self.setup.config
        state = make_state(
            setup.model,
            setup.optimizer,
            seed=config.seed,
            image_hw=tuple(config.data.crop_hw),
        )
        with contextlib.closing(
            Checkpoints(self.workdir / "checkpoints")
        ) as checkpoints:
            if restored := checkpoints.restore(state):
                state = self._go_on_from(restored)
            self._introduce(state)
            with (
                MetricWriter(self.workdir, start_step=int(state.step)) as writer,
                make_progress(self.console) as progress,
            ):
                state = self._steps(state, checkpoints, writer, progress)
        return self._finish(state)

    def _go_on_from(self, restored: Restored) -> TrainState:
        if restored.meta["fingerprint"] != self.setup.dataset.fingerprint:
            raise ValueError(
                f"{self.workdir}: the dataset changed since checkpoint "
                f"{restored.step}; choose another --workdir."
            )
        self.seconds_before = restored.meta["seconds"]
        return restored.state

    @functools.cached_property
    def _evaluation_step(self) -> Callable:
        return pmap_evaluation_step(
            model=self.setup.model, num_classes=self.setup.dataset.num_classes
        )

    @property
    def _seconds(self) -> float:
        """Seconds of training, those before a restart included."""
        return self.seconds_before + time.monotonic() - self.started

    def _steps(self, state: TrainState, checkpoints, writer, progress) -> TrainState:
        config, setup = self.setup.config, self.setup
        first, last = int(state.step), config.total_steps
        state = replicate(state)
        step_fn = pmap_train_step(
            model=setup.model,
            loss=setup.loss,
            optimizer=setup.optimizer,
            augment=setup.augment,
        )
        meter = StepMeter(writer, setup.schedule)
        task = progress.add_task("train", total=last, completed=first, status="")
        batches = self._batches(first, last)
        for step in range(first + 1, last + 1):
            with meter.waiting_for_data():
                batch = next(batches)
            state, scalars = step_fn(state, shard(batch))
            meter.add(step, scalars, images=int(batch["sample_valid"].sum()))
            self.on_step(step)
            stopping = bool(self.stop)
            evaluating = step % config.evaluate_every_steps == 0 or step == last
            saving = step % config.checkpoint_every_steps == 0 or step == last
            if stopping or evaluating or saving or step % config.log_every_steps == 0:
                # Before a checkpoint, so that none holds what is not finite.
                progress.update(task, completed=step, status=meter.flush())
            mean_iou = None
            if evaluating and not stopping:
                try:
                    mean_iou = self._evaluate(state, step, writer, progress)
                except _EvaluationStopped:
                    stopping = True
                meter.restart_clock()
            if stopping or saving:
                checkpoints.save(
                    first_replica(state),
                    mean_iou=mean_iou,
                    meta={
                        "data_position": step,
                        "seconds": self._seconds,
                        "fingerprint": setup.dataset.fingerprint,
                        "class_names": list(setup.dataset.class_names),
                        "ignore_label": setup.dataset.ignore_label,
                    },
                )
            if stopping:
                raise self._stopped(step)
        return first_replica(state)

    def _batches(self, first: int, last: int) -> Iterator[Batch]:
        config, dataset = self.setup.config, self.setup.dataset
        return iterate_batches(
            dataset.source("train"),
            self.setup.sampler,
            start=first,
            stop=last,
            num_devices=jax.device_count(),
            canvas_hw=dataset.max_hw,
            ignore_label=dataset.ignore_label,
            num_threads=config.data.num_threads,
            prefetch_batches=config.data.prefetch_batches,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def _evaluate(self, state: TrainState, step: int, writer, progress) -> float:
        """Scores the replicated state on the split that is watched during training."""
        config = self.setup.config
        dataset, split = self.setup.dataset, config.evaluate.split
        task = progress.add_task(split, total=len(dataset.source(split)), status="")

        def on_batch(images: int) -> None:
            if self.stop:
                raise _EvaluationStopped
            progress.advance(task, images)

        evaluation = evaluate(
            self._evaluation_step,
            state.variables,
            dataset,
            split,
            batch_size=config.evaluate.batch_size,
            num_threads=config.data.num_threads,
            on_batch=on_batch,
        )
        progress.remove_task(task)
        summary = metrics.summary(evaluation.confusion)
        writer.write(step, {f"{split}_{k}": v for k, v in summary.items()})
        writer.flush()
        self.console.print(
            f"step {step}: {split} mean IoU {summary['mean_iou']:.4f}, "
            f"pixel accuracy {summary['pixel_accuracy']:.4f}"
        )
        return summary["mean_iou"]

    def _finish(self, state: TrainState) -> dict[str, Any]:
        dataset = self.setup.dataset
        trained = TrainedModel(
            model=self.setup.model,
            variables=state.variables,
            class_names=dataset.class_names,
            ignore_label=dataset.ignore_label,
            fingerprint=dataset.fingerprint,
            step=int(state.step),
            seconds=self._seconds,
        )
        return final_evaluation(
            self.setup.config, dataset, trained, self.workdir, self.console
        )

    def _introduce(self, state: TrainState) -> None:
        setup, dataset = self.setup, self.setup.dataset
        parameters = sum(x.size for x in jax.tree.leaves(state.params))
        step = int(state.step)
        self.console.print(
            f"{dataset.name}: {len(dataset.source('train'))} training images of "
            f"{dataset.num_classes} classes; {type(setup.model).__name__} with "
            f"{parameters / 1e6:.2f} M parameters on {jax.device_count()} "
            f"{jax.devices()[0].platform} device(s); "
            + (f"goes on from step {step} of " if step else "trains for ")
            + f"{setup.config.total_steps} steps in {self.workdir}",
            soft_wrap=True,
        )

    def _stopped(self, step: int) -> Stopped:
        self.console.print(
            f"{self.stop.number.name}: saved at step {step} of "
            f"{self.setup.config.total_steps}; the same command goes on from there."
        )
        return Stopped(128 + self.stop.number)
