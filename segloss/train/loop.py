"""The training loop: takes steps, evaluates, saves checkpoints, handles signals."""

import collections
import contextlib
import signal
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import Progress

from segloss import hosts
from segloss.config import as_run_folder, write_config
from segloss.console import make_console, make_progress
from segloss.data import Batch, iterate_batches
from segloss.devices import (
    first_replica,
    map_over_devices,
    prefetch_to_devices,
    replicate,
)
from segloss.errors import describe_size
from segloss.provenance import current_commit
from segloss.remote import opened, upload
from segloss.train.introduction import introduce
from segloss.train.log import MetricWriter, StepMeter
from segloss.train.memory import training_memory_named
from segloss.train.patience import Patience
from segloss.train.profiling import Profiler, ProfileSteps
from segloss.train.resources import CompiledOnce
from segloss.train.setup import Setup, make_setup
from segloss.train.signals import StopRequest, stop_on_signals
from segloss.train.start import Start, find_start
from segloss.train.step import TrainState, train_step
from segloss.train.watch import Watch
from segloss.train.workdir import claimed
from segloss.trained.checkpoints import Checkpoints
from segloss.trained.model import load_checkpoint
from segloss.trained.results import final_evaluation
from segloss.trained.same_dataset import summarise_dataset
from segloss.writing import on_disk


class Stopped(SystemExit):
    """A signal stopped the run; the exit code is 128 plus the number of the signal."""


# A run of several processes stops this number of steps after a signal reached one of
# them. All devices know of it by then, and do not wait for the host meanwhile.
_STOP_LAG = 2


def train(
    config: ConfigDict,
    workdir: str | Path,
    *,
    resume_with_changes: bool = False,
    on_step: Callable[[int], None] = lambda step: None,
    profile_steps: str | None = None,
) -> dict[str, Any]:
    """Trains a model, or resumes from the newest checkpoint, and evaluates the result.

    Several processes under `jax.distributed` train one model together (see
    `segloss.hosts.start`); all call this function with the same arguments.

    Args:
        config: the config of the run, such as those in `configs/`; every field is
            checked before anything is written.
        workdir: directory for `config.json`, checkpoints, metrics, results and figures;
            a path, or a URL such as `gs://bucket/run`.
        resume_with_changes: True resumes a run although its config has changed, unless
            its seed, sampler, crop windows or model has.
        on_step: called with the number of each step, from 1, after it was dispatched to
            the devices, which may still compute it.
        profile_steps: "FIRST:LAST", such as "10:15", writes a trace of these steps to
            `tensorboard/plugins/profile/`.

    Returns:
        The contents of `results.json`.

    Raises:
        ValueError: if the config is invalid, or differs from that of the run in
            `workdir`, or another process trains there.
        NonFiniteError: if the loss or another logged value is NaN or infinite.
        Stopped: after SIGINT or SIGTERM, once the state is saved. If one of several
            processes gets the signal, all save the same step and raise this.
    """
    folder = as_run_folder(workdir)
    with hosts.watched(agreed=(Stopped,)):
        setup = make_setup(config)
        profile = None
        if profile_steps is not None:
            profile = ProfileSteps.parse(profile_steps, setup.config.total_steps)
        with (
            opened(folder, exclusive=True) as local,
            claimed(local),
            training_memory_named(setup),
        ):
            return _train(setup, config, local, resume_with_changes, on_step, profile)


def _train(
    setup: Setup,
    config: ConfigDict,
    workdir: Path,
    with_changes: bool,
    on_step: Callable[[int], None],
    profile: ProfileSteps | None,
) -> dict[str, Any]:
    console = make_console(quiet=not hosts.is_first())
    # Nothing may be written if the pretrained weights do not fit the model.
    start = find_start(setup, config, workdir, console, with_changes=with_changes)
    run = _Run(setup, workdir, console, start, on_step)
    size = sum(x.nbytes for x in jax.tree.leaves(start.state))
    wanted = f"each of up to three checkpoints needs about {describe_size(size)}"
    with on_disk(workdir, wanted), stop_on_signals(run.stop):
        with contextlib.closing(Checkpoints(workdir / "checkpoints")) as checkpoints:
            checkpoints.set_aside_after(int(start.state.step))
            if hosts.is_first():
                write_config(config, workdir)
                introduce(setup, start, workdir, console)
            first_step = int(start.state.step)
            run.profiler = Profiler(profile, workdir, console, start_step=first_step)
            with (
                contextlib.closing(run.profiler),
                MetricWriter(workdir, start_step=first_step) as writer,
                make_progress(console) as progress,
                contextlib.closing(_iterate_batches(setup, first_step)) as batches,
                # Tells the others of an error before the above waits for them.
                hosts.watched(agreed=(Stopped,)),
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
        self.profiler: Profiler | None = None
        self.stop = StopRequest()
        self.watch = Watch(setup, console, self._check_stop)
        self.patience = Patience(setup.config.evaluate.patience)
        self.images_seen = 0  # by this process, since the start
        self.stop_signals: collections.deque[jax.Array] = collections.deque()
        self.last_step = int(start.state.step)
        self.commit = current_commit()
        self.dataset_summary = summarise_dataset(setup.dataset)
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
        mapped_step = CompiledOnce(mapped_step, "the train step")
        task = progress.add_task("train", total=last, completed=first)
        evaluate = config.evaluate_every_steps
        # A resumed run counts on from the scores of all evaluations before.
        before = hosts.of_first(lambda: writer.values(self.watch.score_name))
        for evaluated, score in before:
            self.patience.add(evaluated, score)
        was_due = first and self._is_due(first, evaluate)
        if was_due and not hosts.of_first(lambda: self.watch.has_scores(writer, first)):
            # The run stopped after this step, before its evaluation was finished.
            self._evaluate_and_save(state, first, checkpoints, writer, progress)
        meter = StepMeter(writer, self.setup)
        on_devices = prefetch_to_devices(batches)
        for step in range(first + 1, last + 1):
            if self.patience.is_exhausted:
                self._say_stopped_early(step - 1)
                return
            with meter.waiting_for_data():
                batch = next(on_devices)
            evaluating = self._is_due(step, evaluate)
            shares = self.watch.attention(state, batch) if evaluating else {}
            self.profiler.before(step, state)
            state, scalars = mapped_step(state, self._with_stop_signal(batch))
            self.profiler.after(step, scalars)
            stopping = self._take_stop_signal(scalars)
            self._count(step, batch, scalars | shares, meter)
            self.on_step(step)
            self.last_step = step
            if hosts.process_count() == 1:
                stopping = self.stop.number
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
                raise self._stopped(step, stopping)
            if saving:
                upload(self.workdir, after=checkpoints.wait)

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
        except hosts.Interrupted as stop:
            raise self._stopped(self.last_step, stop.reason) from None

    def _is_due(self, step: int, every_steps: int) -> bool:
        return step % every_steps == 0 or step == self.setup.config.total_steps

    def _with_stop_signal(self, batch: Batch) -> Batch:
        """Adds the signal that this process got, if others must learn of it."""
        if hosts.process_count() == 1:
            return batch
        number = np.full(jax.local_device_count(), self.stop.number or 0, np.int32)
        return batch | {"stop_signal": number}

    def _take_stop_signal(self, scalars: dict[str, jax.Array]) -> int | None:
        """Removes the signal of a step; returns the one of some steps before, or None.

        All processes see the same signal after the same step.
        """
        if "stop_signal" in scalars:
            self.stop_signals.append(scalars.pop("stop_signal"))
        if len(self.stop_signals) <= _STOP_LAG:
            return None
        return int(first_replica(self.stop_signals.popleft()).item()) or None

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
        except hosts.Interrupted as stop:
            self._save(state, checkpoints)
            raise self._stopped(step, stop.reason) from None
        # Write the scores after the checkpoint. If the run is killed in between, it
        # evaluates this step again.
        self._save(state, checkpoints, mean_iou=summary["mean_iou"])
        self.watch.write(writer, step, summary)
        self.patience.add(step, summary["mean_iou"])
        if stopping := max(hosts.exchange(self.stop.number or 0)):
            raise self._stopped(step, stopping)

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
        images_seen = self.start.images_seen
        if images_seen is not None:
            images_seen += sum(hosts.exchange(self.images_seen))
        return {
            "commit": self.commit,
            "seconds": self.start.seconds + time.monotonic() - self.began,
            "images_seen": images_seen,
            "fingerprint": dataset.fingerprint,
            "class_names": list(dataset.class_names),
            "ignore_label": dataset.ignore_label,
            "bands": dataset.bands.to_json(),
            "dataset": self.dataset_summary,
            "pretrained": self.start.pretrained,
            "changes": self.start.changes,
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
            raise hosts.Interrupted(self.stop.number)

    def _stopped(self, step: int, number: int) -> Stopped:
        self.console.print(
            f"{signal.Signals(number).name}: saved at step {step} of "
            f"{self.setup.config.total_steps}; run the same command to resume."
        )
        return Stopped(128 + number)


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
