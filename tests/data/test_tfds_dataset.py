"""Oxford-IIIT Pet as TFDS prepares it from its archives, without TensorFlow."""

import functools
import http.server
import pickle
import re
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorflow_datasets.datasets.oxford_iiit_pet import oxford_iiit_pet_dataset_builder

import configs.tfds
from segloss.config import read_config
from segloss.data import BadSampleError, open_dataset
from segloss.errors import SeglossError
from segloss.train import train
from segloss.trained import evaluate_run, predict

pytestmark = pytest.mark.shared_out

ROOT = Path(__file__).parents[2]
PETS = {
    "builder": "oxford_iiit_pet",
    "class_names": ("pet", "background"),
    "label_offset": -1,
    "void": (3,),
}
# The trimaps of the fixture `small_pets`.
PET_PIXELS = 19 * 24
BORDER_PIXELS = 25 * 30 - PET_PIXELS


def open_pets(data_dir, **changes):
    return open_dataset("tfds", **PETS | {"data_dir": data_dir} | changes)


def files_in(directory):
    return {path for path in directory.rglob("*") if path.is_file()}


def test_pets_are_prepared_from_their_archives(small_pets):
    pets = open_pets(small_pets)
    assert "tensorflow" not in sys.modules
    assert pets.class_names == ("pet", "background")
    assert (pets.ignore_label, pets.max_hw) == (255, (40, 44))
    # Without a validation split, a tenth of TFDS's "train".
    sizes = {split: len(pets.source(split)) for split in pets.splits}
    assert sizes == {"train": 18, "val": 2, "test": 4}
    assert {path.name for path in small_pets.iterdir()} == {
        *("downloads", "oxford_iiit_pet", "segloss_tfds")
    }


def test_pets_have_the_labels_of_their_trimaps(small_pets):
    source = open_pets(small_pets).source("train")
    stems = [source[i]["stem"] for i in range(len(source))]
    assert all(re.fullmatch(r"(Abyssinian|beagle)_1\d\d\.jpg", stem) for stem in stems)
    for i in range(len(source)):
        sample = source[np.int64(i)]
        h, w = source.label_hw(i)
        assert sample["image"].shape == (h, w, 3)
        expected = np.full((h, w), 1)
        expected[5:30, 5:35] = 255
        expected[8:27, 8:32] = 0
        np.testing.assert_array_equal(sample["labels"], expected)
        assert sample["labels"].dtype == sample["image"].dtype == np.uint8
        # The image is 60 times the trimap, and noise of 0 to 39.
        assert abs(sample["image"][10:25, 10:30].mean() - 80) < 3


def test_file_that_tfds_repairs_is_a_jpeg(small_pets):
    pets = open_pets(small_pets)
    sources = [pets.source(split) for split in pets.splits]
    samples = [source[i] for source in sources for i in range(len(source))]
    (beagle,) = (s for s in samples if s["stem"] == "beagle_116.jpg")
    assert abs(beagle["image"][10:25, 10:30].mean() - 80) < 3


def test_pixels_of_classes_are_counted_and_kept(small_pets):
    pets = open_pets(small_pets)
    index = pets.class_index("test")
    areas = sorted({36 * 44, 40 * 44})
    background = [area - PET_PIXELS - BORDER_PIXELS for area in areas]
    counts = index.pixel_counts[np.argsort(index.pixel_counts[:, 1])].tolist()
    assert counts == [[PET_PIXELS, n] for n in background for _ in range(2)]
    assert {path.name for path in files_in(pets.data_dir)} == {
        *("sizes.json", "class_index-test.npy")
    }
    assert index.fingerprint == pets.fingerprint


def test_pets_without_their_background(small_pets):
    pets = open_pets(small_pets, classes=(("animal", ("pet",)),))
    labels = pets.source("test")[0]["labels"]
    assert (labels == 0).sum() == PET_PIXELS
    assert (labels == 255).sum() == labels.size - PET_PIXELS
    assert pets.class_index("test").pixel_counts.tolist() == [[PET_PIXELS]] * 4


def test_second_opening_is_silent_and_writes_nothing(small_pets, capfd):
    first = open_pets(small_pets)
    capfd.readouterr()
    before = {path: path.stat().st_mtime_ns for path in files_in(small_pets)}
    assert open_pets(small_pets) == first
    after = {path: path.stat().st_mtime_ns for path in files_in(small_pets)}
    assert before == after
    assert capfd.readouterr() == ("", "")


def test_source_survives_pickling_and_decodes_what_is_sliced(small_pets):
    source = open_pets(small_pets).source("val")
    copy = pickle.loads(pickle.dumps(source))
    whole, opened = copy[1], source.opened(1)
    assert opened["image"].shape == whole["image"].shape
    part = np.s_[3:20, 7:30]
    np.testing.assert_array_equal(opened["image"][part], whole["image"][part])


def test_source_without_images_reads_none(small_pets):
    source = open_pets(small_pets).source("val", images=False)
    assert source[0].keys() == source.opened(0).keys() == {"labels", "stem"}


@pytest.mark.parametrize("i", [-1, 2])
def test_source_refuses_what_it_does_not_hold(small_pets, i):
    with pytest.raises(IndexError, match=rf"must be in \[0, 2\), got {i}"):
        open_pets(small_pets).source("val")[i]


def test_directory_that_tfds_prepared_elsewhere(small_pets, tmp_path):
    here = open_pets(small_pets)
    moved = tmp_path / "elsewhere/4.0.0"
    shutil.copytree(small_pets / "oxford_iiit_pet/4.0.0", moved)
    before = files_in(moved)
    there = open_pets(tmp_path / "counts", builder=str(moved))
    there.class_index("train")
    assert there.fingerprint == here.fingerprint
    assert files_in(moved) == before
    assert there.data_dir.is_relative_to(tmp_path / "counts/segloss_tfds")
    assert len(there.source("train")) == 18


def test_builder_is_not_mistaken_for_the_folder_beside(small_pets, monkeypatch):
    monkeypatch.chdir(small_pets)
    assert open_pets(".") == open_pets(".")


def test_records_that_have_no_positions_are_refused(small_pets):
    open_pets(small_pets)
    path = small_pets / "oxford_iiit_pet/4.0.0/dataset_info.json"
    path.write_text(path.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(SeglossError, match=r"4.0.0 must hold array_record files"):
        open_pets(small_pets, train="train[:50%]")


def test_fingerprint_depends_on_splits_and_classes(small_pets):
    changes = [
        {},
        {"train": "train[:80%]"},
        {"class_names": ("background", "pet")},
        {"class_names": ("pet", "background", "border"), "void": ()},
    ]
    opened = [open_pets(small_pets, **change) for change in changes]
    assert len({dataset.fingerprint for dataset in opened}) == 4
    assert len({dataset.data_dir for dataset in opened}) == 4
    border = opened[-1].class_index("train").pixel_counts[:, 2]
    assert border.tolist() == [BORDER_PIXELS] * 18


def test_stray_value_is_told_with_its_sample(small_pets):
    pets = open_pets(small_pets, void=())
    message = (
        r"labels of sample '\w+_1\d\d.jpg' of split 'train' cannot be used \(values "
        r"and colours must be those of the config, got 3 \(\d+ px\); set values, "
    )
    with pytest.raises(BadSampleError, match=message):
        pets.source("train")[0]
    with pytest.raises(BadSampleError, match=message):
        pets.class_index("train")


def test_damaged_record_file_is_told(small_pets):
    pets = open_pets(small_pets)
    (path,) = (small_pets / "oxford_iiit_pet/4.0.0").glob("*-test.array_record*")
    data = path.read_bytes()
    path.write_bytes(data[:4000] + bytes([data[4000] ^ 1]) + data[4001:])
    source = pets.source("test")
    with pytest.raises(SeglossError, match=r"sample \d of split 'test' cannot be read"):
        list(map(source.__getitem__, range(4)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"builder": "oxford_iit_pet"}, "nearest names are oxford_iiit_pet"),
        ({"builder": "oxford_iiit_pet/big"}, "BuilderConfig big not found"),
        ({"builder": "oxford_iiit_pet:1.0.0"}, "cannot be loaded at version 1.0.0"),
        ({"builder": "pets/x/y"}, "Parsing builder name string pets/x/y failed"),
        ({"builder": str(ROOT)}, "or a directory with dataset_info.json such as"),
        ({"builder": "../pets"}, r"such as .*, got '../pets'; correct it"),
        (
            {"image": "picture"},
            "image must name a feature, got 'picture'; there are im",
        ),
        ({"labels": "label"}, "labels must name an image, got 'label', a ClassLabel"),
        ({"class_names": ()}, "'segmentation_mask' does not name its classes"),
        ({"num_classes": 3}, "must be the number of class_names, 2, got 3"),
        ({"class_names": (), "num_classes": 0}, "be 1..65534 classes, got 0"),
        ({"values": (1, 2)}, "label_offset must be 0 with values, got -1"),
        ({"label_offset": 0, "values": (1,)}, "one value per class, 2, got 1"),
        ({"label_offset": 0, "values": (1, 1)}, "values must differ"),
        ({"label_offset": 1}, "stored values must be in 0..65535, got -1"),
        (
            {"void": (2, 3)},
            "void value 2 must not be a class, got class 1 'background'",
        ),
        ({"train": "tain"}, r"train='tain' is no split; there are train \(20\), test"),
        ({"val": "train[:0]"}, r"val='train\[:0\]' holds no sample"),
        (
            {"train": "train[:90%]", "val": "train[80%:]"},
            r"must not share samples, got 2 in both",
        ),
        ({"train": "train+test"}, "test='test' must not share samples, got 4 in both"),
    ],
)
def test_faults_are_refused_in_one_line(small_pets, change, message):
    if "train" not in change:
        change = {"train": "train[:90%]"} | change
    with pytest.raises(SeglossError, match=message) as caught:
        open_pets(small_pets, **change)
    assert "\n" not in str(caught.value)


def test_archives_are_downloaded(small_pets, tmp_path, monkeypatch):
    (tmp_path / "served").mkdir()
    for path in (small_pets / "downloads/oxford_iiit_pet").glob("*.gz"):
        name = "images" if "images" in path.name else "annotations"
        shutil.copy(path, tmp_path / f"served/{name}.tar.gz")
    handler = functools.partial(
        http.server.SimpleHTTPRequestHandler, directory=tmp_path / "served"
    )
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(oxford_iiit_pet_dataset_builder, "_BASE_URL", url)
        pets = open_pets(tmp_path / "fresh")
        server.shutdown()
    assert len(pets.source("train")) == 18
    assert len([*(tmp_path / "fresh/downloads").rglob("*.INFO")]) == 2


def test_val_may_be_test_with_a_warning(small_pets):
    with pytest.warns(UserWarning, match="val='test' and test='test' must not share"):
        assert open_pets(small_pets, val="test").splits == ("train", "val", "test")


def test_folder_that_is_a_file_is_told(tmp_path, small_pets):
    (small_pets / "oxford_iiit_pet").touch()
    with pytest.raises(SeglossError, match="oxford_iiit_pet cannot be prepared: "):
        open_pets(small_pets)


def test_from_archives_to_predictions(small_pets, tmp_path):
    """What `python run.py --config=configs/tfds.py` and its other modes call."""
    config = configs.tfds.get_config("smoke").unlock()
    config.data.data_dir = str(small_pets)
    results = train(config, tmp_path / "run")
    assert results["step"] == 2
    stored = read_config(tmp_path / "run")
    (images,) = small_pets.glob("downloads/extracted/*/images")
    (labels,) = small_pets.glob("downloads/extracted/*/annotations")
    test_images = tmp_path / "test/images"
    test_images.mkdir(parents=True)
    (tmp_path / "test/labels").mkdir()
    for line in (labels / "test.txt").read_text().splitlines():
        stem = line.split()[0]
        shutil.copy(images / f"{stem}.jpg", test_images)
        trimap = np.asarray(Image.open(labels / f"trimaps/{stem}.png"))
        of_classes = np.array([0, 0, 1, 255], np.uint8)[trimap]
        Image.fromarray(of_classes).save(tmp_path / f"test/labels/{stem}.png")
    (tmp_path / "test/classes.txt").write_text("0 pet\n1 background\n")
    # The same images through TFDS and as files have the same scores.
    evaluated = evaluate_run(stored, tmp_path / "run", split="test")
    (predicted,) = predict(stored, tmp_path / "run", test_images)
    assert evaluated["step"] == 2
    assert predicted.scores["summary"] == evaluated["summary"]
    assert len([*(tmp_path / "run").rglob("indices/*.png")]) == 4
