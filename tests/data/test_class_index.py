import numpy as np
import pytest

from segloss.data.class_index import ClassIndex

# Two samples of classes 0 to 2 with void 255; the second lacks class 1.
SOURCE = [
    {"labels": np.array([[0, 0, 1], [2, 255, 0]], np.uint8), "stem": "first"},
    {"labels": np.array([[2, 2], [0, 255]], np.uint8), "stem": "second"},
]
COUNTS = [[3, 1, 1], [1, 0, 2]]


def build(source=SOURCE, num_classes=3, ignore_label=255):
    return ClassIndex.build(
        source,
        num_classes=num_classes,
        ignore_label=ignore_label,
        fingerprint="c0ffee",
    )


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "index.npy"
    build().save(path)
    return path


def test_counts_labelled_pixels_per_sample(capsys):
    index = build()
    np.testing.assert_array_equal(index.pixel_counts, COUNTS)
    assert index.pixel_counts.dtype == np.int32
    assert capsys.readouterr() == ("", "")


def test_ignore_label_that_is_a_class_counts_for_nothing():
    np.testing.assert_array_equal(
        build(SOURCE[:1], num_classes=256, ignore_label=0).pixel_counts[0, :3],
        [0, 1, 1],
    )


def test_presence_asks_for_a_number_of_pixels():
    index = build()
    np.testing.assert_array_equal(index.presence(), [[1, 1, 1], [1, 0, 1]])
    np.testing.assert_array_equal(index.presence(2), [[1, 0, 0], [0, 0, 1]])
    with pytest.raises(ValueError, match=r"min_pixels must be >= 1, got 0"):
        index.presence(0)


def test_stray_label_names_the_sample():
    with pytest.raises(ValueError, match=r"labels of first must be < 2 .* got \[2\]"):
        build(num_classes=2)


def test_loaded_index_maps_the_file(saved):
    index = ClassIndex.load(saved, "c0ffee")
    assert isinstance(index.pixel_counts, np.memmap)
    np.testing.assert_array_equal(index.pixel_counts, COUNTS)
    np.testing.assert_array_equal(np.load(saved), COUNTS)
    assert ClassIndex.load(saved).fingerprint == "c0ffee"


def test_index_of_other_data_is_refused(saved):
    with pytest.raises(ValueError, match=r"index\.npy .* c0ffee, .* decade; delete it"):
        ClassIndex.load(saved, "decade")


@pytest.mark.parametrize("kept_bytes", [0, 4, 60, 130, -20, -1])
def test_truncated_index_is_refused(saved, kept_bytes):
    saved.write_bytes(saved.read_bytes()[:kept_bytes])
    with pytest.raises(ValueError, match=r"index\.npy is damaged .* delete it"):
        ClassIndex.load(saved)


def test_save_leaves_nothing_but_the_index(saved, tmp_path):
    build(SOURCE[:1]).save(saved)
    assert len(ClassIndex.load(saved).pixel_counts) == 1
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        build().save(tmp_path / "taken")
    assert sorted(tmp_path.iterdir()) == [saved, tmp_path / "taken"]
