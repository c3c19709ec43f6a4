"""Datasets that TFDS prepares from real archives, without TensorFlow."""

import functools
import http.server
import io
import pickle
import re
import shutil
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.utils.lazy_imports_utils import tensorflow as tf
from tensorflow_datasets.datasets.oxford_iiit_pet import oxford_iiit_pet_dataset_builder

import configs.tfds
from segloss.config import read_config
from segloss.data import BadSampleError, Loading, load_batch, open_dataset
from segloss.data.datasets.tfds_stand_ins import stand_ins
from segloss.errors import SeglossError
from segloss.train import train
from segloss.trained import evaluate_run, predict

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


# --- Oxford-IIIT Pet ------------------------------------------------------------


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


# --- Cityscapes: archives that TFDS cannot download, values with gaps ------------

CITYSCAPES = {
    "builder": "cityscapes/semantic_segmentation",
    "image": "image_left",
    "labels": "segmentation_label",
    "class_names": ("road", "sidewalk", "building"),
    "values": (7, 8, 11),
    "void": (0, 3, 255),
}


@pytest.fixture
def street_archives(tmp_path):
    """The two archives of Cityscapes with images of 64x128; the labels have a palette.

    Column 0 is value 0, the others are by thirds 7, 8 and 11.
    """
    labels = np.repeat([[7, 8, 11, 255]], 64, axis=0).repeat(32, axis=1)
    labels = labels.astype(np.uint8)
    labels[:, 0] = 0
    label_image = Image.fromarray(labels)
    label_image.putpalette([*range(256)] * 3)
    folder = tmp_path / "archives"
    folder.mkdir()
    with (
        zipfile.ZipFile(folder / "leftImg8bit_trainvaltest.zip", "w") as images,
        zipfile.ZipFile(folder / "gtFine_trainvaltest.zip", "w") as annotations,
    ):
        for split, count in {"train": 3, "val": 2, "test": 1}.items():
            for k in range(count):
                stem = f"{split}/ulm/ulm_00000{k}_000019"
                image = Image.new("RGB", (128, 64), (k, 90, 180))
                write(images, f"leftImg8bit/{stem}_leftImg8bit.png", image)
                write(annotations, f"gtFine/{stem}_gtFine_labelIds.png", label_image)
    return folder


def write(archive, name, image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    archive.writestr(name, buffer.getvalue())


def test_archives_that_tfds_cannot_download(street_archives, tmp_path):
    streets = open_dataset(
        "tfds",
        **CITYSCAPES,
        manual_dir=str(street_archives),
        data_dir=tmp_path / "tfds",
    )
    sizes = {split: len(streets.source(split)) for split in streets.splits}
    assert sizes == {"train": 3, "val": 2, "test": 1}
    assert streets.max_hw == (64, 128)
    counts = streets.class_index("train").pixel_counts
    assert counts.tolist() == [[31 * 64, 32 * 64, 32 * 64]] * 3
    source = streets.source("train")
    assert sorted(source[i]["stem"] for i in range(3)) == [
        f"ulm_00000{k}_000019" for k in range(3)
    ]
    colours = {tuple(source[i]["image"][5, 5].tolist()) for i in range(3)}
    assert colours == {(k, 90, 180) for k in range(3)}
    batch = load_batch(
        source,
        np.arange(2),
        Loading(canvas_hw=(64, 128), ignore_label=255, num_classes=3),
        batch_size=2,
    )
    assert batch["valid"].sum() == 2 * 95 * 64


def test_archives_that_are_missing_are_told(tmp_path):
    with pytest.raises(SeglossError, match=r"Manual directory .* does not exist") as e:
        open_dataset("tfds", **CITYSCAPES, data_dir=tmp_path)
    assert "leftImg8bit_trainvaltest.zip" in str(e.value)
    assert "\n" not in str(e.value)


# --- Other features, and builders that need more ----------------------------------


class Shapes(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The samples that a test gives; `prepare_shapes` makes it."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None

    def __init__(self, *, features, samples, **options):
        self.given = features, samples
        super().__init__(**options)

    def _info(self):
        features = tfds.features.FeaturesDict(self.given[0])
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield from enumerate(self.given[1])


def prepare_shapes(tmp_path, features, samples, file_format="array_record"):
    builder = Shapes(features=features, samples=samples, data_dir=str(tmp_path))
    with stand_ins():
        builder.download_and_prepare(file_format=file_format)
    return {"builder": builder.data_dir, "train": "train[:1]", "val": "train[1:]"}


def test_classes_that_the_feature_names(tmp_path):
    features = {
        "image": tfds.features.Image(shape=(None, None, 1)),
        "areas": tfds.features.LabeledImage(
            labels=["sea", "land"], shape=(None, None, 1)
        ),
    }
    grey, areas = np.full((4, 6), 9, np.uint8), np.eye(4, 6, dtype=np.uint8)
    sample = {"image": Image.fromarray(grey), "areas": Image.fromarray(areas)}
    shapes = prepare_shapes(tmp_path, features, [sample] * 2)
    maps = open_dataset("tfds", **shapes, labels="areas", data_dir=tmp_path)
    assert maps.class_names == ("sea", "land")
    assert maps.class_index("val").pixel_counts.tolist() == [[20, 4]]
    read = maps.source("train")[0]
    assert read["stem"] == "0"  # no feature names the samples
    np.testing.assert_array_equal(read["labels"], areas)
    np.testing.assert_array_equal(read["image"], np.full((4, 6, 3), 9))


@pytest.mark.parametrize(
    ("shape", "encoding"), [((4, 6), "none"), ((None, None, 1), "zlib")]
)
def test_labels_that_are_a_tensor(tmp_path, shape, encoding):
    tensor = tfds.features.Tensor(shape=shape, dtype=np.int32, encoding=encoding)
    features = {"image": tfds.features.Image(), "labels": tensor}
    labels = np.arange(24, dtype=np.int32).reshape(4, 6) % 3 - 1
    image = Image.new("RGB", (6, 4))
    sample = {"image": image, "labels": labels.reshape(4, 6, *shape[2:])}
    shapes = prepare_shapes(tmp_path, features, [sample] * 2)
    options = {"labels": "labels", "num_classes": 2, "data_dir": tmp_path}
    maps = open_dataset("tfds", **shapes, **options)
    assert maps.class_names == ("class_0", "class_1")
    assert maps.source("val").label_hw(0) == (4, 6)
    with pytest.raises(BadSampleError, match=r"must be in 0..65535, got -1..1;"):
        maps.source("train")[0]


def test_image_with_alpha_is_refused(tmp_path):
    features = {
        "image": tfds.features.Image(shape=(None, None, 4)),
        "segmentation_mask": tfds.features.Image(shape=(None, None, 1)),
    }
    sample = {
        "image": Image.new("RGBA", (6, 4)),
        "segmentation_mask": Image.new("L", (6, 4)),
    }
    shapes = prepare_shapes(tmp_path, features, [sample] * 2)
    maps = open_dataset("tfds", **shapes, num_classes=2, data_dir=tmp_path)
    with pytest.raises(BadSampleError, match="1 or 3 channels, got mode RGBA"):
        maps.source("train")[0]
    maps.source("train", images=False)[0]


def test_labels_that_are_colours_are_refused(tmp_path):
    features = {
        "image": tfds.features.Image(),
        "segmentation_mask": tfds.features.Image(),
    }
    red = Image.new("RGB", (6, 4), (255, 0, 0))
    sample = {"image": red, "segmentation_mask": red}
    shapes = prepare_shapes(tmp_path, features, [sample] * 2)
    maps = open_dataset("tfds", **shapes, num_classes=2, data_dir=tmp_path)
    with pytest.raises(BadSampleError, match="labels of sample '0' of split 'train'"):
        maps.source("train")[0]


class NeedsTensorFlow(Shapes, skip_registration=False):
    """Calls a function of TensorFlow that TFDS does not need."""

    def __init__(self, **options):
        image = tfds.features.Image()
        features = {"image": image, "segmentation_mask": image}
        super().__init__(features=features, samples=[], **options)

    def _generate_examples(self):
        yield 0, {"image": tf.image.resize(np.zeros((2, 2, 3)), (4, 4))}


class NeedsPackage(NeedsTensorFlow, skip_registration=False):
    """Imports a package that is not installed."""

    def _generate_examples(self):
        import package_of_nobody

        yield package_of_nobody


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "needs_tensor_flow",
            r"needs tf.image.resize to be prepared; in an environment with "
            r"tensorflow-datasets and tensorflow, run `tfds build needs_tensor_flow",
        ),
        ("needs_package", "needs package_of_nobody to be prepared"),
    ],
)
def test_what_a_builder_lacks_is_told(tmp_path, name, message):
    with pytest.raises(SeglossError, match=message):
        open_dataset("tfds", builder=name, num_classes=2, data_dir=tmp_path)
    with pytest.raises(ImportError):  # the stand-ins are gone
        tf.io.gfile.exists(tmp_path)
