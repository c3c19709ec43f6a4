"""The Jaccard loss of a set of misclassified pixels, extended to errors of any size.

Berman et al. 2018 (arXiv:1705.08790), Def. 2: the Lovasz extension is `sum_i w_i e_i`,
where `w_i` is what pixel i adds to `1 - intersection / union` when the pixels are taken
to be wrong one by one, by decreasing error `e`. The weights change only where two
errors change places, so the derivatives of `w` are 0.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer, UInt32

from segloss.jitting import jit
from segloss.losses.check import check_arrays, check_choice, check_range
from segloss.losses.numerics import widen
from segloss.losses.reduce import mean_over_classes, sum_over_devices, valid_or_all
from segloss.losses.softmax import one_hot, softmax


@jit("classes", "per_image", "bins", "axis_name")
def lovasz_softmax(
    logits: Float[Array, "b *spatial c"],
    labels: Integer[Array, " b *spatial"],
    valid: Bool[Array, "..."] | None = None,
    *,
    classes: str = "present",
    per_image: bool = False,
    bins: int | None = None,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Lovasz extension of the Jaccard loss of each class, averaged; from 0 to 1.

    The error of a pixel is `1 - p` in the class of its label and `p` in the others:
    Berman et al. 2018 (arXiv:1705.08790), Alg. 1 and its softmax.

    Pixels of equal error share their weights, so that the gradient does not depend on
    the order of the pixels. Of second derivatives only those of the softmax remain.

    Args:
        logits: unnormalised class scores.
        labels: class ids in `[0, c)`; a pixel that is not valid may hold anything. A
            valid pixel whose label is no class makes the loss NaN.
        valid: True where a pixel counts, broadcastable to `labels`; None is all.
        classes: "present" leaves out a class that no label holds; with "all" it costs
            its largest probability.
        per_image: the mean of the loss over the images that hold a valid pixel. Then
            "present" means in the image.
        bins: None sorts the errors. A number, at least 1, takes the errors within each
            of so many equal parts of `[0, 1]` for equal when it weighs them, which is
            much faster. Such weights are a mixture of other orders' weights. Since the
            right order's sum is the largest, and both give the same total weight to
            each part, `exact - 1 / bins <= loss <= exact`. The gradient is that of the
            errors, their weights held fixed.
        axis_name: mapped device axis whose devices share one loss. Without `bins` each
            sorts the errors of all, unless `per_image`.

    Raises:
        ValueError: if `classes` or `bins` is none of the above, or an array's shape or
            type does not fit `logits`.
    """
    name = "lovasz_softmax"
    check_choice(name, "classes", classes, ("all", "present"))
    if bins is not None:
        check_range(name, "bins", bins, 1, whole=True)
    check_arrays(name, logits, labels, valid)

    valid = valid_or_all(labels, valid)
    probs = softmax(logits, labels, valid).probs()
    is_label = one_hot(labels, logits.shape[-1])
    return _mean_extension(
        jnp.where(is_label, 1.0 - probs, probs),
        is_label,
        valid,
        classes=classes,
        per_image=per_image,
        bins=bins,
        axis_name=axis_name,
    )


@jit("per_image", "axis_name")
def lovasz_hinge(
    logits: Float[Array, " b *pixels"],
    labels: Float[Array, " b *pixels"] | Bool[Array, " b *pixels"],
    valid: Bool[Array, "..."] | None = None,
    *,
    per_image: bool = True,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Lovasz extension of the Jaccard loss of the foreground, with hinge errors.

    The error of a pixel is `max(0, 1 - s)` in the foreground and `max(0, 1 + s)` in the
    background, where s is its logit: the Lovasz hinge of Berman et al. 2018
    (arXiv:1705.08790). Without foreground the loss is the largest error.

    Pixels of equal error share their weights. The second derivatives are 0.

    Args:
        logits: scores, positive where foreground is predicted. All axes but the first
            are pixels of one image.
        labels: True or 1 in the foreground, False or 0 elsewhere, in the shape of
            `logits`. A valid pixel with another label makes the loss NaN.
        valid: True where a pixel counts, broadcastable to `labels`; None is all.
        per_image: the mean of the loss over the images that hold a valid pixel; False
            takes the batch for one image.
        axis_name: mapped device axis whose devices share one loss. Each sorts the
            errors of all, unless `per_image`.

    Raises:
        ValueError: if an array's shape or type does not fit `logits`.
    """
    check_arrays("lovasz_hinge", logits, labels, valid, multi_label=True)

    valid = valid_or_all(labels, valid)
    foreground = labels == 1
    scores = jnp.where(valid, widen(logits), 0.0)
    errors = jax.nn.relu(1.0 - jnp.where(foreground, scores, -scores))
    errors = jnp.where(foreground | (labels == 0), errors, jnp.nan)
    return _mean_extension(
        errors[..., None],
        foreground[..., None],
        valid,
        classes="all",
        per_image=per_image,
        bins=None,
        axis_name=axis_name,
    )


def _mean_extension(
    errors: Float[Array, "b *spatial c"],
    foreground: Bool[Array, "b *spatial c"],
    valid: Bool[Array, " b *spatial"],
    *,
    classes: str,
    per_image: bool,
    bins: int | None,
    axis_name: str | None,
) -> Float[Array, ""]:
    """The extension of each class, averaged as `mean_over_classes` does."""
    across = None if per_image else axis_name
    counted = valid[..., None]
    # An error of 0 in the background is last in order, and adds nothing.
    errors = jnp.where(counted, errors, 0.0)

    rows, c = errors.shape[0] if per_image else 1, errors.shape[-1]
    order = jax.lax.stop_gradient(errors).astype(jnp.float32)
    arrays = order, foreground & counted, counted
    arrays = [x.reshape(rows, -1, x.shape[-1]) for x in arrays]
    if bins is None:
        weights, total = _weights_by_order(*arrays[:2], axis_name=across)
    else:
        weights, total = _weights_by_bin(*arrays, bins=bins, axis_name=across)
    # Not over the flattened pixels, which takes XLA for CPU 30 times as long.
    axes = range(1 if per_image else 0, valid.ndim)
    cost = (weights.reshape(errors.shape) * errors).sum(axes).reshape(rows, c)
    cost = sum_over_devices(cost, across)
    # Logits gone NaN must not pass for a class that is absent.
    takes_part = (classes == "all") | (total > 0) | jnp.isnan(cost)
    return mean_over_classes(
        cost,
        takes_part,
        valid,
        class_weights=None,
        per_image=per_image,
        normalize_by="classes",
        axis_name=axis_name,
    )


def _weights_by_order(
    errors: Float[Array, "rows pixels c"],
    foreground: Bool[Array, "rows pixels c"],
    *,
    axis_name: str | None,
) -> tuple[Float[Array, "rows pixels c"], Int[Array, "rows c"]]:
    """The weights, and the number of foreground pixels."""
    # The bits of floats that are not negative are ordered as they are, and the first
    # is free: one array of integers holds all, which sorts in a fraction of the time
    # that several take.
    keys = 2 * jax.lax.bitcast_convert_type(errors, jnp.uint32) + foreground
    keys = keys.swapaxes(1, 2)
    shape = keys.shape
    keys = keys.reshape(-1, shape[2])
    ordered = keys
    if axis_name is not None:
        ordered = jax.lax.all_gather(keys, axis_name, axis=1, tiled=True)
    ordered = jnp.sort(ordered, axis=1)

    position = jax.lax.broadcasted_iota(jnp.int32, ordered.shape, 1)
    is_new = (position == 0) | (ordered != jnp.roll(ordered, 1, axis=1))
    tied = position + 1 - jax.lax.cummax(jnp.where(is_new, position, 0), axis=1)
    is_foreground = (ordered & 1).astype(jnp.int32)
    so_far = jax.lax.cumsum(is_foreground, axis=1)
    total = so_far[:, -1:]
    above = total - so_far
    of_foreground, of_background = _weights(
        total,
        above,
        ordered.shape[1] - 1 - position - above,
        tied * is_foreground,
        tied * (1 - is_foreground),
    )
    weights = jnp.where(is_foreground == 1, of_foreground, of_background)
    # Row by row stays in the cache. Without a loop XLA for CPU fuses the weights into
    # the look-up, and computes them anew for each.
    weights = jax.lax.map(lambda row: _look_up(*row), (keys, ordered, weights))
    if axis_name is not None:
        # Equal on all devices already; this lets `shard_map` know.
        total = jax.lax.pmax(total, axis_name)
    return weights.reshape(shape).swapaxes(1, 2), total.reshape(shape[:2])


def _look_up(
    keys: UInt32[Array, " pixels"],
    ordered: UInt32[Array, " size"],
    values: Float[Array, " size"],
) -> Float[Array, " pixels"]:
    """The value beside the last of each key in `ordered`, by bisection.

    Twice as fast as `jnp.searchsorted`, and compiled in a fraction of the time.
    """
    halvings = ordered.size.bit_length()

    def halve(i, count):
        more = count + ((1 << halvings - 1) >> i)
        at = jnp.minimum(more, ordered.size) - 1
        not_above = (more <= ordered.size) & (ordered[at] <= keys)
        return jnp.where(not_above, more, count)

    none = jnp.zeros_like(keys, jnp.int32)
    return values[jax.lax.fori_loop(0, halvings, halve, none) - 1]


def _weights_by_bin(
    errors: Float[Array, "rows pixels c"],
    foreground: Bool[Array, "rows pixels c"],
    counted: Bool[Array, "rows pixels 1"],
    *,
    bins: int,
    axis_name: str | None,
) -> tuple[Float[Array, "rows pixels c"], Int[Array, "rows c"]]:
    """The weights, and the number of foreground pixels."""
    rows, _, c = errors.shape
    row = jnp.arange(rows * c, dtype=jnp.int32).reshape(rows, 1, c)
    part = jnp.clip((errors * bins).astype(jnp.int32), 0, bins - 1)
    cell = (2 * row + foreground) * bins + part
    counts = jnp.zeros(2 * rows * c * bins, jnp.int32)
    counts = counts.at[cell].add(counted.astype(jnp.int32))
    counts = sum_over_devices(counts.reshape(-1, 2, bins), axis_name)
    total = counts[:, 1].sum(axis=1)

    def weigh_row(row):
        (bg, fg), total = row
        bg_above, fg_above = (x[::-1].cumsum()[::-1] - x for x in (bg, fg))
        return jnp.stack(_weights(total, fg_above, bg_above, fg, bg)[::-1])

    # Without a loop XLA for CPU fuses the weights into the look-up.
    table = jax.lax.map(weigh_row, (counts, total))
    return table.ravel()[cell], total.reshape(rows, c)


def _weights(
    total: Int[Array, "*#shape"],
    fg_above: Int[Array, "*shape"],
    bg_above: Int[Array, "*shape"],
    fg: Int[Array, "*shape"],
    bg: Int[Array, "*shape"],
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """The weights of a foreground and of a background pixel among equal errors.

    With the foreground before the background, a pixel of the foreground adds
    `1 / (total + bg_above)`, and those of the background together
    `(total - fg_above - fg) (1 / (total + bg_above) - 1 / (total + bg_above + bg))`.
    This is the mean of that and of the other order.

    Args:
        total: foreground pixels in all.
        fg_above: foreground pixels of larger error.
        bg_above: background pixels of larger error.
        fg: foreground pixels of this error.
        bg: background pixels of this error.
    """
    total, fg_above, bg_above, fg, bg = (
        x.astype(jnp.float32) for x in (total, fg_above, bg_above, fg, bg)
    )
    before = jnp.maximum(total + bg_above, 1.0)
    after = jnp.maximum(total + bg_above + bg, 1.0)
    of_foreground = (1.0 / before + 1.0 / after) / 2
    of_background = (total - fg_above - fg / 2) / (before * after)
    # Without foreground the first pixel makes the loss 1, and no other adds to it.
    is_first = (total == 0) & (bg_above == 0)
    return of_foreground, jnp.where(is_first, 1.0 / after, of_background)
