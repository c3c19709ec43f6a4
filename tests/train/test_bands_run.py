"""Runs on images of several bands and on many classes, from training to export."""

import functools
import inspect
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from band_sets import SIZES, draw, register
from flax import traverse_util
from ml_collections import ConfigDict
from rich.console import Console

from configs import folder
from segloss.config import Inference, make_configured_model, parse_config
from segloss.data import DATASETS, open_dataset
from segloss.devices import map_over_devices, replicate
from segloss.models import make_model
from segloss.serving import load_exported
from segloss.train import make_setup, train
from segloss.train.start import find_start
from segloss.trained import TrainedModel, evaluate_run, export, load_trained
from segloss.trained.evaluation import evaluate, evaluation_step

pytestmark = pytest.mark.shared_out(by="module")

TINY = {
    "unet": dict(depth=1, width=8),
    "deeplab_v3_plus": dict(stage_sizes=(1, 1, 1, 1), width=8),
}


@pytest.fixture
def config_of(datasets_dir, monkeypatch):
    """Makes the config of a run on a dataset of `band_sets`."""
    register(monkeypatch)

    def make(model, steps, **data):
        config = folder.get_config("smoke").unlock()
        kept = {
            k: v
            for k, v in config.data.items()
            if k not in inspect.signature(DATASETS["folder"]).parameters
        }
        config.data = ConfigDict(
            kept | dict(name="bands", data_dir=str(datasets_dir), **data)
        )
        config.model = dict(name=model, norm="batch", pretrained=None, **TINY[model])
        config.total_steps = config.evaluate_every_steps = steps
        config.checkpoint_every_steps = steps
        config.schedule.learning_rate = 2e-2
        config.augment.scale_range = (0.9, 1.1)
        config.evaluate.size_multiple = 64  # a single size to compile
        return config

    return make


def confusion_of(trained, samples, num_classes, ignore_label):
    confusion = np.zeros((num_classes, num_classes), int)
    for image, labels in samples:
        predicted, valid = trained.predict(image), labels != ignore_label
        np.add.at(confusion, (labels[valid], predicted[valid]), 1)
    return confusion


@pytest.mark.parametrize(
    ("model", "steps", "num_bands", "dtype", "looks"),
    [
        ("unet", 25, 4, "uint16", dict(flip=True, scales=[0.75])),
        pytest.param(
            *("deeplab_v3_plus", 25, 2, "float32", {}), marks=pytest.mark.slow
        ),
    ],
)
def test_bands_from_training_to_export(
    config_of, tmp_path, datasets_dir, model, steps, num_bands, dtype, looks
):
    config = config_of(model, steps, num_bands=num_bands, dtype=dtype)
    results = train(config, tmp_path)
    # Values differ by class, so a few steps are enough; chance is 0.2.
    assert results["summary"]["mean_iou"] > 0.45
    assert (tmp_path / "figures" / "examples.png").exists()
    trained = load_trained(config, tmp_path)
    dataset = open_dataset(
        "bands", data_dir=datasets_dir, num_bands=num_bands, dtype=dtype
    )
    assert trained.bands == dataset.bands
    val = [draw(num_bands, dtype, 3, 255, "val", i) for i in range(SIZES["val"])]
    assert results["confusion"] == confusion_of(trained, val, 3, 255).tolist()
    config.evaluate.update(looks)
    evaluated = evaluate_run(config, tmp_path)
    trained = load_trained(config, tmp_path)
    assert evaluated["confusion"] == confusion_of(trained, val, 3, 255).tolist()
    directory = export(config, tmp_path)
    about = json.loads((directory / "model.json").read_text())
    assert about["bands"] == dataset.bands.to_json()
    predict = load_exported(directory)
    image = val[0][0]
    np.testing.assert_array_equal(predict(image[None])[0], trained.predict(image))
    with pytest.raises(ValueError, match=rf"must be {dtype} \[b, h, w, {num_bands}\]"):
        predict(np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=rf"{num_bands} bands of {dtype}.* got uint8"):
        trained.predict(np.zeros((8, 8, 3), np.uint8))
    config.data.update(num_bands=1, dtype="uint16")
    with pytest.raises(ValueError, match=rf"trained on {num_bands} bands of {dtype}; "):
        evaluate_run(config, tmp_path)


def test_tiles_of_bands_are_counted_as_they_are_predicted(config_of, datasets_dir):
    data = dict(num_bands=4, dtype="uint16", repeats=4, data_dir=datasets_dir)
    dataset = open_dataset("bands", **data)
    model = make_model("unet", num_classes=3, depth=1, width=4)
    images = jnp.zeros((1, 16, 16, 4))
    variables = model.init(jax.random.key(0), images, train=False)
    trained = TrainedModel(
        model=model,
        variables=variables,
        class_names=dataset.class_names,
        ignore_label=255,
        inference=Inference(size_multiple=32, max_pixels=64**2),
        step=0,
        images_seen=0,
        seconds=0.0,
        commit=None,
        pretrained=None,
        bands=dataset.bands,
    )
    step = map_over_devices(
        evaluation_step,
        model=model,
        inference=trained.inference,
        num_classes=3,
        bands=dataset.bands,
    )
    sizes = dict(batch_size=2, size_multiple=32, max_pixels=64**2)
    evaluation = evaluate(step, replicate(variables), dataset, "val", **sizes)
    val = [draw(4, "uint16", 3, 255, "val", i, repeats=4) for i in range(3)]
    assert all(len(trained.tiling(labels.shape).tiles) > 1 for _, labels in val)
    expected = confusion_of(trained, val, 3, 255)
    np.testing.assert_array_equal(evaluation.confusion, expected)
    assert (expected.sum(axis=0) > 0).sum() > 1


def test_a_run_on_bands_starts_from_weights_for_rgb(config_of, tmp_path):
    config = config_of("unet", 2, num_bands=4, dtype="uint16")
    model = make_configured_model(parse_config(config), 3, axis_name=None)
    init = jax.jit(functools.partial(model.init, train=False))
    rgb = init(jax.random.key(3), jnp.zeros((1, 8, 8, 3)))
    arrays = traverse_util.flatten_dict(jax.tree.map(np.asarray, rgb), sep="/")
    safetensors.numpy.save_file(arrays, tmp_path / "rgb.safetensors")
    config.model.pretrained = str(tmp_path / "rgb.safetensors")
    console = Console(file=io.StringIO())
    start = find_start(make_setup(config), config, tmp_path / "run", console)
    said = console.file.getvalue().replace("\n", " ")
    assert "first convolution adapted from RGB to 4 bands" in said
    # Images of four equal bands give what grey RGB images give.
    grey = np.random.default_rng(0).normal(size=(1, 8, 8, 1)).astype(np.float32)
    logits = [
        model.apply(variables, jnp.repeat(grey, n, axis=-1), train=False)
        for variables, n in ((rgb, 3), (start.state.variables, 4))
    ]
    assert np.ptp(logits[0]) > 0.1
    np.testing.assert_allclose(*logits, atol=1e-5)


@pytest.mark.slow
def test_300_classes_are_trained_and_evaluated(config_of, tmp_path):
    config = config_of("unet", 2, num_classes=300, ignore_label=65535)
    results = train(config, tmp_path)
    trained = load_trained(config, tmp_path)
    val = [draw(3, "uint8", 300, 65535, "val", i) for i in range(SIZES["val"])]
    assert trained.predict(val[0][0]).dtype == np.uint16
    assert results["confusion"] == confusion_of(trained, val, 300, 65535).tolist()
    held = np.unique([c for _, labels in val for c in np.unique(labels)])
    shares = [row["pixel_share"] for row in results["per_class"]]
    np.testing.assert_array_equal(np.flatnonzero(shares), held[held < 300])
    assert (tmp_path / "figures" / "examples.png").exists()
