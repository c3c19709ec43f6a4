"""Every config loads, and is one that training takes."""

import functools
import importlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from segloss.train import make_setup

pytestmark = pytest.mark.shared_out

ROOT = Path(__file__).parents[1]
NAMES = sorted(p.stem for p in (ROOT / "configs").glob("*.py"))
# The fixture that stands in for the data a config wants.
ROOTS = {
    "camvid": "camvid_like_folder",
    "folder": "small_folder",
    "voc2012": "small_voc",
}
# Runs that other tests look at, too.
FINISHED = {"demo": "finished_run", "folder": "finished_folder_run"}


def smoke(name, tmp_path, request):
    """The smoke config, its data in a place of the test's own."""
    config = importlib.import_module(f"configs.{name}").get_config("smoke")
    config.data.data_dir = str(tmp_path / "datasets")
    if config.data.name == "tfds":  # has the archives that TFDS would download
        config.data.data_dir = str(request.getfixturevalue("small_pets"))
    if config.data.name in ROOTS:
        config.data.root = str(request.getfixturevalue(ROOTS[config.data.name]))
    if "partial" in config.data:
        config.data.partial = True
    return config


@pytest.mark.parametrize("name", NAMES)
def test_config_is_set_up(name, tmp_path, request):
    config = smoke(name, tmp_path, request)
    setup = make_setup(config)
    assert len(setup.sampler[0]) <= config.sampler.batch_max
    shape = (1, *config.data.crop_hw, 3)
    init = functools.partial(setup.model.init_with_output, train=False)
    logits, variables = jax.eval_shape(init, jax.random.key(0), jnp.zeros(shape))
    assert logits.shape == (*shape[:3], setup.dataset.num_classes)
    # Refuses groups that are those of no parameter.
    jax.eval_shape(setup.optimizer.init, variables["params"])


@pytest.mark.parametrize("name", FINISHED)
def test_config_takes_its_smoke_steps(name, request):
    workdir = request.getfixturevalue(FINISHED[name])
    config = importlib.import_module(f"configs.{name}").get_config("smoke")
    results = json.loads((workdir / "results.json").read_text())
    assert results["step"] == config.total_steps
    assert 0 <= results["summary"]["mean_iou"] <= 1
    assert (workdir / "figures" / "examples.png").stat().st_size > 1000


@pytest.mark.parametrize("name", NAMES)
def test_full_config_loads_and_a_size_that_is_none_is_refused(name):
    module = importlib.import_module(f"configs.{name}")
    config = module.get_config()
    assert isinstance(config, ConfigDict)
    assert config.is_locked
    assert config.total_steps > 100
    with pytest.raises(ValueError, match="'huge'"):
        module.get_config("huge")
