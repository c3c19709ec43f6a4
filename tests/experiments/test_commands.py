"""What the commands of a study say before they begin, and at their end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags
from absl.testing import flagsaver

from experiments.run import what_next
from experiments.running.sweep import load_study

ROOT = Path(__file__).parents[2]
SWEEPS = ROOT / "configs" / "sweeps"
WORKDIR = Path("runs/tried")


def next_of(study, *args):
    done = [WORKDIR / "a" / "seed=0", WORKDIR / "b" / "seed=0"]
    with flagsaver.flagsaver():
        flags.FLAGS(["run", f"--workdir={WORKDIR}", *args])
        return what_next(load_study(study), WORKDIR, done)


@pytest.mark.parametrize(
    ("name", "args", "command"),
    [
        ("cracks", [], "experiments.collect cracks --workdir=runs/tried"),
        (
            "cracks",
            ["--smoke"],
            "experiments.collect cracks --workdir=runs/tried --smoke",
        ),
        # It has no README of its own.
        (
            "demo_samplers",
            [],
            "experiments.results README runs/tried/a/seed=0 runs/tried/b/seed=0",
        ),
        (
            "demo_samplers",
            ["--smoke"],
            "experiments.collect demo_samplers --workdir=runs/tried --smoke",
        ),
    ],
)
def test_the_command_that_comes_next_is_one_that_works(name, args, command):
    said = next_of(SWEEPS / f"{name}.py", *args)
    assert said.split(": python -m ")[1] == command


def test_a_study_from_elsewhere_is_not_collected(tmp_path):
    study = tmp_path / "elsewhere.py"
    study.write_text((SWEEPS / "cracks.py").read_text())
    for args in ([], ["--smoke"]):
        assert "experiments.results README runs/tried/a/" in next_of(study, *args)


def command(*args):
    return subprocess.run(
        [sys.executable, "-m", *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ,
    )


def test_nothing_is_collected_without_a_place_for_results(tmp_path):
    done = command("experiments.collect", "demo_samplers", f"--workdir={tmp_path}")
    assert done.returncode == 1
    assert "demo_samplers/README.md must hold the lines <!-- results -->" in done.stderr
    assert not (ROOT / "experiments" / "demo_samplers").exists()


def test_smoke_leaves_out_what_its_base_lacks(tmp_path):
    done = command(
        "experiments.run",
        f"--config={SWEEPS / 'cracks.py'}",
        "--smoke",
        "--dry_run",
        "--config.data.root=/nowhere",
        "--config.total_steps=3",
        f"--workdir={tmp_path}",
    )
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if "--smoke" in line]
    assert said == ["--smoke has no use for data.root, which its base lacks."]
    assert "0 / 3" in done.stdout
