"""Runs on images of several bands and on many classes, from training to export."""

import json

import numpy as np
import pytest
from band_sets import SIZES, draw, register
from ml_collections import ConfigDict

from configs import folder
from segloss.data import open_dataset
from segloss.serving import load_exported
from segloss.train import train
from segloss.trained import evaluate_run, export, load_trained

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
        kept = {k: v for k, v in config.data.items() if k not in ("root", *data)}
        kept.pop("ignore_label", None)
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
        ("deeplab_v3_plus", 40, 2, "float32", {}),
    ],
)
def test_bands_from_training_to_export(
    config_of, tmp_path, datasets_dir, model, steps, num_bands, dtype, looks
):
    config = config_of(model, steps, num_bands=num_bands, dtype=dtype)
    results = train(config, tmp_path)
    # The values lie far from 0 and differ by class, so that normalised they are easy.
    assert results["summary"]["mean_iou"] > 0.6
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


def test_tiles_of_bands_are_predicted_and_counted_like_the_whole(config_of, tmp_path):
    config = config_of("unet", 2, num_bands=4, dtype="uint16")
    whole = train(config, tmp_path)
    config.evaluate.update(size_multiple=16, max_pixels=32 * 32)
    tiled = evaluate_run(config, tmp_path)
    val = [draw(4, "uint16", 3, 255, "val", i) for i in range(SIZES["val"])]
    trained = load_trained(config, tmp_path)
    assert len(trained.tiling(val[0][0].shape[:2]).tiles) > 1
    assert tiled["confusion"] == confusion_of(trained, val, 3, 255).tolist()
    assert np.sum(tiled["confusion"]) == np.sum(whole["confusion"])


def test_300_classes_are_trained_and_evaluated(config_of, tmp_path):
    config = config_of("unet", 2, classes=300, ignore_label=65535)
    results = train(config, tmp_path)
    trained = load_trained(config, tmp_path)
    val = [draw(3, "uint8", 300, 65535, "val", i) for i in range(SIZES["val"])]
    assert trained.predict(val[0][0]).dtype == np.uint16
    assert results["confusion"] == confusion_of(trained, val, 300, 65535).tolist()
    held = np.unique([c for _, labels in val for c in np.unique(labels)])
    shares = [row["pixel_share"] for row in results["per_class"]]
    np.testing.assert_array_equal(np.flatnonzero(shares), held[held < 300])
    assert (tmp_path / "figures" / "examples.png").exists()
