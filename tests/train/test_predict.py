import json
import shutil

import numpy as np
import pytest
from PIL import Image

from segloss.config import read_config
from segloss.report import overlay
from segloss.trained import evaluate_run, predict

pytestmark = pytest.mark.shared_out(by="module")


@pytest.fixture
def run(finished_folder_run, small_folder, tmp_path):
    """A copy of the run, of its own: its config, directory and results."""
    shutil.copytree(finished_folder_run, tmp_path / "run")
    config = read_config(tmp_path / "run")
    config.data.root = str(small_folder)
    config.data.data_dir = str(tmp_path / "datasets")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    return config, tmp_path / "run", results


def test_predictions_are_those_that_evaluation_scored(run, small_folder):
    config, workdir, results = run
    (done,) = predict(config, workdir, small_folder / "val")
    directory, scores = workdir / "predictions" / "val", done.scores
    assert done.directory == directory
    assert scores["summary"] == results["summary"]
    assert scores["num_images"] == 2
    assert json.loads((directory / "scores.json").read_text()) == scores
    for stem in "ef":
        indices = Image.open(directory / "indices" / f"{stem}.png")
        assert indices.mode == "L"
        image = np.asarray(Image.open(small_folder / "val" / "images" / f"{stem}.png"))
        assert indices.size == image.shape[1::-1]
        drawn = np.asarray(Image.open(directory / "overlays" / f"{stem}.png"))
        np.testing.assert_array_equal(drawn, overlay(image, np.asarray(indices)))


def test_what_is_seen_more_than_once_is_scored_as_predicted(run, small_folder):
    config, workdir, results = run
    config.evaluate.update(flip=True, scales=[1.0, 0.75], window_hw=[48, 48])
    evaluated = evaluate_run(config, workdir)
    assert evaluated["summary"] != results["summary"]
    (done,) = predict(config, workdir, small_folder / "val")
    assert done.scores["summary"] == evaluated["summary"]
    assert (results["inference"]["flip"], evaluated["inference"]["flip"]) == (0, 1)


def test_images_alone_of_any_size_are_predicted_without_scores(run, tmp_path):
    config, workdir, _ = run
    folder = tmp_path / "holiday"
    folder.mkdir()
    Image.new("L", (37, 21), 90).save(folder / "grey.jpg")
    Image.new("RGBA", (30, 30), (9, 9, 9, 9)).save(folder / "clear.png")
    (folder / "notes.txt").write_text("not an image")
    (done,) = predict(config, workdir, folder)
    assert (done.num_images, done.num_skipped, done.scores) == (2, 0, None)
    indices = workdir / "predictions" / "holiday" / "indices"
    assert {p.name for p in indices.iterdir()} == {"grey.png", "clear.png"}
    with Image.open(indices / "grey.png") as predicted:
        assert predicted.size == (37, 21)
    assert not (workdir / "predictions" / "holiday" / "scores.json").exists()


def test_evaluation_of_a_run_repeats_its_results(run):
    config, workdir, results = run
    again = evaluate_run(config, workdir)
    assert again["summary"] == results["summary"]
    assert again["confusion"] == results["confusion"]
    path = workdir / "evaluations" / "val_4" / "results.json"
    assert json.loads(path.read_text()) == again


def test_evaluation_of_changed_files_says_so(run, small_folder, capsys):
    config, workdir, results = run
    evaluate_run(config, workdir)
    assert "or it has changed" not in capsys.readouterr().out
    path = small_folder / "val/labels/e.png"
    labels = np.array(Image.open(path))
    labels[:4] = 2
    Image.fromarray(labels).save(path)
    evaluated = evaluate_run(config, workdir)
    assert evaluated["fingerprint"] != results["fingerprint"]
    said = " ".join(capsys.readouterr().out.split())
    assert f"is {evaluated['fingerprint']}, was {results['fingerprint']}" in said


def test_bad_input_is_named(run, small_folder, tmp_path):
    config, workdir, _ = run
    with pytest.raises(FileNotFoundError, match=r"no image found"):
        predict(config, workdir, tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="train with this --workdir first"):
        predict(config, tmp_path / "no_run", small_folder / "val")


def test_classes_other_than_the_trained_are_refused(run, small_folder):
    config, workdir, _ = run
    (small_folder / "classes.txt").write_text("0 ground\n1 box\n2 pole\n")
    with pytest.raises(ValueError, match="has 3: added pole; removed bar"):
        evaluate_run(config, workdir)


def test_turned_image_is_predicted_as_its_labels_lie(run, small_folder):
    config, workdir, _ = run
    path = small_folder / "val" / "images" / "e.png"
    image, exif = Image.open(path), Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise, which its label is not
    image.save(path, exif=exif)

    def predicted_size():
        predict(config, workdir, small_folder / "val")
        with Image.open(workdir / "predictions/val/indices/e.png") as indices:
            return indices.size

    assert predicted_size() == image.size
    (small_folder / "val" / "labels" / "e.png").unlink()
    assert predicted_size() == image.size[::-1]
