import pytest

from benchmarks.rates import Peak, rate_of, rate_table

# 8 images take 2 s of arithmetic or 4 s of memory traffic.
STEP = dict(batch=8, flops=200.0, traffic_bytes=80.0)
PEAK = Peak(flops=100.0, traffic=20.0, chips_per_host=4)


def test_memory_limits_a_step_that_moves_more_than_it_computes():
    assert rate_of(STEP, PEAK, utilisation=0.25) == (2.0, 1.0)


def test_no_utilisation_is_faster_than_the_limit():
    assert rate_of(STEP, PEAK, utilisation=0.9) == (2.0, 2.0)


@pytest.mark.parametrize(
    ("chip", "chips", "rates"),
    [
        # A v5e takes 0.25 s for 8 images at 40 % of 197 TFLOP/s; a host has 4 of them.
        ("v5e:16x16", 256, ["32", "128", "8192", "1.3"]),
        # One H100 alone, at 40 % of 989 TFLOP/s.
        ("h100", 1, ["161", "161", "161", "1.6"]),
        ("h100:8", 8, ["161", "1285", "1285", "12.9"]),
    ],
)
def test_cores_are_those_that_load_what_the_chips_of_a_host_need(chip, chips, rates):
    step = dict(
        network="unet",
        size=512,
        chip=chip,
        chips=chips,
        hosts=1,
        batch=8,
        flops=0.25 * 0.4 * 197e12,
        traffic_bytes=1e9,
    )
    table = rate_table([step], {"photos": 100.0}, utilisation=0.4)
    row = [next(iter(column.cells)) for column in table.columns]
    assert row[5:] == rates
