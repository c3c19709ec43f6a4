"""Runs in processes of their own, what they leave, and images to predict."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from segloss.config import read_config
from segloss.train import make_setup
from segloss.train.first_state import make_fresh_state
from segloss.train.log import OF_THE_MACHINE
from segloss.trained.checkpoints import Checkpoints

ROOT = Path(__file__).parents[2]
RNG = np.random.default_rng(0)

# A real run in a process of its own, which a real signal stops after a given step.
RUN = """
import os, signal, sys
from pathlib import Path
from segloss.config import read_config
from segloss.train import train

def on_step(step):
    if step == int(sys.argv[2]):
        # 0 is the whole group of processes, which is what Ctrl-C in a terminal signals.
        os.kill(0 if sys.argv[4:] else os.getpid(), int(sys.argv[3]))

if __name__ == "__main__":
    train(read_config(Path(sys.argv[1])), sys.argv[1], on_step=on_step)
"""


def run_until(workdir, config, step, number, *group):
    """Trains in a new process that gets signal `number` at `step`.

    Returns once nothing holds its output open, so its workers are gone as well.
    """
    workdir.mkdir()
    (workdir / "config.json").write_text(config.to_json_best_effort())
    return subprocess.run(
        [sys.executable, "-c", RUN, str(workdir), str(step), str(int(number)), *group],
        cwd=ROOT,
        capture_output=True,
        text=True,
        start_new_session=True,
        timeout=300,
    )


def newest_state(config, workdir):
    setup = make_setup(config)
    like = make_fresh_state(setup)
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    restored = checkpoints.restore(like)
    checkpoints.close()
    return restored


def curve(workdir):
    """What was written in order, without what depends on the machine's speed."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [
        {k: v for k, v in line.items() if k not in OF_THE_MACHINE} for line in lines
    ]


def linked_run(directory, tmp_path):
    """The config of a run, and a directory of its own that has its checkpoints."""
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "checkpoints").symlink_to(directory / "checkpoints")
    return read_config(directory), workdir


def save(path, hw=(24, 32), labels=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape, top = (hw, 3) if labels else ((*hw, 3), 256)
    Image.fromarray(RNG.integers(0, top, shape, np.uint8)).save(path)
    return path


def files(folder):
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix() for path in found}


def lines(folder):
    return [
        json.loads(line)
        for line in (folder / "predictions.jsonl").read_text().splitlines()
    ]
