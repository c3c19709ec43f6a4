import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from segloss.data.class_index import ClassIndex, LabelCounter

ROOT = Path(__file__).parents[2]

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


@pytest.mark.parametrize(
    ("labels", "got"),
    [
        (np.zeros((2, 3), np.int32), r"int32 \[2, 3\]"),
        (np.zeros((2, 3, 1), np.uint8), r"uint8 \[2, 3, 1\]"),
    ],
)
def test_labels_of_the_wrong_type_are_an_error_naming_the_sample(labels, got):
    with pytest.raises(
        ValueError, match=rf"of odd must be uint8 or uint16 \[h, w\], got {got}"
    ):
        build([{"labels": labels, "stem": "odd"}])


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


@pytest.mark.parametrize(
    ("counts", "shape", "message"),
    [
        (np.array(COUNTS, np.int64), None, r"must hold int32 .*, got int64 \[2, 3\]"),
        (np.zeros(6, np.int32), None, r"must hold int32 .*, got int32 \[6\]"),
        (np.array([[{}]]), None, "is damaged"),
        (np.array(COUNTS, np.int32), (3, 3), "count 3 samples of 3 .* got 2 of 3"),
        (np.array(COUNTS, np.int32), (2, 4), "count 2 samples of 4 .* got 2 of 3"),
    ],
)
def test_index_that_does_not_fit_is_refused_in_a_line(saved, counts, shape, message):
    np.save(saved, counts)
    with saved.open("ab") as file:
        file.write(b"\nsegloss class index of c0ffee\n")
    with pytest.raises(ValueError, match=rf"index\.npy .*{message}.*; delete it") as e:
        ClassIndex.load(saved, "c0ffee", shape)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("content", [b"{}", b"PK\3\4", b"\x93NUMPY\1\0\2\0[]"])
def test_file_that_is_no_index_is_refused(saved, content):
    saved.write_bytes(content)
    with pytest.raises(ValueError, match=r"index\.npy is damaged .* delete it"):
        ClassIndex.load(saved)


def test_a_flipped_bit_anywhere_is_noticed(saved):
    whole = saved.read_bytes()
    message = "is damaged|must count|must hold|belongs to dataset .* delete it"
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        saved.write_bytes(flipped)
        with pytest.raises(ValueError, match=message) as refused:
            ClassIndex.load(saved, "c0ffee", (2, 3))
        assert "\n" not in str(refused.value)
    changed = bytearray(whole)
    changed[whole.index(b"\nsegloss") - 4] ^= 4  # a count
    saved.write_bytes(changed)
    message = r"is damaged \(its contents have changed since .* written\); delete it"
    with pytest.raises(ValueError, match=message):
        ClassIndex.load(saved)


def test_index_of_an_earlier_version_has_no_digest(saved):
    whole = saved.read_bytes()
    saved.write_bytes(whole[: whole.index(b"\nSHA-256")] + b"\n")
    index = ClassIndex.load(saved, "c0ffee", (2, 3))
    np.testing.assert_array_equal(index.pixel_counts, COUNTS)


def test_save_leaves_nothing_but_the_index(saved, tmp_path):
    build(SOURCE[:1]).save(saved)
    assert len(ClassIndex.load(saved).pixel_counts) == 1
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        build().save(tmp_path / "taken")
    assert sorted(tmp_path.iterdir()) == [saved, tmp_path / "taken"]


class Numbered:
    """300 samples, so 3 parts: sample i is 6 px of class i % 3, and one of void."""

    def __init__(self, stuck_from=300):
        self.stuck_from = stuck_from
        self.read = []

    def __len__(self):
        return 300

    def __getitem__(self, i):
        self.read.append(i)
        if i >= self.stuck_from:
            time.sleep(600)
        return {"labels": np.array([[i % 3] * 6 + [255]], np.uint8), "stem": str(i)}


NUMBERED_COUNTS = 6 * np.tile(np.eye(3, dtype=int), (100, 1))


def counter(parts_dir, source=None):
    return LabelCounter(source or Numbered(), 3, 255, "c0ffee", parts_dir)


# The second part is never done.
KILLED = """
import pathlib, sys
sys.path.insert(0, "tests/data")
from test_class_index import Numbered, counter
counter(pathlib.Path(sys.argv[1]), Numbered(stuck_from=130)).count()
"""


def test_killed_count_resumes_where_it_stopped(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", KILLED, tmp_path], cwd=ROOT)
    while not (tmp_path / "0.npy").exists():
        assert child.poll() is None
        time.sleep(0.01)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == ["0.npy"]
    source = Numbered()
    np.testing.assert_array_equal(counter(tmp_path, source).count(), NUMBERED_COUNTS)
    assert sorted(source.read) == list(range(128, 300))


def test_part_that_is_damaged_or_of_other_data_is_counted_again(tmp_path):
    counter(tmp_path).count()
    (tmp_path / "0.npy").write_bytes(b"")
    ClassIndex(np.zeros((128, 3), np.int32), "decade").save(tmp_path / "128.npy")
    source = Numbered()
    np.testing.assert_array_equal(counter(tmp_path, source).count(), NUMBERED_COUNTS)
    assert sorted(source.read) == list(range(256))


def test_count_survives_another_process_that_was_faster(tmp_path):
    class Overtaken(Numbered):
        def __getitem__(self, i):
            shutil.rmtree(tmp_path / "parts", ignore_errors=True)
            return super().__getitem__(i)

    counts = counter(tmp_path / "parts", Overtaken()).count()
    np.testing.assert_array_equal(counts, NUMBERED_COUNTS)


@pytest.mark.parametrize(("n", "num_parts"), [(0, 0), (129, 2), (10_000_000, 1000)])
def test_parts_cover_the_split_in_order(n, num_parts):
    parts = LabelCounter(range(n), 3, 255, "c0ffee").parts
    assert len(parts) == num_parts
    edges = [0, *(part.stop for part in parts)]
    assert [part.start for part in parts] == edges[:-1]
    assert edges[-1] == n


def test_presence_of_a_million_samples_takes_the_memory_of_its_result(tmp_path):
    path = tmp_path / "index.npy"
    counts = np.lib.format.open_memmap(path, "w+", np.int32, (1_000_000, 21))
    counts[[0, 999_998, 999_999], 7] = 2, 2, 3
    del counts
    with path.open("ab") as file:
        file.write(b"\nsegloss class index of c0ffee\n")
    tracemalloc.start()
    try:
        presence = ClassIndex.load(path, "c0ffee", (1_000_000, 21)).presence(3)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert np.argwhere(presence).tolist() == [[999_999, 7]]
    assert 21e6 <= peak_bytes < 22e6  # a bool per count, while the file has 84 MB
