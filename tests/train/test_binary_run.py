"""A run of two classes under a sigmoid: one logit, from training to prediction."""

import json

import numpy as np
import pytest
from PIL import Image

from configs import folder
from segloss.train import make_setup, train
from segloss.trained import load_trained, predict
from segloss.trained.export import make_exported

pytestmark = pytest.mark.shared_out(by="module")


@pytest.fixture(scope="module")
def config(binary_folder, datasets_dir):
    config = folder.get_config("smoke").unlock()
    config.data.root = str(binary_folder)
    config.data.data_dir = str(datasets_dir)
    config.data.ignore_label = 2
    with config.ignore_type():
        config.loss = [
            dict(name="sigmoid_cross_entropy", weight=1.0, pos_weight=3.0),
            dict(name="soft_dice", weight=1.0, multi_label=True),
        ]
    config.total_steps = 40
    config.evaluate_every_steps = 40
    config.schedule.learning_rate = 3e-2
    return config


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    train(config, workdir)
    return workdir


def test_one_logit_tells_two_classes_apart(config, run):
    results = json.loads((run / "results.json").read_text())
    assert np.shape(results["confusion"]) == (2, 2)
    # Boxes are brighter than the ground.
    assert results["summary"]["mean_iou"] > 0.9
    trained = load_trained(config, run)
    assert trained.model.num_classes == 1
    sample = make_setup(config).dataset.source("val")[0]
    predicted = trained.predict(sample["image"])
    labels = sample["labels"]
    counted = labels != 2
    assert np.mean(predicted[counted] == labels[counted]) > 0.9
    exported = make_exported(trained, labels.shape)
    np.testing.assert_array_equal(exported.call(sample["image"][None])[0], predicted)


def test_the_gradient_is_shared_among_both_classes(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    last = [json.loads(line) for line in lines if "gradient_share" in line][-1]
    shares = [last[f"gradient_share/{name}"] for name in ("ground", "box")]
    assert min(shares) > 0
    np.testing.assert_allclose(sum(shares), 1, rtol=1e-5)


def test_threshold_decides_between_two_classes(config, run, binary_folder, tmp_path):
    image = binary_folder / "val" / "images" / "e.png"
    trained = load_trained(config, run)
    labels, probs = trained.predict_with_probs(np.asarray(Image.open(image)))
    np.testing.assert_allclose(probs.sum(axis=-1), 1, rtol=1e-6)
    np.testing.assert_array_equal(labels, probs[..., 1] > 0.5)
    # One pixel has this probability, and the next float is larger.
    edge = float(np.sort(probs[..., 1].ravel())[probs[..., 1].size // 2])
    sums = []
    for threshold in (edge, float(np.nextafter(np.float32(edge), 1)), 0.99):
        (done,) = predict(
            config,
            run,
            image,
            threshold=threshold,
            probabilities="png",
            output=tmp_path / str(threshold),
        )
        ids = np.asarray(Image.open(done.directory / "indices" / "e.png"))
        np.testing.assert_array_equal(ids, probs[..., 1] >= np.float32(threshold))
        sums.append(ids.sum())
    assert sums[0] > sums[1] > sums[2]
    (only,) = (done.directory / "probabilities").iterdir()
    assert only.name == "1_box"
    grey = np.asarray(Image.open(only / "e.png"))
    np.testing.assert_array_equal(grey, np.rint(255 * probs[..., 1]))
