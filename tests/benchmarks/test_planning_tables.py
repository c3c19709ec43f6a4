from benchmarks.planning import index_table, sampler_table

# Per sample: 84 bytes on disk, 8 in memory, 40 at the peak of planning.
SMALL = dict(
    disk=84_000_000,
    packed_mib=8e6 / 2**20,
    opening=0.002,
    packing=0.5,
    setup=1.0,
    seen=2e6,
    lookup=3e-6,
    mib=60e6 / 2**20,
)
LARGE = SMALL | dict(
    disk=840_000_000,
    packed_mib=8e7 / 2**20,
    packing=4.0,
    setup=9.0,
    mib=400e6 / 2**20,
)
MEASURED = {10**6: {"random": SMALL}, 10**7: {"random": LARGE}}


def rows(table):
    return list(zip(*(column.cells for column in table.columns), strict=True))


def test_index_is_extrapolated_from_the_largest():
    assert rows(index_table(MEASURED, 10**9)) == [
        ("1,000,000", "0.08", "0.01", "2.0", "0.5"),
        ("10,000,000", "0.84", "0.08", "2.0", "4.0"),
        ("1,000,000,000, extrapolated", "84.00", "8.00", "", "400.0"),
    ]


def test_samplers_are_extrapolated_from_the_largest():
    (row,) = rows(sampler_table(MEASURED, 10**9))
    assert row == (
        *("random", "60", "40"),
        *("9.0", "5.0", "0.40"),
        *("900.0", "500.0", "40.00"),
        "3.0",
    )
