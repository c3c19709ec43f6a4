"""Losses, metrics and layers that `benchmarks.compiled` compiles."""

import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import layer_rows, textbook
from benchmarks.loss_rows import Row, input_shapes, make_rows
from segloss import losses, metrics

OURS, TEXTBOOK, OPTAX, KERAS = "ours", "textbook", "optax", "keras"
CROSS_ENTROPY = "softmax_cross_entropy"


class Case(NamedTuple):
    """A loss, a metric or a layer to compile.

    Attributes:
        candidates: functions to compile: "ours", and those to compare with, such as
            "textbook", "optax" and "keras".
        inputs: trees of shapes and dtypes, one for each argument.
        unit_bytes: bytes of the logits, of a metric's inputs or of a layer's input;
            figures are multiples of it.
        floor_bytes: least number of bytes that must be read and written.
        plain: name of the case of which this is a variant, such as another option; None
            if it is no variant.
        is_loss: False for a metric and a layer.
    """

    candidates: Mapping[str, Callable]
    inputs: tuple[Any, ...]
    unit_bytes: int
    floor_bytes: int
    plain: str | None = None
    is_loss: bool = True


Key = tuple[str, str]  # dtype and name

# The gradient of an element depends only on its logit, its label and label sums.
_ELEMENTWISE = frozenset(
    ("sigmoid_cross_entropy", "gated_sigmoid_cross_entropy", "sigmoid_focal_loss")
)
_OF_MASKS = _ELEMENTWISE | {"normalized_sigmoid_cross_entropy"}

VARIED = (
    CROSS_ENTROPY,
    "focal_loss",
    "poly_loss",
    "sigmoid_cross_entropy",
    "soft_dice",
    "soft_iou",
    "tversky",
    "generalized_dice",
)


def make_cases(shape: tuple[int, ...], dtypes: list[str]) -> dict[Key, Case]:
    """Returns the cases of every loss and its variants, of metrics and layers.

    `shape` and `dtypes` are those of the logits; the last axis holds the classes.
    """
    cases = {}
    for dtype in dtypes:
        named = loss_cases(shape, dtype) | variants(shape, dtype)
        cases |= {(dtype, name): case for name, case in named.items()}
    return cases | metric_cases(shape) | layer_cases(dtypes)


def loss_cases(shape: tuple[int, ...], dtype: str) -> dict[str, Case]:
    """Returns a case for each row of `benchmarks.losses`, with its textbook formula."""
    shapes = input_shapes(shape, dtype)
    cases = {}
    for name, row in make_rows(shape[-1]).items():
        known = textbook.TEXTBOOK.get(name)
        candidates = {OURS: row.loss} | ({TEXTBOOK: known} if known else {})
        cases[name] = _loss_case(name, candidates | row.peers, shapes[row.inputs])
    return cases


def _loss_case(
    name: str,
    candidates: Mapping[str, Callable],
    inputs: tuple[Any, ...],
    plain: str | None = None,
) -> Case:
    logits, labels = _num_bytes(inputs[0]), _num_bytes(inputs[1:])
    # The first pass computes sums over classes or pixels, the second writes the
    # gradient. Each pass reads the logits and the labels.
    logit_reads = 1 if (plain or name) in _OF_MASKS else 2
    label_reads = 1 if (plain or name) in _ELEMENTWISE else 2
    return Case(
        {who: jax.value_and_grad(loss) for who, loss in candidates.items()},
        inputs,
        logits,
        (logit_reads + 1) * logits + label_reads * labels,
        plain,
    )


def _num_bytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def variants(shape: tuple[int, ...], dtype: str) -> dict[str, Case]:
    """Returns variants of some losses, such as "soft_dice + 3d".

    They have one or three spatial axes, or an option.
    """
    batch, *spatial, classes = shape
    pixels = math.prod(spatial)
    side = round(pixels ** (1 / 3))
    cases = {}
    for name in VARIED:
        row = make_rows(classes)[name]
        of_volume = (batch, side, side, side, classes)
        for axes, other in ((1, (batch, pixels, classes)), (3, of_volume)):
            inputs = input_shapes(other, dtype)[row.inputs]
            cases[f"{name} + {axes}d"] = _loss_case(
                name, {OURS: row.loss}, inputs, plain=name
            )
        for option, (loss, inputs) in _options(name, row, shape, dtype):
            cases[f"{name} + {option}"] = _loss_case(
                name, {OURS: loss}, inputs, plain=name
            )
    return cases


def _options(
    name: str, row: Row, shape: tuple[int, ...], dtype: str
) -> Iterator[tuple[str, tuple[Callable, tuple[Any, ...]]]]:
    """Yields each option of the loss `name`, with the loss and the inputs for it."""
    known = inspect.signature(losses.LOSSES[name]).parameters
    shapes = input_shapes(shape, dtype)
    logits, labels = shapes[row.inputs]
    masks = row.inputs == "tags"
    valid = jax.ShapeDtypeStruct((*shape[:-1], *([1] if masks else [])), jnp.bool_)
    yield "void", (row.loss, (logits, labels, valid))
    weights = np.arange(1, 1 + shape[-1], dtype=np.float32)
    for option, value in dict(
        class_weights=weights,
        pos_weight=weights,
        label_smoothing=0.1,
        smooth=1.0,
        per_image=True,
    ).items():
        if option in known:
            loss = functools.partial(row.loss, **{option: value})
            yield option, (loss, (logits, labels))
    if "multi_label" in known:
        loss = functools.partial(row.loss, multi_label=True)
        yield "multi_label", (loss, shapes["tags"])
    if "pixel_weights" in known:
        reals = jax.ShapeDtypeStruct(labels.shape, jnp.float32)
        yield "pixel_weights", (_with_pixel_weights(row.loss), (logits, labels, reals))
    if not masks and _takes(row.loss, shapes["tags"]):
        yield "soft labels", (row.loss, shapes["tags"])


def _with_pixel_weights(loss: Callable) -> Callable:
    return lambda logits, labels, weights: loss(logits, labels, pixel_weights=weights)


def _takes(loss: Callable, inputs: tuple[Any, ...]) -> bool:
    try:
        jax.eval_shape(loss, *inputs)
    except ValueError:
        return False
    return True


def metric_cases(shape: tuple[int, ...]) -> dict[Key, Case]:
    """Returns cases for the counts that the metrics compute on the device."""
    *pixels, classes = shape
    of_classes = dict(num_classes=classes)
    ids = jax.ShapeDtypeStruct(tuple(pixels), jnp.int32)
    small = jax.ShapeDtypeStruct(tuple(pixels), jnp.uint8)
    valid = jax.ShapeDtypeStruct(tuple(pixels), jnp.bool_)
    logits = jax.ShapeDtypeStruct(shape, jnp.float32)
    confusion = functools.partial(metrics.confusion_matrix, **of_classes)
    boundary = functools.partial(metrics.boundary_confusion, **of_classes)
    known = {TEXTBOOK: functools.partial(textbook.confusion, **of_classes)}
    calls = {
        ("int32", "confusion_matrix"): ({OURS: confusion} | known, (ids, ids)),
        ("int32", "confusion_matrix void"): ({OURS: confusion}, (ids, ids, valid)),
        ("int32", "confusion_matrix per image"): (
            {OURS: jax.vmap(confusion)},
            (ids, ids),
        ),
        ("uint8", "confusion_matrix"): ({OURS: confusion} | known, (small, small)),
        ("int32", "boundary_confusion"): ({OURS: boundary}, (ids, ids)),
        ("float32", "calibration_counts"): (
            {OURS: metrics.calibration_counts},
            (logits, ids),
        ),
    }
    return {
        key: Case(
            candidates, inputs, _num_bytes(inputs), _num_bytes(inputs), is_loss=False
        )
        for key, (candidates, inputs) in calls.items()
    }


def layer_cases(dtypes: list[str]) -> dict[Key, Case]:
    """Returns cases for depthwise convolutions, each with both of its gradients.

    The textbook formula is a grouped convolution. The floor reads the input and the
    gradient of the output once, and writes the output and the gradient of the input.
    """
    cases = {}
    for dtype in dtypes:
        for layer in layer_rows.LAYERS:
            known = layer_rows.candidates(layer)
            inputs = layer_rows.input_shapes(layer, dtype)
            images, _, outputs = map(_num_bytes, inputs)
            cases[dtype, f"depthwise {layer}"] = Case(
                {
                    OURS: functools.partial(layer_rows.step, known[layer_rows.OURS]),
                    TEXTBOOK: functools.partial(
                        layer_rows.step, known[layer_rows.GROUPED]
                    ),
                },
                inputs,
                images,
                2 * (images + outputs),
                is_loss=False,
            )
    return cases
