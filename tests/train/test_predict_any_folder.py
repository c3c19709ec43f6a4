"""Prediction of folders as users have them: damaged, nested, linked, without labels."""

import gc
import os
import tracemalloc

import numpy as np
import pytest
import tifffile
from flax import linen as nn
from PIL import Image
from runs import RNG, files, lines, linked_run, save

from segloss.config import Inference, parse_config, read_config
from segloss.console import make_console
from segloss.data import IMAGE_SUFFIXES
from segloss.data.bands import RGB, Bands
from segloss.errors import MissingFileError, SeglossError
from segloss.trained import SkippedImagesError, TrainedModel, load_trained, predict
from segloss.trained.inputs import Tally, find_inputs
from segloss.trained.predict import Session
from segloss.trained.reading import Reader

pytestmark = pytest.mark.shared_out(by="module")


@pytest.fixture
def run(finished_folder_run, tmp_path):
    return linked_run(finished_folder_run, tmp_path)


def test_two_days_of_photos_lie_side_by_side(run, tmp_path):
    config, workdir = run
    days = [tmp_path / day / "photos" for day in ("day1", "day2")]
    for day in days:
        save(day / "a.png")
    (first,) = predict(config, workdir, days[0])
    before = (first.directory / "indices/a.png").read_bytes()
    first_of_both, second = predict(config, workdir, days)
    assert first_of_both.directory == first.directory == workdir / "predictions/photos"
    assert second.directory == workdir / "predictions/day2_photos"
    assert (first.directory / "indices/a.png").read_bytes() == before
    for done in (first, second):
        assert files(done.directory) == {
            "predictions.jsonl",
            "indices/a.png",
            "overlays/a.png",
        }
    about, image = lines(second.directory)
    assert (about["input"], about["step"]) == (str(days[1]), 4)
    assert image["image"] == str(days[1] / "a.png")


def test_images_in_folders_keep_their_places_and_names(run, tmp_path):
    config, workdir = run
    root = tmp_path / "set"
    save(root / "x.png", (16, 16))
    save(root / "x.jpg", (16, 17))
    save(root / "deep/er/x.png", (16, 18))
    Image.new("L", (19, 16), 7).save(tmp_path / "one.jpg")
    both = predict(config, workdir, [root, tmp_path / "one.jpg"])
    sizes = {}
    for done in both:
        for path in (done.directory / "indices").rglob("*.png"):
            with (
                Image.open(path) as ids,
                Image.open(str(path).replace("/indices/", "/overlays/")) as overlaid,
            ):
                assert ids.size == overlaid.size
                sizes[path.relative_to(done.directory).as_posix()] = ids.size
    assert sizes == {
        "indices/x.png.png": (16, 16),
        "indices/x.jpg.png": (17, 16),
        "indices/deep/er/x.png": (18, 16),
        "indices/one.png": (19, 16),
    }


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_every_format_of_training_is_predicted(run, tmp_path, suffix):
    config, workdir = run
    path = tmp_path / "set" / f"a{suffix}"
    if suffix == ".npy":
        path.parent.mkdir()
        np.save(path, RNG.integers(0, 256, (24, 32, 3), np.uint8))
    else:
        save(path)
    (done,) = predict(config, workdir, tmp_path / "set")
    with Image.open(done.directory / "indices/a.png") as ids:
        assert (ids.mode, ids.size) == ("L", (32, 24))


def test_unreadable_images_are_skipped_and_named(run, tmp_path, capsys):
    config, workdir = run
    root = tmp_path / "set"
    for name in "abc":
        save(root / f"{name}.png")
    (root / "a.png").write_bytes((root / "a.png").read_bytes()[:80])
    (root / "b.png").write_text("")
    (root / "gone.png").symlink_to(root / "nothing.png")
    os.mkfifo(root / "pipe.png")
    (root / "notes.txt").touch()
    bad = tmp_path / "bad" / "x.png"
    bad.parent.mkdir()
    bad.touch()
    with pytest.raises(SkippedImagesError) as caught:
        predict(config, workdir, [bad.parent, root])
    message = str(caught.value)
    assert message.startswith("5 of 6 images cannot be used and were skipped: ")
    assert f"{bad} (is empty" in message
    assert f"{root / 'gone.png'} (No such file or directory)" in message
    assert "pipe.png (must be a file, got a pipe or device; replace it)" in message
    (done,) = caught.value.predictions
    assert (done.num_images, done.num_skipped) == (1, 4)
    assert sorted(os.listdir(done.directory / "indices")) == ["c.png"]
    skipped = [line["skipped"] for line in lines(done.directory) if "skipped" in line]
    assert len(skipped) == 4
    # No folder is left of an input that holds nothing to predict.
    assert os.listdir(workdir / "predictions") == ["set"]
    assert (
        "1 files and folders are not predicted, as they are no images: notes.txt"
        in (capsys.readouterr().out)
    )


def test_earlier_predictions_stay_where_no_image_can_be_used(run, tmp_path):
    config, workdir = run
    path = save(tmp_path / "set" / "a.png")
    (done,) = predict(config, workdir, path.parent)
    before = (done.directory / "indices/a.png").read_bytes()
    path.write_text("damaged")
    with pytest.raises(SkippedImagesError, match="1 of 1 images cannot be used"):
        predict(config, workdir, path.parent)
    assert (done.directory / "indices/a.png").read_bytes() == before
    assert os.listdir(workdir / "predictions") == ["set"]


def test_probabilities_are_those_of_the_class_ids(run, tmp_path):
    config, workdir = run
    path = save(tmp_path / "a.png", (40, 72))
    # Tiles of 64, and two looks.
    config.evaluate.update(flip=True, max_pixels=40 * 64)
    (plain,) = predict(config, workdir, path, output=tmp_path / "plain")
    arrays, greys = (
        predict(config, workdir, path, probabilities=kind, output=tmp_path / kind)[0]
        for kind in ("npy", "png")
    )
    probs = np.load(arrays.directory / "probabilities/a.npy")
    assert (probs.dtype, probs.shape) == (np.float16, (40, 72, 3))
    np.testing.assert_allclose(probs.astype(float).sum(axis=-1), 1, atol=2e-3)
    expected = load_trained(config, workdir).predict_with_probs(
        np.asarray(Image.open(path))
    )
    np.testing.assert_allclose(probs, expected[1], atol=1e-3)
    ids = [
        np.asarray(Image.open(d.directory / "indices/a.png")) for d in (plain, arrays)
    ]
    np.testing.assert_array_equal(ids[0], ids[1])
    np.testing.assert_array_equal(ids[0], expected[1].argmax(axis=-1))
    folder = greys.directory / "probabilities"
    assert sorted(os.listdir(folder)) == ["0_ground", "1_box", "2_bar"]
    for k, name in enumerate(sorted(os.listdir(folder))):
        grey = Image.open(folder / name / "a.png")
        assert grey.mode == "L"
        rounded = np.rint(255 * expected[1][..., k])
        np.testing.assert_array_equal(np.asarray(grey), rounded)


def test_output_holds_all_that_is_written(run, tmp_path, monkeypatch):
    config, workdir = run
    photos = save(tmp_path / "photos" / "a.png").parent
    before = files(workdir)
    monkeypatch.chdir(photos)
    for _ in range(2):
        # Its own predictions, which lie below the input, are not predicted.
        (done,) = predict(config, workdir, ".", output=".")
        assert done.num_images == 1
    assert files(photos) == {
        "a.png",
        "photos/predictions.jsonl",
        "photos/indices/a.png",
        "photos/overlays/a.png",
    }
    assert files(workdir) == before


def test_names_of_files_do_not_escape(run, tmp_path, capsys):
    config, workdir = run
    outside = save(tmp_path / "outside" / "b.png")
    root = tmp_path / "set"
    root.mkdir()
    written = [
        "[red]x\n.png",
        "-rf.png",
        "\x1b[2J.png",
        "é\udcff.png",
        "x" * 251 + ".png",
    ]
    for name in written:
        (root / name).write_bytes(outside.read_bytes())
    (root / "x.png" / "y.jpg").mkdir(parents=True)
    save(root / "x.png" / "in.png")
    save(root / "x.jpg")
    (root / "up").symlink_to(tmp_path / "outside")
    (root / "link.png").symlink_to(outside)
    before = files(tmp_path)
    with pytest.raises(SkippedImagesError, match=r"1 of 8 images .* cannot have this"):
        predict(config, workdir, root)
    place = workdir / "predictions" / "set"
    new = files(tmp_path) - before
    assert all(name.startswith("run/predictions/set/") for name in new)
    assert set(os.listdir(place / "indices")) == {*written, "x.png", "link.png"}
    assert outside.is_file()
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(probabilities="jpg"), "--probabilities must be one of png, npy, got 'jp"),
        (dict(threshold=1.0), r"--threshold must be in \(0, 1\), got 1\.0"),
        (dict(threshold=float("nan")), r"--threshold must be in \(0, 1\), got nan"),
        (dict(threshold=0.7), "needs a model of two classes, this one has 3"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(
    run, tmp_path, options, message
):
    config, workdir = run
    with pytest.raises(SeglossError, match=message):
        predict(config, workdir, save(tmp_path / "a.png"), **options)
    assert os.listdir(workdir) == ["checkpoints"]


def test_a_missing_second_input_is_found_before_the_first_is_predicted(run, tmp_path):
    config, workdir = run
    with pytest.raises(MissingFileError, match="none"):
        predict(config, workdir, [save(tmp_path / "a.png"), tmp_path / "none"])
    assert os.listdir(workdir) == ["checkpoints"]


def test_an_error_in_the_middle_loses_neither_old_nor_new(run, tmp_path, capsys):
    config, workdir = run
    for name in "ab":
        save(tmp_path / "set" / f"{name}.png")
    (done,) = predict(config, workdir, tmp_path / "set")
    before = {
        name: (done.directory / name).read_bytes() for name in files(done.directory)
    }
    # The disk is full at the second image.
    (tmp_path / "set" / "a.png").write_bytes(b"")
    save(tmp_path / "set" / "0.png")
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        saved = Image.Image.save

        def save_some(image, path, *args, **options):
            if path.name == "b.png":
                raise OSError(28, "No space left on device")
            saved(image, path, *args, **options)

        patch.setattr(Image.Image, "save", save_some)
        with pytest.raises(OSError, match=r"No space left.*predictions/set"):
            predict(config, workdir, tmp_path / "set")
    assert {
        n: (done.directory / n).read_bytes() for n in files(done.directory)
    } == before
    (kept,) = (p for p in done.directory.parent.iterdir() if p != done.directory)
    assert os.listdir(kept / "indices") == ["0.png"]
    assert f"not finished; 1 predictions are kept in {kept}" in capsys.readouterr().out


class Colours(nn.Module):
    """Logits from each pixel's own colour."""

    def __call__(self, images, *, train):
        return 3 * images


def make_session(finished_folder_run, bands=RGB):
    """Prediction with a network that has no weights, and reads as the run does."""
    trained = TrainedModel(
        model=Colours(),
        variables={},
        class_names=tuple("abcd"[: bands.num_bands]),
        ignore_label=255,
        inference=Inference(),
        step=0,
        images_seen=None,
        seconds=0.0,
        commit=None,
        pretrained=None,
        bands=bands,
    )
    config = parse_config(read_config(finished_folder_run))
    reader = Reader(config, class_names=trained.class_names, ignore_label=255)
    return Session(trained, reader, None, None, Tally())


def test_images_of_four_bands_and_16_bits(finished_folder_run, tmp_path):
    bands = Bands(4, "uint16", mean=(100.0,) * 4, deviation=(10.0, 20.0, 5.0, 1.0))
    session = make_session(finished_folder_run, bands)
    pixels = RNG.integers(80, 120, (24, 32, 4), np.uint16)
    root = tmp_path / "set"
    root.mkdir()
    contiguous = dict(photometric="minisblack", planarconfig="contig")
    tifffile.imwrite(root / "a.tif", pixels, **contiguous)
    np.save(root / "b.npy", pixels)
    save(root / "c.png")
    ((found, count, _),) = find_inputs([root])
    done = session.predict(found, tmp_path / "out", count, make_console())
    # Logits are the normalised values of the four bands, by hand.
    expected = ((pixels - 100.0) / [10, 20, 5, 1]).argmax(axis=-1)
    for name in "ab":
        ids = np.asarray(Image.open(done.directory / f"indices/{name}.png"))
        np.testing.assert_array_equal(ids, expected)
        overlay = np.asarray(Image.open(done.directory / f"overlays/{name}.png"))
        assert overlay.shape == (24, 32, 3)
    assert (done.num_images, done.num_skipped) == (2, 1)
    assert "c.png (the image must be 4 bands of uint16" in str(session.skipped)


def test_memory_does_not_grow_with_the_number_of_images(finished_folder_run, tmp_path):
    image = save(tmp_path / "a.png", (64, 64)).read_bytes()
    labels = save(tmp_path / "b.png", (64, 64), labels=True).read_bytes()

    def peak(name, folders):
        for folder in map(str, range(folders)):
            for i in range(10):
                # Every fifth image is damaged, and every fourth label.
                for kind, content in {
                    "images": image * (i % 5 > 0),
                    "labels": labels * (i % 4 > 0),
                }.items():
                    path = tmp_path / name / kind / folder / f"{i}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content)
        ((found, count, _),) = find_inputs([tmp_path / name])
        session = make_session(finished_folder_run)
        gc.collect()
        tracemalloc.start()
        done = session.predict(found, tmp_path / "out" / name, count, make_console())
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert done.num_images == 8 * folders
        return most

    peak("first", 1)  # compiles
    few, many = peak("few", 1), peak("many", 13)
    # The class ids of one image have 4,096 bytes, and its pixels three times as many.
    assert (many - few) / 120 < 1024, (few, many)
