import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.results import write_results

ROOT = Path(__file__).parents[2]
RESULTS = {
    "summary": {
        "mean_iou": 0.5,
        "frequency_weighted_iou": 0.6,
        "mean_accuracy": 0.7,
        "pixel_accuracy": 0.8,
        "mean_f1": 0.65,
        "cohen_kappa": 0.4,
    },
    "per_class": [
        {
            "name": "sky",
            "iou": 0.25,
            "precision": 0.5,
            "recall": None,
            "f1": 0.4,
            "pixel_share": 1.0,
        }
    ],
    "split": "test",
    "num_images": 7,
    "step": 30,
    "seconds": 90.0,
    "devices": "1 x cpu",
    "commit": "0123456789abcdef",
    "versions": {"python": "3.11.7", "jax": "0.10.2"},
}


@pytest.fixture
def run(tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "results.json").write_text(json.dumps(RESULTS))
    (workdir / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    return workdir


def test_results_replace_what_stood_there_and_nothing_else(run, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("# A\n<!-- results -->\nold\n<!-- end of results -->\nafter\n")
    for _ in range(2):
        write_results(readme, [run])
    text = readme.read_text()
    assert text.startswith("# A\n<!-- results -->\n")
    assert text.endswith("<!-- end of results -->\nafter\n")
    assert "old" not in text
    assert "| run | 0.500 | 0.600 | 0.700 | 0.800 | 0.650 | 0.400 |" in text
    assert "| sky | 0.250 | 0.500 | \N{EN DASH} | 0.400 | 100.0% |" in text
    assert "7 images of `test`, step 30, 1.5 minutes on 1 x cpu" in text
    assert "commit `0123456789ab`; python 3.11.7, jax 0.10.2." in text
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_what_is_missing_is_named(run, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("# A\n")
    with pytest.raises(ValueError, match="must hold the lines <!-- results -->"):
        write_results(readme, [run])
    assert not (tmp_path / "curve.png").exists()
    readme.write_text("<!-- results -->\n<!-- end of results -->\n")
    with pytest.raises(ValueError, match=r"other/results\.json is missing"):
        write_results(readme, [tmp_path / "other"])


def test_runs_of_a_sweep_are_named_by_arm_and_seed(run, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- results -->\n<!-- end of results -->\n")
    for arm in ("a", "b"):
        shutil.copytree(run, tmp_path / arm / "seed=0")
    write_results(readme, [tmp_path / arm / "seed=0" for arm in ("a", "b")])
    assert "| a/seed=0 | 0.500 |" in readme.read_text()
    assert "b/seed=0: 7 images of `test`" in readme.read_text()


def test_the_command_takes_several_runs_and_names_a_missing_one(run, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- results -->\n<!-- end of results -->\n")
    command = [sys.executable, "-m", "experiments.results", readme]
    shutil.copytree(run, tmp_path / "second")
    subprocess.run([*command, run, tmp_path / "second"], cwd=ROOT, check=True)
    assert "| second | 0.500 |" in readme.read_text()
    for workdirs, error in (
        ([run, tmp_path / "none"], f"{tmp_path}/none/results.json is missing; the run"),
        ([], "WORKDIR is missing; --help shows the usage."),
    ):
        done = subprocess.run(
            [*command, *workdirs], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 1
        assert done.stderr.startswith(f"error: {error}")
        assert len(done.stderr.splitlines()) == 1
