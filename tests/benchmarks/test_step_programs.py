import math

import jax
import numpy as np
import pytest

from benchmarks.step_programs import collectives, lower_step, program_table, ring_bytes


@pytest.fixture(scope="module")
def sums():
    """What two devices sum in a step of a small U-Net."""
    options = dict(size=16, batch=1, depth=1, width=2)
    lowered = lower_step(jax.devices()[:2], "unet", **options)
    result = collectives(lowered.compile().as_text())
    assert result["counts"].keys() == {"all-reduce"}
    return result["num_bytes"]


def test_gradients_of_all_parameters_are_summed_once(sums):
    convolutions = [
        *((3, 3, 3, 2), (3, 3, 2, 2), (3, 3, 2, 4), (3, 3, 4, 4)),
        *((2, 2, 4, 2), (3, 3, 4, 2), (3, 3, 2, 2), (1, 1, 2, 21)),
    ]
    # Scale and bias of each norm; bias of the up-convolution and of the head.
    others = 2 * (2 + 2 + 4 + 4 + 2 + 2) + 2 + 21
    parameters = sum(map(math.prod, convolutions)) + others
    assert sums["gradients"] == 4 * parameters


def test_norms_and_losses_sum_a_few_numbers_per_channel_and_class(sums):
    assert sums.keys() == {"BatchNorm", "gradients", "losses", "metrics"}
    # Sum, sum of squares and the gradients of both.
    channels = 2 + 2 + 4 + 4 + 2 + 2
    assert sums["BatchNorm"] >= 4 * 4 * channels
    assert sums["losses"] < 4 * 21 * 20
    assert sums["metrics"] < 4 * 21 * 2


def test_a_ring_of_one_sends_nothing_and_a_large_one_twice_the_sum():
    assert ring_bytes(100, 1) == 0
    assert ring_bytes(100, 4) == 150
    np.testing.assert_allclose(ring_bytes(100, 1000), 200, rtol=0.01)


def test_table_shows_bytes_on_the_wire_by_what_is_summed():
    sums = dict(
        counts={"all-reduce": 3}, num_bytes=dict(gradients=2_000_000, losses=2_000)
    )
    result = dict(
        network="unet",
        size=512,
        chip="v5e:2x2",
        chips=4,
        hosts=1,
        peak_bytes=9e9,
        flops=9e12,
        traffic_bytes=1e11,
        collectives=sums,
    )
    table = program_table([result])
    row = [next(iter(column.cells)) for column in table.columns]
    assert row[2:] == [
        *("9.00", "9.00", "100.0", "90", "3", "3", "0", "0.003", "1.0e-03"),
    ]
