"""The training loop: takes steps, evaluates, saves checkpoints, handles signals."""

import contextlib
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import Progress

from segloss.config import write_config
from segloss.console import make_console, make_progress
from segloss.data import Batch, iterate_batches
from segloss.devices import (
    first_replica,
    map_over_devices,
    prefetch_to_devices,
    replicate,
)
from segloss.provenance import current_commit
from segloss.train.introduction import introduce
from segloss.train.log import MetricWriter, StepMeter
from segloss.train.patience import Patience
from segloss.train.setup import Setup, make_setup
from segloss.train.signals import StopRequest, stop_on_signals
from segloss.train.start import Start, find_start
from segloss.train.step import TrainState, train_step
from segloss.train.watch import Watch
from segloss.train.workdir import claimed
from segloss.trained.checkpoints import Checkpoints
from segloss.trained.model import load_checkpoint
from segloss.trained.results import final_evaluation


class Stopped(SystemExit):
    """A signal stopped the run; the exit code is 128 plus the number of the signal."""


class _EvaluationStopped(Exception):  # noqa: N818, not an error
    """Raised within an evaluation to end it, once a signal asked the run to stop."""


def train(
    config: ConfigDict,
    workdir: str | Path,
    *,
    on_step: Callable[[int], None] = lambda step: None,
) -> dict[str, Any]:
    """Trains a model, or resumes from the newest checkpoint, and evaluates the result.

    Args:
        config: the config of the run, such as those in `configs/`; every field is
            checked before anything is written.
        workdir: directory for `config.json`, checkpoints, metrics, results and figures.
        on_step: called with the number of each step, from 1, after it was dispatched to
            the devices, which may still compute it.

    Returns:
        The contents of `results.json`.

    Raises:
        ValueError: if the config is invalid, or differs from that of the run in
            `workdir`, or another process trains there.
        NonFiniteError: if the loss or another logged value is NaN or infinite.
        Stopped: after SIGINT or SIGTERM, once the state is saved.
    """
    setup, workdir = make_setup(config), Path(workdir)
    with claimed(workdir):
        return _train(setup, config, workdir, on_step)


def _train(
    setup: Setup, config: ConfigDict, workdir: Path, on_step: Callable[[int], None]
) -> dict[str, Any]:
    console = make_console()
    # Nothing may be written if the pretrained weights do not fit the model.
    start = find_start(setup, config, workdir, console)
    run = _Run(setup, workdir, console, start, on_step)
    with stop_on_signals(run.stop):
        with contextlib.closing(Checkpoints(workdir / "checkpoints")) as checkpoints:
            checkpoints.set_aside_after(int(start.state.step))
            write_config(config, workdir)
            introduce(setup, start, workdir, console)
            first_step = int(start.state.step)
            with (
                MetricWriter(workdir, start_step=first_step) as writer,
                make_progress(console) as progress,
                contextlib.closing(_iterate_batches(setup, first_step)) as batches,
            ):
                run.take_steps(batches, checkpoints, writer, progress)
        return run.evaluate_at_the_end()


class _Run:
    """Takes the steps of a run and evaluates it at the end."""

    def __init__(
        self,
        setup: Setup,
        workdir: Path,
        console: Console,
        start: Start,
        on_step: Callable[[int], None],
    ):
        self.setup = setup
        self.workdir = workdir
        self.console = console
        self.start = start
        self.on_step = on_step
        self.stop = StopRequest()
        self.watch = Watch(setup, console, self._check_stop)
        self.patience = Patience(setup.config.evaluate.patience)
        self.images_seen = start.images_seen
        self.last_step = int(start.state.step)
        self.commit = current_commit()
        self.began = time.monotonic()

    def take_steps(
        self,
        batches: Generator[Batch, None, None],
        checkpoints: Checkpoints,
        writer: MetricWriter,
        progress: Progress,
    ) -> None:
        """Takes the steps up to `config.total_steps`, or until patience is exhausted.

        Logs, evaluates and saves at the steps that the config sets. Raises `Stopped`
        after a signal, once the state is saved.
        """
        config, state = self.setup.config, self.start.state
        first, last = int(state.step), config.total_steps
        state = replicate(state)
        mapped_step = map_over_devices(
            train_step,
            mapping=config.mapping,
            donate_first=True,
            model=self.setup.model,
            loss=self.setup.loss,
            optimizer=self.setup.optimizer,
            augment=self.setup.augment,
            num_classes=self.setup.dataset.num_classes,
            bands=self.setup.dataset.bands,
        )
        task = progress.add_task("train", total=last, completed=first)
        evaluate = config.evaluate_every_steps
        # A resumed run counts on from the scores of all evaluations before.
        for evaluated, score in writer.values(self.watch.score_name):
            self.patience.add(evaluated, score)
        was_due = first and self._is_due(first, evaluate)
        if was_due and not self.watch.has_scores(writer, first):
            # The run stopped after this step, before its evaluation was finished.
            self._evaluate_and_save(state, first, checkpoints, writer, progress)
        meter = StepMeter(writer, self.setup.schedule)
        on_devices = prefetch_to_devices(batches)
        for step in range(first + 1, last + 1):
            if self.patience.is_exhausted:
                self._say_stopped_early(step - 1)
                return
            with meter.waiting_for_data():
                batch = next(on_devices)
            evaluating = self._is_due(step, evaluate)
            shares = self.watch.attention(state, batch) if evaluating else {}
            state, scalars = mapped_step(state, batch)
            self._count(step, batch, scalars | shares, meter)
            self.on_step(step)
            self.last_step = step
            stopping = bool(self.stop)
            saving = evaluating or self._is_due(step, config.checkpoint_every_steps)
            if stopping or saving or step % config.log_every_steps == 0:
                # Flush before saving: it raises on NaN, so checkpoints are finite.
                progress.update(task, completed=step, status=meter.flush())
            if evaluating and not stopping:
                self._evaluate_and_save(state, step, checkpoints, writer, progress)
                meter.restart_clock()
            elif saving or stopping:
                self._save(state, checkpoints)
            if stopping:
                raise self._stopped(step)

    def evaluate_at_the_end(self) -> dict[str, Any]:
        """Evaluates the checkpoint that `config.evaluate.checkpoint` selects.

        Writes the files of `final_evaluation` and returns the contents of
        `results.json`.
        """
        config = self.setup.config
        inference = config.evaluate.inference
        in_one_look = inference == inference.in_one_look
        try:
            return final_evaluation(
                config,
                self.setup.dataset,
                config.evaluate.final_split,
                load_checkpoint(config, self.workdir),
                self.workdir,
                self.console,
                mapped_step=self.watch.evaluation_step if in_one_look else None,
                on_progress=self._check_stop,
            )
        except _EvaluationStopped:
            raise self._stopped(self.last_step) from None

    def _is_due(self, step: int, every_steps: int) -> bool:
        return step % every_steps == 0 or step == self.setup.config.total_steps

    def _count(
        self,
        step: int,
        batch: Batch,
        scalars: dict[str, jax.Array],
        meter: StepMeter,
    ) -> None:
        images = int(np.asarray(batch["sample_valid"]).sum())
        skipped = batch.get("sample_skipped")
        if skipped is not None:
            skipped = int(np.asarray(skipped).sum())
        if self.images_seen is not None:
            self.images_seen += images
        meter.add(step, scalars, images=images, skipped=skipped)

    def _evaluate_and_save(
        self,
        state: TrainState,
        step: int,
        checkpoints: Checkpoints,
        writer: MetricWriter,
        progress: Progress,
    ) -> None:
        """Evaluates a state, saves it with its mean IoU, and writes its scores.

        Raises:
            Stopped: if a signal came in the meantime; the state is saved all the same.
        """
        try:
            summary = self.watch.scores(state, progress)
        except _EvaluationStopped:
            self._save(state, checkpoints)
            raise self._stopped(step) from None
        # Write the scores after the checkpoint. If the run is killed in between, it
        # evaluates this step again.
        self._save(state, checkpoints, mean_iou=summary["mean_iou"])
        self.watch.write(writer, step, summary)
        self.patience.add(step, summary["mean_iou"])
        if self.stop:
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
            "seconds": self.start.seconds + time.monotonic() - self.began,
            "images_seen": self.images_seen,
            "fingerprint": dataset.fingerprint,
            "class_names": list(dataset.class_names),
            "ignore_label": dataset.ignore_label,
            "bands": dataset.bands.to_json(),
            "pretrained": self.start.pretrained,
        }

    def _say_stopped_early(self, step: int) -> None:
        config = self.setup.config
        self.console.print(
            f"stops early at step {step} of {config.total_steps}: "
            f"{self.patience.describe(self.watch.score_name)}; evaluates the "
            f"{config.evaluate.checkpoint} checkpoint",
            soft_wrap=True,
        )

    def _check_stop(self) -> None:
        if self.stop:
            raise _EvaluationStopped

    def _stopped(self, step: int) -> Stopped:
        self.console.print(
            f"{self.stop.number.name}: saved at step {step} of "
            f"{self.setup.config.total_steps}; run the same command to resume."
        )
        return Stopped(128 + self.stop.number)


def _iterate_batches(setup: Setup, first: int) -> Generator[Batch, None, None]:
    return iterate_batches(
        setup.dataset.source("train"),
        setup.sampler,
        setup.loading,
        start=first,
        stop=setup.config.total_steps,
        num_devices=jax.device_count(),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
