"""The training loop: steps, evaluations, checkpoints, and what is left of a run."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import Progress

from segloss import metrics
from segloss.data import (
    BalanceBatch,
    Batch,
    describe_unused_rows,
    estimate_acceptance,
    iterate_batches,
)
from segloss.models.pretrained import (
    Weights,
    load_weights,
    put_into,
    sha256_of,
    warn_of_another_resnet,
)
from segloss.train.checkpoints import Checkpoints, Restored
from segloss.train.evaluation import current_commit, evaluate
from segloss.train.log import MetricWriter, StepMeter, make_console, make_progress
from segloss.train.setup import (
    Setup,
    count_outputs,
    make_inference,
    make_setup,
    pretrained_file,
)
from segloss.train.signals import StopRequest, stop_on_signals
from segloss.train.step import (
    TrainState,
    first_replica,
    make_state,
    pmap_attention_step,
    pmap_evaluation_step,
    pmap_train_step,
    prefetch_to_devices,
    replicate,
)
from segloss.train.stored_config import (
    check_same_config,
    check_same_weights,
    write_config,
)
from segloss.train.trained import final_evaluation, load_trained


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
    return _Run(make_setup(config), workdir, make_console(), on_step).train()


@dataclasses.dataclass
class _Run:
    setup: Setup
    workdir: Path
    console: Console
    on_step: Callable[[int], None]
    stop: StopRequest = dataclasses.field(default_factory=StopRequest)
    commit: str | None = dataclasses.field(default_factory=current_commit)
    started: float = dataclasses.field(default_factory=time.monotonic)
    seconds_before: float = 0.0
    # None for a run that began before they were counted.
    images_seen: int | None = 0
    # The file of weights that the run began with, and its SHA-256.
    pretrained: dict[str, str] | None = None

    def train(self) -> dict[str, Any]:
        # Before anything is written: weights of a file may not fit.
        state = self._first_state()
        with stop_on_signals(self.stop):
            with contextlib.closing(Checkpoints(self._checkpoints_at)) as checkpoints:
                write_config(self.setup.config, self.workdir)
                self._introduce(state)
                with (
                    MetricWriter(self.workdir, start_step=int(state.step)) as writer,
                    make_progress(self.console) as progress,
                    contextlib.closing(self._batches(int(state.step))) as batches,
                ):
                    self._steps(state, batches, checkpoints, writer, progress)
            return self._final_evaluation()

    def _final_evaluation(self) -> dict[str, Any]:
        config = self.setup.config
        inference = make_inference(config)
        as_before = inference == inference.in_one_look
        try:
            return final_evaluation(
                config,
                self.setup.dataset,
                config.evaluate.final_split,
                load_trained(config, self.workdir),
                self.workdir,
                self.console,
                evaluation_step=self._evaluation_step if as_before else None,
                on_progress=self._check_stop,
            )
        except _EvaluationStopped:
            raise self._stopped(config.total_steps) from None

    @property
    def _checkpoints_at(self) -> Path:
        return self.workdir / "checkpoints"

    def _first_state(self) -> TrainState:
        """That of the newest checkpoint, or a fresh one, with weights of a file."""
        if self._checkpoints_at.is_dir():
            with contextlib.closing(
                Checkpoints(self._checkpoints_at, read_only=True)
            ) as checkpoints:
                if checkpoints.newest_step is not None:
                    like = jax.eval_shape(self._fresh_state)
                    check_same_config(self.setup.config, self.workdir)
                    return self._go_on_from(checkpoints.restore(like))
        path = pretrained_file(self.setup.config)
        # Read first, because making a state may take a while.
        weights = load_weights(path) if path else None
        state = self._fresh_state()
        return self._begin_with(weights, state) if weights else state

    def _fresh_state(self) -> TrainState:
        config = self.setup.config
        return make_state(
            self.setup.model,
            self.setup.optimizer,
            seed=config.seed,
            image_hw=tuple(config.data.crop_hw),
        )

    def _go_on_from(self, restored: Restored) -> TrainState:
        if restored.meta["fingerprint"] != self.setup.dataset.fingerprint:
            raise ValueError(
                f"{self.workdir}: the dataset changed since checkpoint "
                f"{restored.step}; choose another --workdir."
            )
        self.seconds_before = restored.meta["seconds"]
        self.images_seen = restored.meta.get("images_seen")
        self.pretrained = restored.meta.get("pretrained")
        check_same_weights(self.setup.config, self.pretrained)
        return restored.state

    def _begin_with(self, weights: Weights, state: TrainState) -> TrainState:
        setup, source = self.setup, weights.source
        variables = put_into(
            state.variables,
            weights,
            num_classes=count_outputs(setup.config, setup.dataset.num_classes),
        )
        warn_of_another_resnet(setup.model, weights)
        self.pretrained = {"file": source, "sha256": sha256_of(source)}
        self.console.print(
            f"begins with the weights of {source}: {weights.layout}, "
            f"{len(weights.arrays)} arrays, {weights.num_parameters / 1e6:.2f} M "
            f"parameters, SHA-256 {self.pretrained['sha256'][:16]}",
            soft_wrap=True,
        )
        return state.replace(
            **variables, opt_state=setup.optimizer.init(variables["params"])
        )

    @functools.cached_property
    def _evaluation_step(self) -> Callable:
        return pmap_evaluation_step(
            model=self.setup.model,
            inference=make_inference(self.setup.config).in_one_look,
            num_classes=self.setup.dataset.num_classes,
        )

    @functools.cached_property
    def _attention_step(self) -> Callable:
        return pmap_attention_step(
            model=self.setup.model,
            loss=self.setup.loss,
            augment=self.setup.augment,
            class_names=self.setup.dataset.class_names,
        )

    @property
    def _seconds(self) -> float:
        """Seconds of training, those before a restart included."""
        return self.seconds_before + time.monotonic() - self.started

    def _steps(
        self,
        state: TrainState,
        batches: Iterator[Batch],
        checkpoints: Checkpoints,
        writer: MetricWriter,
        progress: Progress,
    ) -> None:
        config, setup = self.setup.config, self.setup
        first, last = int(state.step), config.total_steps
        state = replicate(state)
        step_fn = pmap_train_step(
            model=setup.model,
            loss=setup.loss,
            optimizer=setup.optimizer,
            augment=setup.augment,
        )
        task = progress.add_task("train", total=last, completed=first, status="")
        batches = prefetch_to_devices(batches)
        if (
            first
            and self._is_due(first, config.evaluate_every_steps)
            and not writer.has(first, f"{config.evaluate.split}_mean_iou")
        ):
            # A stop came between that step and the end of its evaluation.
            self._evaluate_and_save(state, first, checkpoints, writer, progress)
        meter = StepMeter(writer, setup.schedule)
        for step in range(first + 1, last + 1):
            with meter.waiting_for_data():
                batch = next(batches)
            evaluating = self._is_due(step, config.evaluate_every_steps)
            shares = {}
            if evaluating:
                # Awaited, because two programs with collectives at once can deadlock
                # on CPU devices.
                shares = jax.block_until_ready(self._attention_step(state, batch))
            state, scalars = step_fn(state, batch)
            images = int(np.asarray(batch["sample_valid"]).sum())
            if self.images_seen is not None:
                self.images_seen += images
            meter.add(
                step,
                scalars | shares,
                images=images,
                skipped=int(np.asarray(batch["sample_skipped"]).sum())
                if "sample_skipped" in batch
                else None,
            )
            self.on_step(step)
            stopping = bool(self.stop)
            saving = evaluating or self._is_due(step, config.checkpoint_every_steps)
            if stopping or saving or step % config.log_every_steps == 0:
                # Before a checkpoint, so that none holds what is not finite.
                progress.update(task, completed=step, status=meter.flush())
            if evaluating and not stopping:
                self._evaluate_and_save(state, step, checkpoints, writer, progress)
                meter.restart_clock()
            elif saving or stopping:
                self._save(state, checkpoints)
            if stopping:
                raise self._stopped(step)

    def _save(
        self,
        state: TrainState,
        checkpoints: Checkpoints,
        *,
        mean_iou: float | None = None,
    ) -> None:
        checkpoints.save(first_replica(state), mean_iou=mean_iou, meta=self._meta())

    def _meta(self) -> dict[str, Any]:
        dataset = self.setup.dataset
        return {
            "commit": self.commit,
            "seconds": self._seconds,
            "images_seen": self.images_seen,
            "fingerprint": dataset.fingerprint,
            "class_names": list(dataset.class_names),
            "ignore_label": dataset.ignore_label,
            "pretrained": self.pretrained,
        }

    def _is_due(self, step: int, every_steps: int) -> bool:
        return step % every_steps == 0 or step == self.setup.config.total_steps

    def _batches(self, first: int) -> Generator[Batch, None, None]:
        config, dataset = self.setup.config, self.setup.dataset
        distances = "distances" in self.setup.loss_inputs
        return iterate_batches(
            dataset.source("train"),
            self.setup.sampler,
            start=first,
            stop=config.total_steps,
            num_devices=jax.device_count(),
            canvas_hw=dataset.max_hw,
            ignore_label=dataset.ignore_label,
            num_classes=dataset.num_classes,
            distance_classes=dataset.num_classes if distances else None,
            num_threads=config.data.num_threads,
            num_workers=config.data.num_workers,
            prefetch_batches=config.data.prefetch_batches,
            on_bad_sample=config.data.on_bad_sample,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def _evaluate_and_save(
        self,
        state: TrainState,
        step: int,
        checkpoints: Checkpoints,
        writer: MetricWriter,
        progress: Progress,
    ) -> None:
        """Scores the split that is watched; the state may be the best so far.

        Raises:
            Stopped: if the run was asked to stop meanwhile.
        """
        try:
            summary = self._evaluate(state, progress)
        except _EvaluationStopped:
            self._save(state, checkpoints)
            raise self._stopped(step) from None
        # Written after the checkpoint has the score: a run that is killed in between
        # evaluates this step again.
        self._save(state, checkpoints, mean_iou=summary["mean_iou"])
        split = self.setup.config.evaluate.split
        writer.write(step, {f"{split}_{k}": v for k, v in summary.items()})
        writer.flush()
        self.console.print(
            f"step {step}: {split} mean IoU {summary['mean_iou']:.4f}, "
            f"pixel accuracy {summary['pixel_accuracy']:.4f}"
        )
        if self.stop:
            raise self._stopped(step)

    def _check_stop(self) -> None:
        if self.stop:
            raise _EvaluationStopped

    def _evaluate(self, state: TrainState, progress: Progress) -> dict[str, float]:
        config = self.setup.config
        dataset, split = self.setup.dataset, config.evaluate.split
        task = progress.add_task(split, total=len(dataset.source(split)), status="")

        def on_batch(images: int) -> None:
            self._check_stop()
            progress.advance(task, images)

        try:
            evaluation = evaluate(
                self._evaluation_step,
                state.variables,
                dataset,
                split,
                batch_size=config.evaluate.batch_size,
                size_multiple=config.evaluate.size_multiple,
                num_threads=config.data.num_threads,
                on_batch=on_batch,
            )
        finally:
            progress.remove_task(task)
        return metrics.summary(evaluation.confusion)

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
        if step and self.pretrained:
            self.console.print(
                f"it began with the weights of {self.pretrained['file']}, SHA-256 "
                f"{self.pretrained['sha256'][:16]}, which are not read again",
                soft_wrap=True,
            )
        sampler = setup.sampler
        if line := describe_unused_rows(sampler.batch_max, jax.device_count()):
            self.console.print(line, soft_wrap=True)
        if isinstance(sampler, BalanceBatch) and not sampler.exact:
            acceptance = estimate_acceptance(
                sampler.class_sets,
                batch_cl=sampler.batch_cl,
                batch_max=sampler.batch_max,
            )
            self.console.print(str(acceptance), soft_wrap=True)

    def _stopped(self, step: int) -> Stopped:
        self.console.print(
            f"{self.stop.number.name}: saved at step {step} of "
            f"{self.setup.config.total_steps}; the same command goes on from there."
        )
        return Stopped(128 + self.stop.number)
