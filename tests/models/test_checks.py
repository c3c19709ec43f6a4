from segloss.models.checks import are_counts


def test_counts_are_a_sequence_of_numbers_from_1_on():
    assert are_counts((3, 1))
    assert are_counts([3, 1], 2)
    assert not any(map(are_counts, (5, (), (3, 0))))
    assert not are_counts((3, 1), 3)
