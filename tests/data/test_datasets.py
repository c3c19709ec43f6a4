import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import registered

from segloss.data.datasets.dataset import DATASETS, open_dataset
from segloss.data.datasets.folder import Folder
from segloss.data.datasets.longtail_scenes import LongtailScenes

TINY = {"train": 6, "val": 3, "image_hw": (40, 64)}


@pytest.fixture(scope="module")
def tiny(datasets_dir):
    return open_dataset("longtail_scenes", **TINY, data_dir=datasets_dir)


def records(dataset):
    files = sorted(dataset.data_dir.glob("*.array_record*"))
    return [(path.name, path.stat().st_mtime_ns) for path in files]


def test_dataset_says_what_it_is(tiny):
    assert (tiny.name, tiny.splits) == ("longtail_scenes", ("train", "val"))
    assert (tiny.num_classes, len(tiny.class_names)) == (21, 21)
    assert (tiny.ignore_label, tiny.max_hw) == (255, (40, 64))
    assert (len(tiny.source("train")), len(tiny.source("val"))) == (6, 3)


def test_source_gives_image_labels_and_stem(tiny):
    sample = tiny.source("train")[np.int64(5)]
    assert {key: getattr(value, "shape", value) for key, value in sample.items()} == {
        "image": (40, 64, 3),
        "labels": (40, 64),
        "stem": "train_00005",
    }
    assert sample["image"].dtype == sample["labels"].dtype == np.uint8


def test_opened_image_is_decoded_where_it_is_sliced(tiny):
    source = tiny.source("train")
    whole, opened = source[4], source.opened(np.int64(4))
    assert opened["image"].shape == whole["image"].shape
    for part in [np.s_[3:9, 10:64], np.s_[:, 5:6], np.s_[:40, :64]]:
        np.testing.assert_array_equal(opened["image"][part], whole["image"][part])
    np.testing.assert_array_equal(opened["labels"], whole["labels"])


def test_source_survives_pickling(tiny):
    source = tiny.source("val")
    copy = pickle.loads(pickle.dumps(source))
    assert len(copy) == 3
    np.testing.assert_array_equal(copy[1]["image"], source[1]["image"])


def test_source_without_images_decodes_none(tiny):
    source = tiny.source("val", images=False)
    assert source[0].keys() == source.opened(0).keys() == {"labels", "stem"}


def test_source_knows_the_size_of_labels(tiny):
    source = tiny.source("train")
    assert source.label_hw(np.int64(5)) == source[5]["labels"].shape == (40, 64)


@pytest.mark.parametrize("i", [-1, 3])
def test_source_refuses_what_it_does_not_hold(tiny, i):
    with pytest.raises(IndexError, match=rf"must be in \[0, 3\), got {i}"):
        tiny.source("val")[i]


def cut_between_blocks(data):
    return data[: len(data) // 2]


def cut(data):
    return data[:-10]


def empty(data):
    return b""


def flip_a_bit(data):
    return data[:4000] + bytes([data[4000] ^ 1]) + data[4001:]


@pytest.mark.parametrize("spoil", [cut_between_blocks, cut, flip_a_bit, empty])
def test_damaged_file_is_told_in_one_line(tmp_path, spoil):
    dataset = open_dataset("longtail_scenes", **TINY, data_dir=tmp_path)
    (path,) = dataset.data_dir.glob("*-train.array_record*")
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match=r"sample \d of split 'train' cannot be read"):
        list(dataset.source("train"))


def test_unknown_split_lists_the_known(tiny):
    with pytest.raises(ValueError, match=r"named 'test'; known are train, val"):
        tiny.source("test")
    with pytest.raises(ValueError, match=r"named 'test'; known are train, val"):
        tiny.class_index("test")


@pytest.mark.parametrize(
    ("name", "hyperparameters", "message"),
    [
        ("voc", {}, "'voc'; known are camvid, folder, longtail_scenes"),
        ("folder", {"path": "x"}, "'path'; known are root, ignore_label, image_suffix"),
        ("folder", {}, "needs the hyperparameter 'root'"),
    ],
)
def test_unknown_names_list_the_known(name, hyperparameters, message):
    with pytest.raises(ValueError, match=message):
        open_dataset(name, **hyperparameters)


def test_second_opening_is_silent_and_writes_nothing(tiny, capfd):
    before = records(tiny)
    assert open_dataset("longtail_scenes", **TINY, data_dir=tiny.data_dir.parents[2])
    assert records(tiny) == before
    assert capfd.readouterr() == ("", "")


def test_first_opening_is_silent_off_a_terminal(tmp_path, capfd):
    open_dataset("longtail_scenes", **TINY, data_dir=tmp_path).class_index("train")
    assert capfd.readouterr() == ("", "")


def test_two_may_prepare_at_once(tmp_path):
    with ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(open_dataset, "longtail_scenes", **TINY, data_dir=tmp_path)
            for _ in range(2)
        ]
    assert jobs[0].result() == jobs[1].result()


def test_failure_to_write_is_reported(tmp_path):
    (tmp_path / "longtail_scenes").touch()
    with pytest.raises(OSError, match="longtail_scenes"):
        open_dataset("longtail_scenes", **TINY, data_dir=tmp_path)


def test_class_index_follows_the_source(tiny):
    source = tiny.source("train")
    expected = [
        np.bincount(source[i]["labels"].ravel(), minlength=256)[:21]
        for i in range(len(source))
    ]
    np.testing.assert_array_equal(tiny.class_index("train").pixel_counts, expected)


def test_class_index_is_kept_and_made_again_for_other_data(tiny, tmp_path):
    index = tiny.class_index("val")
    assert isinstance(index.pixel_counts, np.memmap)
    assert index.fingerprint == tiny.fingerprint
    other = open_dataset("longtail_scenes", **TINY, seed=1, data_dir=tmp_path)
    index.save(other.data_dir / "class_index-val.npy")
    whose = f"{tiny.fingerprint}.*{other.fingerprint}.*made again"
    with pytest.warns(UserWarning, match=whose):
        again = other.class_index("val")
    assert again.fingerprint == other.fingerprint


def test_fingerprint_depends_on_the_data_alone(tiny, tmp_path):
    moved = open_dataset("longtail_scenes", **TINY, data_dir=tmp_path)
    other = open_dataset("longtail_scenes", **TINY, seed=1, data_dir=tmp_path)
    assert moved.data_dir != tiny.data_dir
    assert moved.fingerprint == tiny.fingerprint != other.fingerprint
    assert moved.data_dir != other.data_dir


def test_plain_tfds_reads_the_dataset(tiny):
    builder = tfds.builder_from_directory(str(tiny.data_dir))
    metadata = builder.info.metadata
    assert metadata["class_names"] == list(tiny.class_names)
    assert (metadata["ignore_label"], metadata["max_hw"]) == (255, [40, 64])
    sample = builder.as_data_source("val")[2]
    ours = tiny.source("val")[2]
    np.testing.assert_array_equal(sample["image"], ours["image"])
    np.testing.assert_array_equal(sample["labels"][..., 0], ours["labels"])


def test_builders_stay_out_of_the_registry_of_tfds():
    names = {Folder.name, LongtailScenes.name, *DATASETS}
    assert not names & registered._DATASET_REGISTRY.keys()


def test_builder_is_not_prepared_by_being_made(tmp_path):
    builder = DATASETS["longtail_scenes"](**TINY, data_dir=tmp_path)
    assert not Path(builder.data_dir).exists()
