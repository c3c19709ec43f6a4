import jax
import pytest

from benchmarks.chips import Compiled
from benchmarks.compiled_bars import missed_bars
from benchmarks.compiled_cases import Case, make_cases
from benchmarks.compiled_tables import Measured, loss_table, variant_table, wanted
from benchmarks.loss_rows import make_rows

SHAPE = (2, 8, 8, 3)
CASES = make_cases(SHAPE, ["bfloat16"])


@pytest.mark.parametrize("key", CASES, ids=" ".join)
def test_ours_takes_the_inputs_of_its_case(key):
    case = CASES[key]
    outputs = jax.eval_shape(case.candidates["ours"], *case.inputs)
    assert jax.tree.leaves(outputs)
    assert case.plain is None or (key[0], case.plain) in CASES


def test_every_row_is_a_case():
    assert {("bfloat16", name) for name in make_rows(3)} <= CASES.keys()


def test_floor_of_a_loss_and_of_a_metric():
    # Logits of 2 bytes and labels of 4 for 3 of them: 2 reads of both, 1 write.
    entropy = CASES["bfloat16", "softmax_cross_entropy"]
    assert entropy.unit_bytes == 2 * 8 * 8 * 3 * 2
    assert entropy.floor_bytes / entropy.unit_bytes == pytest.approx(3 + 2 * 4 / 6)
    # Masks of 4 bytes for each logit; all is read once.
    sigmoid = CASES["bfloat16", "sigmoid_cross_entropy"]
    assert sigmoid.floor_bytes / sigmoid.unit_bytes == 2 + 2
    confusion = CASES["uint8", "confusion_matrix"]
    assert confusion.floor_bytes == confusion.unit_bytes == 2 * 2 * 8 * 8


def case(plain=None, floor_bytes=300):
    return Case({"ours": print, "textbook": print}, (), 100, floor_bytes, plain)


def compiled(traffic, temporaries=0, seconds=1.0, loops=0):
    return Compiled(traffic, temporaries, seconds, loops)


CE, DICE, VARIANT = "softmax_cross_entropy", "soft_dice", "soft_dice + soft labels"
FEW = {
    ("float32", CE): Case({"optax": print}, (), 100, 300),
    ("float32", DICE): case(),
    ("float32", VARIANT): case(DICE, 600),
    ("bfloat16", DICE): case(),
}
RESULTS = {
    ("float32", CE, "optax"): compiled(6200, seconds=2.0),
    ("float32", DICE, "ours"): compiled(730, 40, seconds=5.0),
    ("float32", DICE, "textbook"): compiled(720),
    # Twice the floor, so that 1.3 * 2 * 7.30 = 18.98 may be moved.
    ("float32", VARIANT, "ours"): compiled(1900),
    ("bfloat16", DICE, "ours"): compiled(730, loops=1),
    ("bfloat16", DICE, "textbook"): compiled(700),
}


@pytest.mark.parametrize(
    ("chip", "key", "missed"),
    [
        (
            "v5e",
            ("float32", DICE),
            ["traffic 7.30 > 7.20", "temporaries 0.40 > 0.10", "compile s 5.00 > 4.00"],
        ),
        (
            "h100",
            ("float32", DICE),
            ["traffic 7.30 > 5.40", "temporaries 0.40 > 0.35", "compile s 5.00 > 4.00"],
        ),
        ("v5e", ("float32", VARIANT), ["traffic, plain 19.00 > 18.98"]),
        ("v5e", ("bfloat16", DICE), ["traffic, textbook 7.30 > 7.00"]),
    ],
)
def test_bars_that_are_missed(chip, key, missed):
    assert missed_bars(chip, key, FEW, RESULTS) == missed


def test_what_bars_refer_to_is_measured_too():
    picked = {("float32", VARIANT): FEW["float32", VARIANT]}
    assert wanted(picked, FEW) == [
        ("float32", VARIANT, "ours"),
        ("float32", VARIANT, "textbook"),
        ("float32", CE, "optax"),
        ("float32", DICE, "ours"),
    ]


def cells(table):
    return list(zip(*(column.cells for column in table.columns), strict=True))


def test_tables_have_the_figures_of_each_chip():
    failures = {("bfloat16", DICE, "ours"): "out of memory"}
    of_chips = {
        "v5e": Measured("v5e", RESULTS, {}, ""),
        "h100": Measured("h100", {}, failures, ""),
    }
    picked = {key: FEW[key] for key in FEW if key[1] != CE}
    plain = cells(loss_table(of_chips, picked, FEW))
    assert [row[:3] for row in plain] == [
        ("TPU v5e", "float32", DICE),
        ("TPU v5e", "bfloat16", DICE),
        ("H100", "bfloat16", DICE),
    ]
    assert plain[0][3:-1] == (
        *("3.00", "7.30", "7.20", "", ""),
        *("0.40", "0.00", "", ""),
        *("5.0", "2.5"),
    )
    assert plain[1][4] == "more than 7.30"
    assert plain[2][4:] == (*[""] * 10, "no: does not compile")
    assert cells(variant_table(of_chips, picked, FEW)) == [
        (
            *("float32", VARIANT, "19.00", "2.60", "0.00", "", "", ""),
            "no: TPU v5e traffic, plain 19.00 > 18.98",
        )
    ]
