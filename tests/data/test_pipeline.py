import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segloss.data import (
    DATASETS,
    BadSampleError,
    BalanceBatch,
    InOrder,
    Loading,
    RandomBatch,
    Windows,
    iterate_batches,
    load_batch,
    open_dataset,
    signed_distances,
)
from segloss.data.datasets.builder import (
    Sample,
    SegmentationBuilder,
    SegmentationConfig,
    Shard,
    encode_png,
)
from segloss.data.loading import batches as loading_batches


class Source(list):
    """Samples of growing size; sample i is filled with i."""

    split = "train"

    def __init__(self, n):
        super().__init__(
            {
                "image": np.full((4 + i, 6, 3), i, np.uint8),
                "labels": np.full((4 + i, 6), i % 3, np.uint8),
                "stem": f"s{i}",
            }
            for i in range(n)
        )
        self.read = []

    def __getitem__(self, i):
        self.read.append(i)
        return super().__getitem__(i)


def test_batch_lies_on_a_canvas_with_the_rest_not_valid():
    loading = Loading(canvas_hw=(8, 7), ignore_label=255)
    batch = load_batch(Source(4), np.array([3, 1]), loading, batch_size=3)
    assert batch["images"].shape == (3, 8, 7, 3)
    np.testing.assert_array_equal(batch["images"][0, :7, :6], 3)
    np.testing.assert_array_equal(batch["images"][1, 5:], [[(124, 116, 104)] * 7] * 3)
    np.testing.assert_array_equal(batch["labels"][1, :5, :6], 1)
    assert batch["valid"].sum(axis=(1, 2)).tolist() == [7 * 6, 5 * 6, 0]
    assert batch["sample_valid"].tolist() == [True, True, False]
    assert batch["hw"].tolist() == [[7, 6], [5, 6], [8, 7]]


def test_distances_are_computed_on_request_and_placed_on_the_canvas(monkeypatch):
    source = Source(4)
    for i in range(4):
        source[i]["labels"][1:, i:] = 255 if i == 1 else 2
    sampler = InOrder(np.array([3, 1, 2]), batch_max=3)
    (batch,) = batches(source, sampler, stop=1, num_devices=4, distances=True)
    distances = batch["distances"]
    assert distances.shape == (4, 16, 6, 3)
    for row, i in enumerate([3, 1, 2]):
        labels = source[i]["labels"]
        expected = signed_distances(labels, labels != 255, num_classes=3)
        np.testing.assert_array_equal(distances[row, : 4 + i], expected)
        assert not distances[row, 4 + i :].any()
    assert (distances[0] < 0).any()
    assert not distances[3].any()

    monkeypatch.delattr(loading_batches, "signed_distances")
    (plain,) = batches(source, sampler, stop=1, num_devices=4)
    assert batch.keys() - plain.keys() == {"distances"}
    for key in plain:
        np.testing.assert_array_equal(plain[key], batch[key])


SOUND = Sample(
    stem="sound",
    image=encode_png(Image.new("RGB", (6, 4), (9, 8, 7))),
    labels=encode_png(Image.new("L", (6, 4), 2)),
    hw=(4, 6),
)
BAD = {
    "cut": dict(image=SOUND.image[:-30]),
    "empty": dict(image=b""),
    "unlabelled": dict(labels=b"no PNG"),
    "grey": dict(image=encode_png(Image.new("L", (6, 4)))),
    "narrow": dict(image=encode_png(Image.new("RGB", (5, 4)))),
    "stray": dict(labels=encode_png(Image.new("L", (6, 4), 3))),
}


class Spoilt(SegmentationBuilder, skip_registration=True):
    """A sound sample, then bad ones, as when files change once they were checked."""

    def shards(self):
        bad = [dataclasses.replace(SOUND, stem=k, **part) for k, part in BAD.items()]
        return {"train": [Shard(1 + len(bad), lambda: [SOUND, *bad])]}


@pytest.fixture
def spoilt(tmp_path, monkeypatch):
    def make(*, data_dir):
        config = SegmentationConfig(
            name="few", class_names=("a", "b", "c"), ignore_label=255
        )
        return Spoilt(data_dir=data_dir, config=config)

    monkeypatch.setitem(DATASETS, "spoilt", make)
    return open_dataset("spoilt", data_dir=tmp_path).source("train")


@pytest.mark.parametrize(
    ("i", "message"),
    [
        (1, "image of sample 'cut' of split 'train' cannot be used"),
        (2, "image of sample 'empty' of split 'train' cannot be used"),
        (3, "labels of sample 'unlabelled' of split 'train' cannot be used"),
        (4, r"'grey' of split 'train' must be RGB .* labels \(4, 6\), got \(4, 6\)"),
        (5, r"'narrow' .* match its labels \(4, 6\), got \(4, 5, 3\)"),
        (6, r"'stray' of split 'train' has labels \[3\]; must be < 3 or 255"),
    ],
)
def test_bad_sample_is_named_in_one_line(spoilt, i, message):
    order = InOrder(np.array([0, i]), batch_max=2)
    with pytest.raises(BadSampleError, match=message) as raised:
        batches(spoilt, order, stop=1)
    assert "\n" not in str(raised.value)


def test_bad_samples_are_skipped_where_asked_for_and_told_once(spoilt):
    order = InOrder(np.array([1, 0, 6, 0, 0, 0, 6]), batch_max=4)
    options = dict(stop=2, distances=True, on_bad_sample="skip")
    with pytest.warns(UserWarning, match="skipped") as told:
        first, second = batches(spoilt, order, **options)
    assert [str(w.message).split("'")[1] for w in told] == ["cut", "stray"]
    assert str(told[-1].message).endswith("It is skipped; bad samples so far: 2.")
    assert first["sample_valid"].tolist() == [False, True, False, True]
    assert first["sample_skipped"].tolist() == [True, False, True, False]
    assert second["sample_valid"].tolist() == [True, True, False, False]
    # The last row is padding.
    assert second["sample_skipped"].tolist() == [False, False, True, False]
    assert not first["images"][::2].any()
    assert (first["labels"][2] == 255).all()
    assert not first["valid"][::2].any()
    assert not first["distances"][::2].any()
    assert (first["images"][1, :4] == [9, 8, 7]).all()


def test_a_file_that_is_no_image_is_told_once(spoilt):
    order = InOrder(np.array([2, 2, 2, 2]), batch_max=1)
    with pytest.warns(UserWarning, match="skipped") as told:
        batches(spoilt, order, stop=4, on_bad_sample="skip")
    assert len(told) == 1
    assert "bad samples so far: 1" in str(told[0].message)


def test_what_to_do_with_bad_samples_is_checked():
    order = InOrder(np.arange(2), batch_max=2)
    with pytest.raises(ValueError, match="must be 'raise' or 'skip', got 'drop'"):
        batches(Source(2), order, on_bad_sample="drop")


@pytest.mark.parametrize("sampler", [RandomBatch, BalanceBatch])
def test_fewer_samples_than_a_batch_may_hold_make_batches_of_them_all(sampler):
    options = dict(batch_cl=2) if sampler is BalanceBatch else {}
    chosen = sampler(np.eye(2, dtype=bool), batch_max=5, **options)
    for batch in batches(Source(2), chosen, stop=3):
        assert batch["sample_valid"].tolist() == [True, True, False, False, False]
        assert sorted(batch["images"][:2, 0, 0, 0]) == [0, 1]


def test_window_larger_than_the_canvas_is_named():
    windows = Windows(crop_hw=(7, 6), scales=(1.0,))
    loading = Loading(canvas_hw=(6, 6), ignore_label=255, windows=windows)
    with pytest.raises(ValueError, match=r"'s3' .* window of 7x6, larger than .* 6x6"):
        load_batch(Source(4), np.array([3]), loading, batch_size=1)


def test_a_sampler_without_owed_classes_is_refused_if_windows_keep_them():
    windows = Windows(crop_hw=(4, 4), keep_classes=True)
    order = InOrder(np.arange(2), batch_max=2)
    with pytest.raises(ValueError, match="method `owed`, which InOrder lacks"):
        batches(Source(2), order, windows=windows)


def test_image_larger_than_the_canvas_is_named():
    loading = Loading(canvas_hw=(6, 6), ignore_label=255)
    with pytest.raises(ValueError, match=r"'s3' .* is 7x6, larger than the canvas 6x6"):
        load_batch(Source(4), np.array([3]), loading, batch_size=1)


def batches(source, sampler, **kwargs):
    """The batches as a list; the arguments are those of `iterate_batches`."""
    options = dict(start=0, stop=5, num_devices=1) | kwargs
    where = {
        name: options.pop(name)
        for name in ("start", "stop", "num_devices", "process_index", "process_count")
        if name in options
    }
    loading = Loading(
        **dict(canvas_hw=(16, 6), ignore_label=255, num_classes=3) | options
    )
    return list(iterate_batches(source, sampler, loading, **where))


class Shrinking:
    """Batches of three samples, of one, and so on."""

    batch_max = 3

    def __getitem__(self, k):
        return np.array([2, 3, 1] if k % 2 == 0 else [0])


def test_padding_is_clean_though_memory_is_used_again():
    source, sampler = Source(4), Shrinking()
    loading = Loading(canvas_hw=(16, 6), ignore_label=255)
    chosen = dict(start=0, stop=40, num_devices=1)
    seen = set()
    for k, batch in enumerate(iterate_batches(source, sampler, loading, **chosen)):
        seen.add(batch["images"].__array_interface__["data"][0])
        fresh = load_batch(source, sampler[k], loading, batch_size=3)
        for name, array in batch.items():
            np.testing.assert_array_equal(array, fresh[name], err_msg=f"{k} {name}")
        with pytest.raises(ValueError, match="read-only"):
            batch["images"][2] = 9
    assert len(seen) < 40


@pytest.mark.parametrize(
    "reading",
    [
        dict(num_threads=4),
        dict(num_threads=4, prefetch_batches=0),
        dict(num_workers=2, num_threads=1),
    ],
    ids=["threads", "not_ahead", "workers"],
)
def test_batches_and_those_of_a_resumed_run_do_not_depend_on_who_reads(reading):
    sampler = BalanceBatch(
        np.eye(3, dtype=bool)[np.arange(10) % 3], batch_cl=2, batch_max=4
    )
    whole = batches(Source(10), sampler, stop=12, num_threads=0)
    assert len({batch["sample_valid"].sum() for batch in whole}) > 1
    rest = batches(Source(10), sampler, start=5, stop=12, **reading)
    assert len(rest) == 7
    for a, b in zip(whole[5:], rest, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])
    assert not multiprocessing.active_children()


# Reads in workers without end, until it is killed.
KILLED = """
import os, signal
import numpy as np
from segloss.data import Loading, RandomBatch, iterate_batches

class Source:
    split = "train"

    def __len__(self):
        return 4

    def __getitem__(self, i):
        pixels = np.zeros((8, 8), np.uint8)
        return {"image": np.stack([pixels] * 3, -1), "labels": pixels, "stem": str(i)}

if __name__ == "__main__":
    loading = Loading(canvas_hw=(8, 8), ignore_label=255, num_workers=2)
    sampler = RandomBatch(np.ones((4, 1), bool), batch_max=2)
    where = dict(start=0, stop=10**9, num_devices=1)
    for batch in iterate_batches(Source(), sampler, loading, **where):
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_of_a_killed_process_end():
    # It returns once nobody holds its output open any more.
    done = subprocess.run(
        [sys.executable, "-c", KILLED],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


class Fatal(Source):
    """Ends the process that reads its last sample."""

    def __getitem__(self, i):
        if i == len(self) - 1:
            time.sleep(1)  # what was read before is on its way
            os._exit(9)
        return super().__getitem__(i)


def test_bad_samples_and_dead_workers_are_named():
    bad = Source(6)
    bad[4]["labels"][0, 0] = 9
    sampler = InOrder(np.arange(6), batch_max=1)
    options = dict(stop=6, num_workers=1)
    with pytest.raises(BadSampleError, match="'s4' of split 'train' has labels"):
        batches(bad, sampler, **options)
    with pytest.raises(ChildProcessError, match="fewer num_workers"):
        batches(Fatal(6), sampler, **options)


def test_only_what_the_sampler_chose_is_read():
    source = Source(10)
    sampler = RandomBatch(np.ones((10, 1), bool), batch_max=3)
    batches(source, sampler, stop=3)
    assert sorted(source.read) == sorted(np.concatenate([sampler[k] for k in range(3)]))


def test_processes_share_the_rows_of_the_global_batch():
    sampler = RandomBatch(np.ones((10, 1), bool), batch_max=5)
    whole = batches(Source(10), sampler, num_devices=4)
    sources = [Source(10), Source(10)]
    halves = [
        batches(source, sampler, num_devices=4, process_index=p, process_count=2)
        for p, source in enumerate(sources)
    ]
    # A process opens the samples of its four rows, and no others.
    for p, source in enumerate(sources):
        rows = [sampler[k][4 * p : 4 * p + 4] for k in range(5)]
        assert sorted(source.read) == sorted(np.concatenate(rows))
    for k, batch in enumerate(whole):
        assert batch["images"].shape[0] == 8
        assert batch["sample_valid"].sum() == 5
        for key in batch:
            joined = np.concatenate([half[k][key] for half in halves])
            np.testing.assert_array_equal(joined, batch[key])


def test_rows_that_processes_cannot_share_equally_are_refused():
    sampler = RandomBatch(np.ones((10, 1), bool), batch_max=5)
    message = "the 6 rows of a batch on 3 devices must be a multiple of the 4 processes"
    with pytest.raises(ValueError, match=message):
        batches(Source(10), sampler, num_devices=3, process_count=4)


def test_in_order_reads_each_sample_once():
    sampler = InOrder(np.arange(10), batch_max=4)
    assert [sampler[k].tolist() for k in range(len(sampler))] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9],
    ]
