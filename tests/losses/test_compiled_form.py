"""What makes a loss slow on a TPU or a GPU, found without one.

A gather or scatter by label moves ten to sixty times the bytes of the logits there, and
a reshape of `[..., c]` to `[pixels, c]` pads the classes to 128 lanes.
`python -m benchmarks.compiled` measures what these rules stand for.
"""

import functools

import jax
import jax.numpy as jnp
import pytest

from segloss import losses

LOGITS = jax.ShapeDtypeStruct((2, 16, 24, 5), jnp.float32)
LABELS = jax.ShapeDtypeStruct(LOGITS.shape[:-1], jnp.int32)
MASKS = jax.ShapeDtypeStruct(LOGITS.shape, jnp.float32)
VALID = jax.ShapeDtypeStruct(LOGITS.shape[:-1], bool)
MOVING = {"gather", "scatter", "scatter-add", "scatter_add", "dynamic_slice", "sort"}

CASES = {
    "softmax_cross_entropy": {},
    "softmax_cross_entropy weighted": {"class_weights": (1, 2, 3, 4, 5)},
    "softmax_cross_entropy smoothed": {"label_smoothing": 0.1},
    "focal_loss": {},
    "poly_loss": {},
    "top_k_cross_entropy": {},
    "log_bilinear_loss": {"penalty": jnp.ones((5, 5))},
    "boundary_loss": {"distances": jnp.ones(LOGITS.shape)},
    "soft_dice": {},
    "soft_dice linear": {"denominator": "linear"},
    "soft_dice per image": {"per_image": True},
    "soft_iou": {},
    "tversky": {},
    "focal_tversky": {},
    "generalized_dice": {},
    "log_cosh_dice": {},
    "sigmoid_cross_entropy": {},
    "normalized_sigmoid_cross_entropy": {},
    "gated_sigmoid_cross_entropy": {},
    "sigmoid_focal_loss": {},
}


def value_and_grad(case):
    name = case.split()[0]
    loss = jax.value_and_grad(functools.partial(losses.LOSSES[name], **CASES[case]))
    if "sigmoid" in name:
        return lambda x, t, valid: loss(x, t, valid[..., None]), (LOGITS, MASKS, VALID)
    return loss, (LOGITS, LABELS, VALID)


def equations(jaxpr):
    """Every equation, also those of the functions that it calls."""
    for equation in jaxpr.eqns:
        yield equation
        for parameter in jax.tree.leaves(
            equation.params, is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def found_in(function, arrays):
    """Primitives that move pixels about, and reshapes of arrays with classes."""
    for equation in equations(jax.make_jaxpr(function)(*arrays).jaxpr):
        shapes = [x.aval.shape for x in (*equation.invars, *equation.outvars)]
        large = max((jnp.prod(jnp.array(s, int)) for s in shapes), default=0)
        if large < LABELS.size:
            continue
        name = equation.primitive.name
        if name in MOVING:
            yield name
        if name == "reshape" and any(s[-1:] == LOGITS.shape[-1:] for s in shapes):
            before, after = (tuple(n for n in s if n > 1) for s in shapes[:2])
            if before != after:
                yield f"reshape {before} to {after}"


@pytest.mark.parametrize("case", CASES)
def test_no_loss_moves_pixels_about(case):
    assert list(found_in(*value_and_grad(case))) == []


@pytest.mark.parametrize("case", ["softmax_cross_entropy", "soft_dice"])
def test_its_compiled_program_has_no_gather_or_scatter(case):
    function, arrays = value_and_grad(case)
    program = jax.jit(function).lower(*arrays).compile().as_text()
    assert " gather(" not in program
    assert " scatter(" not in program


@pytest.mark.parametrize(
    ("slow", "found"),
    [
        (lambda x, y, _: jnp.take_along_axis(x, y[..., None], -1).sum(), ["gather"]),
        (lambda x, y, _: jnp.zeros(5).at[y].add(x[..., 0]).sum(), ["scatter-add"]),
        (
            lambda x, y, _: x.reshape(-1, 5).sum(),
            ["reshape (2, 16, 24, 5) to (768, 5)"],
        ),
    ],
)
def test_the_rules_find_what_they_are_for(slow, found):
    assert list(found_in(slow, (LOGITS, LABELS, VALID))) == found
