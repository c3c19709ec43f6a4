import numpy as np
import pytest

from segloss.data import (
    InOrder,
    RandomBatch,
    iterate_batches,
    load_batch,
    pipeline,
    signed_distances,
)
from segloss.data.augment import PAD_RGB


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
    batch = load_batch(
        Source(4), np.array([3, 1]), batch_size=3, canvas_hw=(8, 7), ignore_label=255
    )
    assert batch["images"].shape == (3, 8, 7, 3)
    np.testing.assert_array_equal(batch["images"][0, :7, :6], 3)
    np.testing.assert_array_equal(batch["images"][1, 5:], [[PAD_RGB] * 7] * 3)
    np.testing.assert_array_equal(batch["labels"][1, :5, :6], 1)
    assert batch["valid"].sum(axis=(1, 2)).tolist() == [7 * 6, 5 * 6, 0]
    assert batch["sample_valid"].tolist() == [True, True, False]


def test_distances_are_made_where_asked_for_and_lie_on_the_canvas(monkeypatch):
    source = Source(4)
    for i in range(4):
        source[i]["labels"][1:, i:] = 255 if i == 1 else 2
    sampler = InOrder(np.array([3, 1, 2]), batch_max=3)
    (batch,) = batches(source, sampler, stop=1, num_devices=4, distance_classes=3)
    distances = batch["distances"]
    assert distances.shape == (4, 16, 6, 3)
    for row, i in enumerate([3, 1, 2]):
        labels = source[i]["labels"]
        expected = signed_distances(labels, labels != 255, num_classes=3)
        np.testing.assert_array_equal(distances[row, : 4 + i], expected)
        assert not distances[row, 4 + i :].any()
    assert (distances[0] < 0).any()
    assert not distances[3].any()

    monkeypatch.delattr(pipeline, "signed_distances")
    (plain,) = batches(source, sampler, stop=1, num_devices=4)
    assert batch.keys() - plain.keys() == {"distances"}
    for key in plain:
        np.testing.assert_array_equal(plain[key], batch[key])


def test_image_larger_than_the_canvas_is_named():
    with pytest.raises(ValueError, match="'s3' is 7x6, larger than the canvas 6x6"):
        load_batch(
            Source(4), np.array([3]), batch_size=1, canvas_hw=(6, 6), ignore_label=255
        )


def batches(source, sampler, **kwargs):
    options = dict(start=0, stop=5, num_devices=1, canvas_hw=(16, 6), ignore_label=255)
    return list(iterate_batches(source, sampler, **options | kwargs))


def test_resuming_gives_the_batches_that_would_have_come():
    sampler = RandomBatch(np.ones((10, 1), bool), batch_max=3)
    whole = batches(Source(10), sampler, num_threads=4)
    rest = batches(Source(10), sampler, start=2, num_threads=0, prefetch_batches=0)
    assert len(rest) == 3
    for a, b in zip(whole[2:], rest, strict=True):
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def test_only_what_the_sampler_chose_is_read():
    source = Source(10)
    sampler = RandomBatch(np.ones((10, 1), bool), batch_max=3)
    batches(source, sampler, stop=3)
    assert sorted(source.read) == sorted(np.concatenate([sampler[k] for k in range(3)]))


def test_processes_share_the_rows_of_the_global_batch():
    sampler = RandomBatch(np.ones((10, 1), bool), batch_max=5)
    whole = batches(Source(10), sampler, num_devices=4)
    halves = [
        batches(Source(10), sampler, num_devices=4, process_index=p, process_count=2)
        for p in range(2)
    ]
    for k, batch in enumerate(whole):
        assert batch["images"].shape[0] == 8
        assert batch["sample_valid"].sum() == 5
        for key in batch:
            joined = np.concatenate([half[k][key] for half in halves])
            np.testing.assert_array_equal(joined, batch[key])


def test_in_order_reads_each_sample_once():
    sampler = InOrder(np.arange(10), batch_max=4)
    assert [sampler[k].tolist() for k in range(len(sampler))] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9],
    ]
