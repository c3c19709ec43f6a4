"""Kills runs of run.py with SIGKILL, restarts them, and compares what they leave.

python tests/chaos/killing.py --kills=50                 # one process, some minutes
python tests/chaos/killing.py --kills=50 --processes=2   # kills one of two

A run is killed a few times, at named moments and at random ones, and then left alone.
It survives if its newest checkpoint, results.json, confusions.npz and metrics.jsonl
equal those of a run that was never killed, bit for bit, and if its folders hold the
same files. Times and speeds are not compared. The commit is: do not edit the code
meanwhile.
"""

import argparse
import collections
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
_MOMENTS_PER_RUN = 3
_TIMES_PER_RUN = 2
_SECONDS = 600
# Processes that lost another one end by themselves, but not at once.
_GRACE_SECONDS = 90
# Values of results.json and metrics.jsonl that depend on the machine's speed.
_MEASURED = re.compile(r"second|fraction|memory|bytes|compil|_gib$|devices|versions")
# Names that differ from run to run: events of TensorBoard, parts of checkpoints.
_ANY_NAME = re.compile(r"events\.out\.tfevents\.[^/]*|(?<=/)[0-9a-f]{32}$")

# Kind, pattern and count for `killed_run.py`.
MOMENTS = {
    "dataset: a shard is written": ("open", r"/shard-0\.json$", 1),
    "dataset: its folder gets its name": ("os.rename", r"/incomplete\.", 1),
    "class index: a part is written": ("open", r"/class_index-train\.parts/\.0", 1),
    "class index is written": ("open", r"/\.class_index-train\.npy\.", 1),
    "window index is replaced": ("os.rename", r"/\.window_index-train-", 1),
    "config.json is replaced": ("os.rename", r"/\.config\.json\.", 1),
    "metrics.jsonl is replaced": ("os.rename", r"/\.metrics\.jsonl\.", 1),
    "evaluation: a batch is counted": ("call", "segloss.metrics.mean_iou", 1),
    "save: begins": ("os.mkdir", r"/\d\.orbax-checkpoint-tmp$", 1),
    "save: an item is written": ("os.rename", r"/\d\.orbax-.*/\.digests\.json\.", 2),
    "save: the checkpoint gets its name": ("os.rename", r"/\d\.orbax-[^/]*$", 1),
    "evaluation: its scores are written": (
        "call",
        "segloss.train.watch:Watch.write",
        1,
    ),
    "final evaluation: a batch is counted": (
        *("call", "segloss.trained.confusions:ConfusionStore.add", 1),
    ),
    "confusions.npz is replaced": ("os.rename", r"/\.confusions\.npz\.", 1),
    "figure is replaced": ("os.rename", r"/\.examples\.png\.", 1),
    "results.json is replaced": ("os.rename", r"/\.results\.json\.", 1),
}


@dataclasses.dataclass(frozen=True)
class Left:
    """What a finished run leaves, without times and speeds."""

    weights: str
    results: dict[str, Any]
    confusions: np.ndarray
    metrics: list[dict[str, Any]]
    files: frozenset[str]

    def differences(self, other: "Left") -> list[str]:
        """Names what differs from `other`."""
        differing = [
            f"{name} in results.json"
            for name in sorted(self.results.keys() | other.results.keys())
            if self.results.get(name) != other.results.get(name)
        ]
        if self.weights != other.weights:
            differing.append("weights")
        if self.metrics != other.metrics:
            differing.append("metrics.jsonl")
        if not np.array_equal(self.confusions, other.confusions):
            differing.append("confusions.npz")
        return differing + sorted(self.files ^ other.files)


def read_left(folder: Path) -> Left:
    """Reads what a run in `folder/run` with its dataset in `folder/data` has left."""
    run = folder / "run"
    lines = (run / "metrics.jsonl").read_text().splitlines()
    with np.load(run / "confusions.npz") as arrays:
        confusions = arrays["per_image"]
    return Left(
        weights=_digest_of_newest(run / "checkpoints"),
        results=_unmeasured(json.loads((run / "results.json").read_text())),
        confusions=confusions,
        metrics=[_unmeasured(json.loads(line)) for line in lines],
        files=frozenset(
            _ANY_NAME.sub("*", path.relative_to(folder).as_posix())
            for path in folder.rglob("*")
        ),
    )


def _unmeasured(values: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in values.items() if not _MEASURED.search(k)}


def _digest_of_newest(directory: Path) -> str:
    from segloss.trained.checkpoints import Checkpoints

    with contextlib.closing(Checkpoints(directory, read_only=True)) as checkpoints:
        stored = checkpoints.read(items=("variables", "optimizer"))
    digest = hashlib.sha256(f"{stored.step}\n".encode())
    for path, array in sorted(stored.arrays.items()):
        digest.update(f"{path} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


class Runs:
    """Starts run.py on the demo at smoke size, in one process or several.

    Args:
        cache: folder where JAX keeps compiled programs.
        processes: number of processes of a run.
    """

    def __init__(self, cache: Path, *, processes: int = 1):
        self.processes = processes
        # Variables that are set already have precedence.
        self._environment = {
            "JAX_PLATFORMS": "cpu",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "NPROC": str(max(4, 2 * processes)),
            "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        }
        self._environment |= os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}

    def finish(self, folder: Path) -> float:
        """Runs until the end, and returns the seconds that took."""
        began = time.monotonic()
        with self._started(folder) as processes:
            codes = [process.wait(_SECONDS) for process in processes]
        if any(codes):
            raise RuntimeError(f"exit codes {codes}; see {folder / 'log'}")
        return time.monotonic() - began

    def kill_at(self, folder: Path, moment: str, *, victim: int = 0) -> bool:
        """Runs until process `victim` kills itself; False if it never came to that."""
        deadly = [*map(str, MOMENTS[moment])]
        with self._started(folder, deadly, victim) as processes:
            code = processes[victim].wait(_SECONDS)
            self._wait_for_others(processes)
        return code == -signal.SIGKILL

    def kill_after(self, folder: Path, seconds: float, *, victim: int = 0) -> bool:
        """Kills process `victim` after a time; False if it had ended by then."""
        with self._started(folder) as processes:
            try:
                processes[victim].wait(seconds)
            except subprocess.TimeoutExpired:
                processes[victim].kill()
            code = processes[victim].wait()
            self._wait_for_others(processes)
        return code == -signal.SIGKILL

    def _wait_for_others(self, processes: list[subprocess.Popen]) -> None:
        deadline = time.monotonic() + _GRACE_SECONDS
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0, deadline - time.monotonic()))

    @contextlib.contextmanager
    def _started(self, folder: Path, deadly: list[str] | None = None, victim: int = 0):
        folder.mkdir(parents=True, exist_ok=True)
        flags = [
            *("--config=configs/demo.py:smoke", f"--workdir={folder / 'run'}"),
            f"--config.data.data_dir={folder / 'data'}",
            "--config.evaluate.batch_size=4",
        ]
        port = _free_port()
        processes = []
        with (folder / "log").open("a") as log:
            for i in range(self.processes):
                program = ["run.py"]
                if deadly and i == victim:
                    program = ["tests/chaos/killed_run.py", *deadly]
                of_hosts = [
                    f"--coordinator_address=127.0.0.1:{port}",
                    f"--num_processes={self.processes}",
                    f"--process_id={i}",
                ]
                processes.append(
                    subprocess.Popen(
                        [sys.executable, *program, *flags]
                        + (of_hosts if self.processes > 1 else []),
                        cwd=ROOT,
                        env=self._environment,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )
        try:
            yield processes
        finally:
            for process in processes:
                process.kill()
                process.wait()
            (folder / "log").replace(folder.with_suffix(".log"))


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def describe_state(folder: Path) -> str:
    """Says in which phase a run was killed, from what it left."""
    run = folder / "run"
    steps = [x.name for x in (run / "checkpoints").glob("*")]
    if (run / "results.json").exists():
        return "random: after the results"
    if any("orbax-checkpoint-tmp" in name for name in steps):
        return "random: during a save"
    if "4" in steps:
        return "random: after the last step"
    if "2" in steps:
        return "random: after the first checkpoint"
    if (run / "config.json").exists():
        return "random: before the first checkpoint"
    return "random: before training"


@dataclasses.dataclass
class Tally:
    """How many kills there were in each phase, and how many of them were survived."""

    kills: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    survived: collections.Counter = dataclasses.field(
        default_factory=collections.Counter
    )

    def table(self) -> str:
        """Returns a Markdown table with a row per phase, and the sums."""
        rows = [(x, self.kills[x], self.survived[x]) for x in sorted(self.kills)]
        total = "all", self.kills.total(), self.survived.total()
        lines = [f"| {x} | {kills} | {lived} |" for x, kills, lived in (*rows, total)]
        return "\n".join(
            ["| killed at | kills | survived |", "| --- | ---: | ---: |", *lines]
        )


def torment(runs: Runs, root: Path, *, kills: int, seed: int) -> Tally:
    """Kills runs `kills` times, and compares each with one that was never killed.

    A run is killed at some of `MOMENTS`, then at random times, then finished.
    """
    rng, tally, numbers = random.Random(seed), Tally(), itertools.count()
    runs.finish(root / "warm_up")  # compiles
    seconds = runs.finish(root / "undisturbed")
    wanted = read_left(root / "undisturbed")
    while (left := kills - tally.kills.total()) > 0:
        folder, phases = root / f"run{next(numbers)}", []
        # In the order in which a run passes them.
        moments = sorted(rng.sample(range(len(MOMENTS)), _MOMENTS_PER_RUN))
        plan = [[*MOMENTS][k] for k in moments] + [None] * _TIMES_PER_RUN
        for moment in plan[:left]:
            victim = rng.randrange(runs.processes)
            if moment is not None:
                killed = runs.kill_at(folder, moment, victim=victim)
            else:
                after = rng.uniform(0.3, 1) * seconds
                killed = runs.kill_after(folder, after, victim=victim)
            if killed:
                phases.append(moment or describe_state(folder))
        tally.kills.update(phases)
        runs.finish(folder)
        differences = read_left(folder).differences(wanted)
        tally.survived.update([] if differences else phases)
        outcome = f"differs: {', '.join(differences)}" if differences else "equal"
        print(f"{folder.name}, killed at {phases}: {outcome}", flush=True)
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        runs = Runs(root / "cache", processes=given.processes)
        tally = torment(runs, root, kills=given.kills, seed=given.seed)
    print(tally.table())
    if tally.survived != tally.kills:
        sys.exit("not every run survived")


if __name__ == "__main__":
    main()
