import inspect
import math

import jax.numpy as jnp
import pytest

from segloss.losses import check

LOGITS = jnp.zeros((2, 4, 5, 3))
LABELS = jnp.zeros((2, 4, 5), jnp.int32)

# As users call it, without the tests' own checking of types.
check_arrays = inspect.unwrap(check.check_arrays)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ((LOGITS, LABELS[0]), r"labels must have shape \(2, 4, 5\) for .* \(4, 5\)"),
        ((LOGITS, LABELS[..., None]), r"labels must have shape .* got \(2, 4, 5, 1\)"),
        ((LOGITS, LABELS * 1.0), "labels must be integer, got float32"),
        ((LOGITS, LABELS, LABELS), "valid must be bool, got int32"),
        (
            (LOGITS, LABELS, LABELS[:, :, :4] == 0),
            r"valid must be broadcastable to labels \(2, 4, 5\), got \(2, 4, 4\)",
        ),
        ((LOGITS, LABELS, LABELS[None] == 0), "valid must be broadcastable"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arrays, message):
    with pytest.raises(ValueError, match=f"^tversky: {message}"):
        check_arrays("tversky", *arrays, *[None] * (3 - len(arrays)))


def test_multi_label_refuses_class_ids():
    with pytest.raises(ValueError, match="labels must be float or bool, got int32"):
        check_arrays(
            "tversky", LOGITS, LOGITS.astype(jnp.int32), None, multi_label=True
        )


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ((-0.5, 0), r"in \[0, inf\), got -0.5\."),
        ((math.inf, 0), r"in \[0, inf\), got inf\."),
        ((math.nan, 0, 1), r"in \[0, 1\], got nan\."),
        ((1.5, 0, 1), r"in \[0, 1\], got 1.5\."),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, rule):
    with pytest.raises(ValueError, match=f"^focal_loss: gamma must be {rule}$"):
        check.check_range("focal_loss", "gamma", *arguments)


def test_what_is_no_number_is_refused():
    for value in ("2", None, True, [1]):
        with pytest.raises(ValueError, match=r"^f: x must be a number, got "):
            inspect.unwrap(check.check_range)("f", "x", value, 0)
    with pytest.raises(ValueError, match=r"^f: x must be an integer, got 2\.5\.$"):
        check.check_range("f", "x", 2.5, 0, whole=True)


def test_a_range_may_go_without_its_low_end():
    check.check_range("f", "x", 0, 0)
    check.check_range("f", "x", 1, 0, 1, without_low=True)
    with pytest.raises(ValueError, match=r"^f: x must be in \(0, 1\], got 0\.$"):
        check.check_range("f", "x", 0, 0, 1, without_low=True)
