import numpy as np
import pytest

from benchmarks.loaders import (
    AHEAD,
    InMemory,
    Measured,
    OfSizes,
    Pair,
    Stopwatch,
    by_discarding,
    by_sampler,
    read_until_enough,
    reads_of_discarding,
)
from segloss.data import BalanceBatch, Loading, RandomBatch

# Six samples hold class 0 alone, two all of 0, 1 and 2; void is 255.
PRESENCE = np.array([[True, False, False]] * 6 + [[True] * 3] * 2)
LOADING = Loading(canvas_hw=(2, 3), ignore_label=255)


def source():
    def sample(i):
        labels = np.zeros((2, 3), np.uint8)
        labels[0] = [0, 1, 2] if i >= 6 else 255
        return {"image": np.full((2, 3, 3), i, np.uint8), "labels": labels, "stem": ""}

    return InMemory(map(sample, range(8)))


@pytest.mark.parametrize("seed", range(5))
def test_discarding_stops_at_enough_classes_and_starts_again_without(seed):
    samples = read_until_enough(source(), Pair(2, 3), 255, seed)
    held = [len({*np.unique(x["labels"])} - {255}) for x in samples]
    assert held in ([3], [1, 3])


def test_reads_of_discarding_are_those_of_a_sum_by_hand():
    # Of 4 attempts with one sample 1 is kept; no sample holds 4 classes.
    assert reads_of_discarding(PRESENCE, Pair(1, 3)) == pytest.approx(4, rel=0.1)
    assert reads_of_discarding(PRESENCE, Pair(2, 1)) == 1
    assert reads_of_discarding(PRESENCE, Pair(2, 4)) == float("inf")


def test_loaders_bring_the_same_images_and_count_what_they_read():
    balanced = BalanceBatch(PRESENCE, batch_cl=3, batch_max=2)
    random = RandomBatch(PRESENCE, batch_max=2)
    index = by_sampler(source(), balanced, 5, LOADING)
    same = by_sampler(source(), OfSizes(random, balanced), 5, LOADING)
    discard = by_discarding(source(), Pair(2, 3), 5, LOADING)
    for loader in (index, same, discard):
        loader.run(Stopwatch())
    sizes = [len(balanced[k]) for k in range(1 + 5 + AHEAD)]
    assert index.timed_images == same.timed_images == sum(sizes[1:6])
    assert index.reads_per_image == same.reads_per_image == 1
    assert len(index.source.read) == sum(sizes)
    assert discard.reads_per_image > 1


def test_bars_that_are_missed_are_named():
    # 10 ms an image by index, 8 ms at random: 0.8 of its speed.
    measured = Measured(
        mean_size=2.0,
        images={"index": 100, "random": 50},
        seconds={"index": [1.0] * 3, "random": [0.4] * 3},
        reads={"index": 1.5, "discard": 3.0},
        start_seconds=0.0,
        planning_seconds=0.0002,
    )
    assert measured.missed() == [
        "decoded 1.50 > 1",
        "random 0.80 < 0.9",
        "planning 2.0% > 1%",
    ]
    assert measured.speed_over("torch") is None
