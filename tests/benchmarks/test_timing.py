import pytest

from benchmarks.timing import interleave, ratio


def test_interleave_takes_turns_and_leaves_the_first_round_out():
    now, calls = [0.0], []

    def candidate(name, durations):
        durations = iter(durations)

        def call():
            calls.append(name)
            now[0] += next(durations)

        return call

    candidates = {"a": candidate("a", [90, 1, 2]), "b": candidate("b", [90, 4, 6])}
    seconds = interleave(candidates, 2, clock=lambda: now[0])
    assert seconds == {"a": [1, 2], "b": [4, 6]}
    assert "".join(calls) == "baabba"
    assert ratio(seconds["b"], seconds["a"]) == (3.5, 3, 4)


def test_interleave_refuses_no_rounds():
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        interleave({}, 0)
