"""Predicts class ids: of whole images or in windows, at several scales, mirrored."""

import fractions
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Num, Real, UInt

from segloss.config import Inference
from segloss.data import round_up
from segloss.data.augment import normalize
from segloss.data.bands import RGB, Bands, class_dtype


def predict_labels(
    variables: dict[str, Any],
    images: Real[Array, "b h w n"],
    hw: Int[Array, "b 2"],
    *,
    model: nn.Module,
    inference: Inference,
    bands: Bands = RGB,
) -> UInt[Array, "b h w"]:
    """Predicts the class id of each pixel.

    Args:
        variables: the variables of the model.
        images: stored values, padded at the bottom and on the right.
        hw: height and width of each image without its padding; class ids outside are
            meaningless.
        model: returns logits at the size of its input.
        inference: scales, flip and windows to use.
        bands: the bands of the images.

    Returns:
        Class ids, uint8, or uint16 if the model has more than 256 classes.
    """
    return _most_likely(_score(variables, images, hw, model, inference, bands))


def predict_labels_and_probs(
    variables: dict[str, Any],
    images: Real[Array, "b h w n"],
    hw: Int[Array, "b 2"],
    *,
    model: nn.Module,
    inference: Inference,
    bands: Bands = RGB,
) -> tuple[UInt[Array, "b h w"], Float[Array, "b h w c"]]:
    """Predicts the class id of each pixel, and the probability of every class.

    The arguments and the class ids are those of `predict_labels`. The probabilities of
    a pixel are in [0, 1] and their sum is 1; a network with a single logit has two
    classes here. Several scales, windows and the mirrored image are averaged.
    """
    scores = _score(variables, images, hw, model, inference, bands)
    if _is_one_look(inference):
        return _most_likely(scores), jax.nn.softmax(scores)
    return _most_likely(scores), scores / scores.sum(axis=-1, keepdims=True)


def _is_one_look(inference: Inference) -> bool:
    return len(inference.scales) == 1 and not inference.flip


def _score(
    variables: dict[str, Any],
    images: Real[Array, "b h w n"],
    hw: Int[Array, "b 2"],
    model: nn.Module,
    inference: Inference,
    bands: Bands,
) -> Float[Array, "b h w c"]:
    """Returns scores: logits of a single look, else the sum of all probabilities."""

    def forward(images):
        return of_each_class(model.apply(variables, images, train=False))

    look = functools.partial(_look, forward, hw=hw, inference=inference, bands=bands)
    if _is_one_look(inference):
        return look(images, scale=inference.scales[0])

    def sum_of_probs(images):
        return sum(jax.nn.softmax(look(images, scale=s)) for s in inference.scales)

    if not inference.flip:
        return sum_of_probs(images)
    widths = hw[:, 1]
    # `map` compiles the network once for both.
    seen, mirrored = lax.map(sum_of_probs, jnp.stack([images, _mirror(images, widths)]))
    return seen + _mirror(mirrored, widths)


def of_each_class(logits: Float[Array, "*b c"]) -> Float[Array, "*b c2"]:
    """Expands a single logit, that of class 1, to logits of two classes.

    The softmax of the result gives class 1 the sigmoid of the single logit. Two or more
    logits are returned unchanged.
    """
    if logits.shape[-1] > 1:
        return logits
    return jnp.concatenate([jnp.zeros_like(logits), logits], axis=-1)


def window_starts(size: int, window: int, stride: int) -> list[int]:
    """Returns the first pixel of each window along a side of `size` pixels.

    Windows of `window` pixels start every `stride` pixels; the last ends at the border.
    """
    last = max(0, size - window)
    return [*range(0, last, stride), last]


def _look(
    forward: Callable,
    images: Real[Array, "b h w n"],
    *,
    hw: Int[Array, "b 2"],
    scale: float | int,
    inference: Inference,
    bands: Bands,
) -> Float[Array, "b h w c"]:
    """Predicts images at one scale; returns scores at the size of `images`.

    `forward` maps normalised images to logits. `hw` is the height and width of each
    image without its padding. The softmax of the scores gives the probabilities.
    """
    if scale == 1:
        return _in_windows(forward, normalize(images, bands), inference)
    canvas_hw = images.shape[1:3]
    scaled_hw = _scale(hw, scale)
    scaled_canvas_hw = round_up(
        tuple(_scale(n, scale) for n in canvas_hw), inference.size_multiple
    )
    scaled = _resize(images.astype(jnp.float32), hw, scaled_hw, scaled_canvas_hw)
    inside = jax.vmap(functools.partial(_inside, canvas_hw=scaled_canvas_hw))(scaled_hw)
    pad = jnp.array(bands.pad, jnp.float32).reshape(1, 1, 1, -1)
    scaled = jnp.where(inside[..., None], scaled, pad)
    logits = _in_windows(forward, normalize(scaled / bands.unit, bands), inference)
    return _resize(logits, scaled_hw, hw, canvas_hw)


def _in_windows(
    forward: Callable, images: Float[Array, "b h w n"], inference: Inference
) -> Float[Array, "b h w c"]:
    """Predicts normalised images in the windows of `inference`.

    Returns the logits of `forward` if one window covers the images, else the logarithm
    of the probabilities, averaged where windows overlap.
    """
    if inference.window_hw is None:
        return forward(images)
    b, *hw, _ = images.shape
    window_hw = tuple(map(min, hw, inference.window_hw))
    if window_hw == tuple(hw):
        return forward(images)
    starts = [
        window_starts(n, window, max(1, round(window * inference.window_stride)))
        for n, window in zip(hw, window_hw, strict=True)
    ]
    shape = (b, *window_hw, images.shape[-1])
    num_classes = jax.eval_shape(forward, jax.ShapeDtypeStruct(shape, images.dtype))

    def add(total, corner):
        at = (0, *corner, 0)
        probs = jax.nn.softmax(forward(lax.dynamic_slice(images, at, shape)))
        here = lax.dynamic_slice(total, at, probs.shape)
        return lax.dynamic_update_slice(total, here + probs, at), None

    total, _ = lax.scan(
        add,
        jnp.zeros((b, *hw, num_classes.shape[-1])),
        jnp.array(list(itertools.product(*starts))),
    )
    for axis, (n, window) in enumerate(zip(hw, window_hw, strict=True), start=1):
        pixel = jnp.arange(n)[:, None] - jnp.array(starts[axis - 1])[None]
        windows = ((pixel >= 0) & (pixel < window)).sum(axis=1)
        total /= jnp.expand_dims(windows, [a for a in range(4) if a != axis])
    # Probabilities may underflow to 0, and interpolating -infinity gives NaN.
    return jnp.log(jnp.maximum(total, jnp.finfo(total.dtype).tiny))


def _scale(size: Any, scale: float | int) -> Any:
    """Scales a size in pixels and rounds it to an integer.

    Rounds to the nearest; for scales below 1/2 it rounds up more, so at least one pixel
    is left. `size` may be an int, an integer array or a symbolic size of `jax.export`.
    """
    ratio = fractions.Fraction(scale).limit_denominator(1000)
    p, q = ratio.numerator, ratio.denominator
    return (2 * p * size + max(q, 2 * (q - p))) // (2 * q)


def _resize(
    images: Float[Array, "b _ _ c"],
    hw: Int[Array, "b 2"],
    to_hw: Int[Array, "b 2"],
    canvas_hw: tuple[Any, Any],
) -> Float[Array, "b _ _ c"]:
    """Resizes the upper left `hw` pixels of each image to `to_hw`, bilinearly.

    The result has the size `canvas_hw` and is meaningless outside of `to_hw`. Pixels
    outside of `hw` have no influence. The corners are not aligned, as with torch's
    `align_corners=False`.
    """

    def one(image, hw, to_hw):
        for axis, size in enumerate(canvas_hw):
            last = hw[axis] - 1
            place = (jnp.arange(size) + 0.5) * hw[axis] / to_hw[axis] - 0.5
            place = jnp.clip(place, 0, last)
            low = jnp.floor(place).astype(jnp.int32)
            share = jnp.expand_dims(place - low, [1 - axis, 2])
            below, above = (
                jnp.take(image, index, axis=axis)
                for index in (low, jnp.minimum(low + 1, last))
            )
            image = (1 - share) * below + share * above
        return image

    return jax.vmap(one)(images, hw, to_hw)


def _inside(hw: Int[Array, "2"], canvas_hw: tuple[Any, Any]) -> Bool[Array, "h w"]:
    rows, columns = (
        jnp.arange(n) < size for n, size in zip(canvas_hw, hw, strict=True)
    )
    return rows[:, None] & columns[None]


def _mirror(
    images: Num[Array, "b h w c"], widths: Int[Array, " b"]
) -> Num[Array, "b h w c"]:
    """Mirrors the first `widths` columns of each image; the others stay in place."""
    columns, widths = jnp.arange(images.shape[2])[None], widths[:, None]
    source = jnp.where(columns < widths, widths - 1 - columns, columns)
    return jnp.take_along_axis(images, source[:, None, :, None], axis=2)


def _most_likely(scores: Float[Array, "b h w c"]) -> UInt[Array, "b h w"]:
    return jnp.argmax(scores, axis=-1).astype(class_dtype(scores.shape[-1]))
