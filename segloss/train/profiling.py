"""Profiles a few steps of a run; TensorBoard and xprof show the trace."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from segloss import hosts
from segloss.errors import SeglossError
from segloss.remote import shown


@dataclasses.dataclass(frozen=True)
class ProfileSteps:
    """The steps to profile, from 1; `first` and `last` belong to them."""

    first: int
    last: int

    @classmethod
    def parse(cls, text: str, total_steps: int) -> "ProfileSteps":
        """Parses "FIRST:LAST", such as "10:15".

        Raises:
            SeglossError: unless `1 <= FIRST <= LAST <= total_steps`.
        """
        found = re.fullmatch(r"(\d+):(\d+)", text)
        steps = cls(int(found[1]), int(found[2])) if found else cls(0, 0)
        if not 1 <= steps.first <= steps.last <= total_steps:
            raise SeglossError(
                f"--profile_steps={text}: must be FIRST:LAST such as 10:15, with "
                f"1 <= FIRST <= LAST <= {total_steps} = config.total_steps."
            )
        return steps


class Profiler:
    """Writes a trace of some steps to `WORKDIR/tensorboard/plugins/profile/TIME/`.

    Of several processes, the first writes that of its own devices. A resumed run
    profiles those of the steps that are left.

    Args:
        steps: the steps to profile; None profiles none.
        workdir: the run's directory.
        console: where a line tells the place of the trace.
        start_step: number of steps taken before the run starts or resumes.
    """

    def __init__(
        self,
        steps: ProfileSteps | None,
        workdir: Path,
        console: Console,
        *,
        start_step: int,
    ):
        self._steps = steps if hosts.is_first() else None
        self._directory = workdir / "tensorboard"
        self._console = console
        self._annotation: jax.profiler.StepTraceAnnotation | None = None
        self._running = False
        if steps is not None and steps.last <= start_step:
            console.print(
                f"--profile_steps={steps.first}:{steps.last}: profiles nothing, since "
                f"the run resumes after step {start_step}",
                soft_wrap=True,
            )

    def before(self, step: int, state: Any) -> None:
        """Called before a step with the state on the devices."""
        if self._steps is None or not self._steps.first <= step <= self._steps.last:
            return
        if not self._running:
            # Steps before must not end in the trace.
            jax.block_until_ready(state)
            # Otherwise JAX would only find at the end that it cannot write here.
            (self._directory / "plugins/profile").mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(str(self._directory))
            self._running = True
        self._annotation = jax.profiler.StepTraceAnnotation("train", step_num=step)
        self._annotation.__enter__()

    def after(self, step: int, scalars: Any) -> None:
        """Called after a step was dispatched, with its results on the devices."""
        if self._annotation is None:
            return
        self._annotation.__exit__(None, None, None)
        self._annotation = None
        if step == self._steps.last:
            jax.block_until_ready(scalars)
            self.close()

    def close(self) -> None:
        """Ends the trace if the run stops in the middle of it; prints where it is."""
        if not self._running:
            return
        self._running = False
        jax.profiler.stop_trace()
        self._console.print(
            f"profile: {shown(self._directory)}/plugins/profile; to see it, pip "
            f"install xprof and run: xprof --logdir={shown(self._directory)}",
            soft_wrap=True,
        )
