import jax
import numpy as np
import pytest

from benchmarks.candidates import COPY, OURS, Candidate
from benchmarks.loss_rows import Row, make_inputs, make_rows
from benchmarks.losses import make_table, pick

SHAPE = (2, 5, 20, 3)
INPUTS = make_inputs(SHAPE)


@pytest.mark.parametrize("row", make_rows(SHAPE[-1]).values(), ids=make_rows(3))
def test_losses_and_peers_take_the_inputs_of_their_row(row):
    inputs = INPUTS[row.inputs]
    assert jax.eval_shape(row.loss, *inputs).shape == ()
    with jax.numpy_rank_promotion("allow"):
        for peer in row.peers.values():
            assert jax.eval_shape(peer, *inputs).shape == ()


def test_inputs_fit_each_other():
    (logits, ids), (_, void) = INPUTS["ids"], INPUTS["void"]
    assert logits.shape == SHAPE
    assert set(np.unique(ids)) <= {0, 1, 2}
    assert (void[void != 255] == ids[void != 255]).all()
    assert (void == 255).any()
    np.testing.assert_array_equal(INPUTS["tags"][1].argmax(-1), ids)


def test_table_gives_ratios_and_names_the_bars_missed():
    # The floor is twice the copy, 2 ms; the fastest peer in JAX takes 5 ms.
    row = Row(lambda x: x, jax_bar=1.0, memory_bar=1.1, own_bar=("b", 5.0))
    other = Row(lambda x: x)
    keys = [("float32", "a", name) for name in (OURS, "slow", "quick", "torch")]
    libraries = ["ours", "jax", "jax", "torch"]
    candidates = {
        key: Candidate(print, library, 1.5, 400)
        for key, library in zip(keys, libraries, strict=True)
    }
    candidates[COPY] = Candidate(print, "ours", None, 200)
    candidates["float32", "b", OURS] = Candidate(print, "ours", 0.0, 400)
    seconds = dict(
        zip(keys, ([0.01] * 2, [0.02] * 2, [0.005] * 2, [0.02] * 2), strict=True)
    )
    seconds |= {COPY: [0.001] * 2, ("float32", "b", OURS): [0.004] * 2}
    table = make_table({"a": row, "b": other}, ["float32"], candidates, seconds)
    cells = [list(column.cells) for column in table.columns]
    a, b = zip(*cells, strict=True)
    assert a == (
        "float32",
        "a",
        "10",
        "2",
        "5.00 (5.00 to 5.00)",
        "1.50",
        "quick 2.00 (2.00 to 2.00), memory 1.50",
        "torch 0.50 (0.50 to 0.50), memory 1.50",
        "no: memory 1.50 > 1.1; quick 2.00 > 1.00",
    )
    assert b[-3:] == ("", "", "yes")


def test_pick_adds_what_a_row_is_measured_against():
    rows = {"a": Row(print, own_bar=("b", 5.0)), "b": Row(print), "c": Row(print)}
    assert list(pick(rows, "^a")) == ["a", "b"]
