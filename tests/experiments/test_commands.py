"""What the commands of a study say before they begin, and at their end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags
from absl.testing import flagsaver
from studies import make_study, write_run
from test_store import CONFIG as POLES

from experiments.run import what_next
from experiments.running.fingerprint import make_record
from experiments.running.sweep import expand, load_study, smoke_overrides

pytestmark = pytest.mark.shared_out(by="module")

ROOT = Path(__file__).parents[2]
SWEEPS = ROOT / "configs" / "sweeps"
WORKDIR = Path("runs/tried")


def next_of(study, *args):
    with flagsaver.flagsaver():
        flags.FLAGS(["run", f"--workdir={WORKDIR}", *args])
        return what_next(load_study(study), WORKDIR)


@pytest.mark.parametrize(
    ("name", "args", "command"),
    [
        ("cracks", [], "experiments.collect cracks --workdir=runs/tried"),
        (
            "cracks",
            ["--smoke"],
            "experiments.collect cracks --workdir=runs/tried --smoke",
        ),
        (
            "demo_samplers",
            [],
            "experiments.collect demo_samplers --workdir=runs/tried",
        ),
        (
            "demo_samplers",
            ["--smoke"],
            "experiments.collect demo_samplers --workdir=runs/tried --smoke",
        ),
    ],
)
def test_the_command_that_comes_next_is_one_that_works(name, args, command):
    assert next_of(SWEEPS / f"{name}.py", *args) == f"python -m {command}"


def test_a_study_from_elsewhere_is_collected_by_its_file(tmp_path):
    study = tmp_path / "cracks.py"
    study.write_text((SWEEPS / "cracks.py").read_text())
    for args in ([], ["--smoke"]):
        assert f"experiments.collect {study} --workdir" in next_of(study, *args)


def command(*args):
    return subprocess.run(
        [sys.executable, "-m", *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ,
    )


def test_nothing_is_collected_without_a_place_for_results(tmp_path):
    done = command("experiments.collect", "demo_samplers")
    assert done.returncode == 1
    assert "demo_samplers/README.md must hold the lines <!-- results -->" in done.stderr
    assert not (ROOT / "experiments" / "demo_samplers").exists()


@pytest.mark.parametrize("from_file", [False, True])
def test_a_study_without_a_folder_is_collected_within_its_workdir(tmp_path, from_file):
    study = "demo_samplers"
    if from_file:
        study = tmp_path / "cracks.py"
        study.write_text(POLES)
        for run in make_study().runs:
            write_run(tmp_path / "runs", run)
    done = command("experiments.collect", study, f"--workdir={tmp_path}/runs")
    if not from_file:
        assert "lacks 2 of 2 runs of demo_samplers: random/seed=0" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "runs" / "README.md").read_text()
    assert text.startswith("# cracks\n\nDoes Balance-batch find poles?\n")
    assert "cl3 against random4, equal steps: mean IoU +" in text
    assert (tmp_path / "runs" / "results" / "study.json").exists()


def test_code_is_accepted_by_name(tmp_path):
    study = load_study(SWEEPS / "demo_samplers.py")
    run, *_ = expand(study.get_config("smoke"), smoke_overrides(study))
    folder = run.folder(tmp_path)
    (folder / "checkpoints" / "2").mkdir(parents=True)
    record = make_record(run, code="0123456789abcdef")
    (folder / "run.json").write_text(json.dumps(record))
    asked = ["experiments.run", f"--config={study.path}", f"--workdir={tmp_path}"]
    asked += ["--smoke", "--dry_run"]
    done = command(*asked, "--accept_code=0123456789ac")
    assert done.returncode == 1
    assert "; --accept_code=0123456789ab if it computes the same." in done.stderr
    done = command(*asked, "--accept_code=0123456789ab")
    assert done.returncode == 0, done.stderr
    assert "2 waiting" in done.stdout


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
