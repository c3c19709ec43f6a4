"""Builders of TFDS with manual archives, other features or needs of their own."""

import io
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.utils.lazy_imports_utils import tensorflow as tf

from segloss.data import BadSampleError, Loading, load_batch, open_dataset
from segloss.data.datasets.tfds_stand_ins import stand_ins
from segloss.errors import SeglossError

pytestmark = pytest.mark.shared_out

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
