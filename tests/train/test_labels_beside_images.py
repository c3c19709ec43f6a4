"""Labels beside the images to predict: which are scored, and what they mean."""

import os

import numpy as np
import pytest
from PIL import Image
from runs import RNG, lines, linked_run, save

from segloss.trained import predict

pytestmark = pytest.mark.shared_out(by="module")


@pytest.fixture
def run(finished_folder_run, tmp_path):
    return linked_run(finished_folder_run, tmp_path)


def test_labels_that_do_not_fit_are_counted_and_not_scored(run, tmp_path, capsys):
    config, workdir = run
    root = tmp_path / "val"
    for name in ("fits", "stray", "small", "text", "none"):
        save(root / "images" / f"{name}.png")
        save(root / "labels" / f"{name}.png", labels=True)
    Image.new("L", (32, 24), 7).save(root / "labels/stray.png")
    Image.new("L", (5, 4)).save(root / "labels/small.png")
    (root / "labels/text.png").write_text("text")
    (root / "labels/none.png").unlink()
    (done,) = predict(config, workdir, root)
    assert (done.num_images, done.scores["num_images"]) == (5, 1)
    by_name = {os.path.basename(x.get("image", "")): x for x in lines(done.directory)}
    assert by_name["stray.png"]["not_scored"].startswith(
        "values must be 0..2 or ignore_label 255, got 7 (768 px)"
    )
    assert by_name["small.png"]["not_scored"] == (
        "4x5 labels of an image of 24x32 pixels, height x width"
    )
    assert "got a file that starts with" in by_name["text.png"]["not_scored"]
    assert by_name["fits.png"]["mean_iou"] == done.scores["summary"]["mean_iou"]
    assert "not_scored" not in by_name["none.png"]
    assert len(os.listdir(done.directory / "indices")) == 5
    out = capsys.readouterr().out
    assert "the labels of 3 images do not fit and are not scored: " in out
    assert "1 images have no labels" in out
    # The score is that of the label which fits: counted by hand.
    ids = np.asarray(Image.open(done.directory / "indices/fits.png"))
    labels = np.asarray(Image.open(root / "labels/fits.png"))
    ious = [
        ((ids == c) & (labels == c)).sum() / ((ids == c) | (labels == c)).sum()
        for c in range(3)
    ]
    np.testing.assert_allclose(done.scores["summary"]["mean_iou"], np.mean(ious))


def test_labels_are_read_as_training_reads_them(run, tmp_path):
    config, workdir = run
    root = tmp_path / "val"
    classes = (
        "0 ground #000000 values=10\n1 box #ff0000\n2 bar #00ff00\nvoid values=0\n"
    )
    ids = RNG.integers(0, 3, (24, 32), np.uint8)
    save(root / "images" / "colours.png")
    save(root / "images" / "values.png")
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], np.uint8)[ids]
    (root / "labels").mkdir()
    Image.fromarray(colours).save(root / "labels/colours.bmp")
    values = np.array([10, 1, 2], np.uint8)[ids]
    values[:4] = 0
    Image.fromarray(values).save(root / "labels/values.png")
    (tmp_path / "classes.txt").write_text(classes)
    (done,) = predict(config, workdir, root)
    predicted = {
        name: np.asarray(Image.open(done.directory / f"indices/{name}.png"))
        for name in ("colours", "values")
    }
    hits = (predicted["colours"] == ids).sum()
    hits += (predicted["values"] == ids)[4:].sum()
    accuracy = hits / (2 * ids.size - 4 * 32)
    np.testing.assert_allclose(done.scores["summary"]["pixel_accuracy"], accuracy)
    (tmp_path / "classes.txt").write_text("0 other\n1 names\n2 here\n")
    (done,) = predict(config, workdir, root)
    assert done.scores is None
    misfit = lines(done.directory)[1]["not_scored"]
    assert misfit.startswith(
        f"{tmp_path / 'classes.txt'} has other classes than the mo"
    )


def test_labels_without_classes_mean_what_they_meant_in_training(run, tmp_path):
    config, workdir = run
    config = config.copy_and_resolve_references().unlock()
    training, images = tmp_path / "training", tmp_path / "new" / "images"
    training.mkdir()
    (training / "classes.txt").write_text(
        "0 ground\n1 box values=7\n2 bar values=255\n"
    )
    save(images / "a.png")
    (tmp_path / "new/labels").mkdir()
    values = np.array([0, 7, 255], np.uint8)[RNG.integers(0, 3, (24, 32))]
    Image.fromarray(values).save(tmp_path / "new/labels/a.png")
    config.data.root = str(training)
    (done,) = predict(config, workdir, images)
    ids = np.asarray(Image.open(done.directory / "indices/a.png"))
    expected = (np.array([0, 7, 255])[ids] == values).mean()
    assert done.scores["summary"]["pixel_accuracy"] == pytest.approx(expected)
    (training / "classes.txt").unlink()
    (done,) = predict(config, workdir, images)
    assert done.scores is None
    misfit = lines(done.directory)[1]["not_scored"]
    assert misfit.startswith("no classes.txt says what their values mean; copy that")
