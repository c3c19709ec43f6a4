"""The command line, in processes of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from segloss.models import make_model

pytestmark = pytest.mark.shared_out

ROOT = Path(__file__).parents[1]


def command(*args, **env):
    return subprocess.run(
        [sys.executable, *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | env,
    )


# As on a terminal, where the progress bars are drawn.
TERMINAL = {"FORCE_COLOR": "1"}


def test_train_evaluate_predict_and_export(tmp_path, small_folder):
    workdir = f"--workdir={tmp_path / 'run'}"
    model = make_model("unet", num_classes=3, depth=1, width=4)
    variables = model.init(jax.random.key(1), jnp.zeros((1, 32, 32, 3)), train=False)
    arrays = traverse_util.flatten_dict(variables, sep="/")
    headless = {k: v for k, v in arrays.items() if "/head/" not in k}
    np.savez(tmp_path / "weights.npz", **headless)
    trained = command(
        "run.py",
        "--config=configs/folder.py:smoke",
        f"--config.data.root={small_folder}",
        f"--config.data.data_dir={tmp_path / 'datasets'}",
        f"--config.model.pretrained={tmp_path / 'weights.npz'}",
        workdir,
        **TERMINAL,
    )
    assert trained.returncode == 0, trained.stderr
    assert "starts from the weights in" in trained.stdout
    assert "lacks 2 of 34 arrays" in trained.stderr
    assert "mean IoU" in trained.stdout
    evaluated = command(
        "run.py", workdir, "--mode=evaluate", "--split=train", **TERMINAL
    )
    assert evaluated.returncode == 0, evaluated.stderr
    predicted = command(
        "run.py",
        workdir,
        "--mode=predict",
        f"--input={small_folder / 'val'}",
        "--set=evaluate.flip=True",
        **TERMINAL,
    )
    assert predicted.returncode == 0, predicted.stderr
    assert (
        len(list((tmp_path / "run" / "predictions" / "val" / "indices").iterdir())) == 2
    )
    (small_folder / "val" / "images" / "damaged.png").write_text("")
    skipped = command(
        "run.py",
        workdir,
        "--mode=predict",
        f"--input={small_folder / 'train'}",
        f"--input={small_folder / 'val'}",
        f"--output={tmp_path / 'out'}",
        "--probabilities=npy",
    )
    assert skipped.returncode == 1
    assert "error: 1 of 7 images cannot be used and were skipped: " in skipped.stderr
    assert "damaged.png (is empty; replace the file). The others" in skipped.stderr
    assert "Traceback" not in skipped.stderr
    written = (tmp_path / "out").rglob("*.npy")
    assert sorted(
        path.relative_to(tmp_path / "out").as_posix() for path in written
    ) == [
        *(f"train/probabilities/{stem}.npy" for stem in "abcd"),
        *(f"val/probabilities/{stem}.npy" for stem in "ef"),
    ]
    exported = command("run.py", workdir, "--mode=export", "--size=36,52", **TERMINAL)
    assert exported.returncode == 0, exported.stderr
    about = json.loads((tmp_path / "run" / "exported" / "model.json").read_text())
    assert (about["image_hw"], about["inference"]["flip"]) == ([36, 52], False)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ("--mode=train",),
            "config.json is missing; train with this --workdir first, or",
        ),
        (
            ("--mode=evaluate", "--threshold=0.7"),
            "--threshold is a flag of --mode=predict, got --mode=evaluate.",
        ),
        (
            ("--config=configs/demo.py", "--mode=predict", "--output="),
            "--output is empty; name a folder",
        ),
        (("--config=configs/demo.py", "--mode=predict"), "--input is missing"),
        (("--mode=evaluate",), "config.json is missing; train with this --workdir"),
        (("--config=configs/folder.py:smoke",), "error: config.data.root is not set"),
        (("--config=configs/none.py",), "there is no file configs/none.py in"),
        (("--config=configs/demo.py", "--config.foo=1"), "config has no field 'foo'"),
        (("--config=configs/demo.py:huge",), "must be 'full' or 'smoke', got 'huge'"),
        (
            ("--config=configs/demo.py", "--mode=export", "--size=512x512"),
            "--size must be height and width in pixels such as 512,1024, got ('512x5",
        ),
        (
            ("--config=configs/demo.py", "--set=model.deep=3"),
            "no hyperparameter 'deep'",
        ),
        (("--config=configs/demo.py", "surplus"), "unknown argument 'surplus'"),
        (
            ("--mode=guess",),
            "one of <train|evaluate|predict|export|inspect>. --help lists the flags.\n",
        ),
    ],
)
def test_wrong_use_is_one_clear_line(tmp_path, args, message):
    done = command("run.py", f"--workdir={tmp_path / 'none'}", *args)
    assert done.returncode != 0
    assert message in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("module", ["run.py", "-mexperiments.run"])
def test_help_helps(module):
    done = command(module, "--help")
    assert "--workdir" in done.stdout
    assert "python" in done.stdout
