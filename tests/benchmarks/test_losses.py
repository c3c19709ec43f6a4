import jax
import numpy as np
import pytest
from absl import app

from benchmarks.candidates import COPY, OURS, Candidate
from benchmarks.loss_rows import input_shapes, make_inputs, make_rows, pick
from benchmarks.losses import loss_table

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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_input_shapes_are_those_of_the_inputs(dtype):
    def struct(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype)

    shapes = input_shapes(SHAPE, dtype)
    assert shapes.keys() == INPUTS.keys()
    for kind, (logits, labels) in INPUTS.items():
        inputs = (logits.astype(dtype), labels)
        assert jax.tree.map(struct, inputs) == shapes[kind]


def test_table_gives_ratios_and_names_the_bars_missed():
    # The floor is twice the copy, 2 ms; the fastest peer takes 5 ms.
    keys = [("float32", "a", name) for name in (OURS, "slow", "quick")]
    memory = [1.5, 1.25, 2.0]
    candidates = {
        key: Candidate(print, size, 400) for key, size in zip(keys, memory, strict=True)
    }
    candidates[COPY] = Candidate(print, None, 200)
    candidates["float32", "b", OURS] = Candidate(print, 0.0, 400)
    seconds = dict(zip(keys, ([0.01] * 2, [0.02] * 2, [0.005] * 2), strict=True))
    seconds |= {COPY: [0.001] * 2, ("float32", "b", OURS): [0.004] * 2}
    table = loss_table(["a", "b"], ["float32"], candidates, seconds)
    cells = [list(column.cells) for column in table.columns]
    a, b = zip(*cells, strict=True)
    assert a == (
        "float32",
        "a",
        "10",
        "2",
        "5.00 (5.00 to 5.00)",
        "1.50",
        "quick 2.00 (2.00 to 2.00)",
        "slow 1.25",
        "no: quick 2.00 > 1.05; memory 1.50 > 1.25",
    )
    assert b[-3:] == ("", "", "yes")


def test_pick_takes_what_matches():
    assert pick({"a": 1, "b": 2, "ca": 3}, "^a|b") == {"a": 1, "b": 2}
    with pytest.raises(app.UsageError, match="--only=d picks none of a, b"):
        pick({"a": 1, "b": 2}, "d")
