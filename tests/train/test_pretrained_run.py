"""Runs that begin with the weights of a file."""

import functools
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util

from segloss.train import read_config, train
from segloss.train.checkpoints import Checkpoints
from segloss.train.setup import make_configured_model
from segloss.train.trained import load_trained

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory, datasets_dir):
    """Weights for the network of the demo's smoke config, made for 5 classes."""
    from configs import demo

    model = make_configured_model(demo.get_config("smoke"), 5)
    init = functools.partial(model.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), np.zeros((1, 32, 32, 3)))
    rng = np.random.default_rng(0)
    arrays = {
        path: rng.uniform(0.1, 0.2, leaf.shape).astype(np.float32)
        for path, leaf in traverse_util.flatten_dict(shapes, sep="/").items()
    }
    path = tmp_path_factory.mktemp("weights") / "unet.safetensors"
    safetensors.numpy.save_file(arrays, path)
    return path


def test_run_begins_with_the_weights_of_a_file(
    tmp_path, datasets_dir, weights_file, capsys
):
    workdir = tmp_path / "run"
    path = tmp_path / "moved.safetensors"
    path.write_bytes(weights_file.read_bytes())
    command = [
        sys.executable,
        "run.py",
        "--config=configs/demo.py:smoke",
        f"--config.data.data_dir={datasets_dir}",
        f"--config.model.pretrained={path}",
        # Too little to change a float32.
        "--config.schedule.learning_rate=1e-12",
        f"--workdir={workdir}",
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert f"begins with the weights of {path}: segloss, 40 arrays" in done.stdout
    assert digest[:16] in done.stdout
    assert "tells 5 classes apart, not 21; its class head begins afresh" in done.stderr
    file = safetensors.numpy.load_file(path)
    config = read_config(workdir)
    trained = load_trained(config, workdir)
    for name, array in traverse_util.flatten_dict(trained.variables, sep="/").items():
        if name.startswith("params/head/"):
            assert array.shape[-1] == 21
        elif name.startswith("params/"):
            np.testing.assert_array_equal(array, file[name])
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    meta = checkpoints.read_meta()
    checkpoints.close()
    assert meta["pretrained"] == {"file": str(path), "sha256": digest}
    # Going on, a run needs the file no more.
    path.unlink()
    train(config, workdir)
    said = capsys.readouterr().out
    assert "goes on from step 4" in said
    assert "begins with" not in said


def test_file_that_cannot_be_used_stops_before_the_first_step(tmp_path, tiny_config):
    tiny_config.model.pretrained = str(tmp_path / "none.npz")
    with pytest.raises(FileNotFoundError, match=r"none\.npz: no such file"):
        train(tiny_config, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()
