"""Direct implementations of the losses from the papers' formulas, for comparison.

They use a softmax or `logsumexp`, a `where` on the label, float32 and automatic
differentiation, without optimising speed or memory. Each loss is a function `(logits,
labels)` for a row of `benchmarks.loss_rows`, and returns the same value as ours.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from benchmarks.loss_rows import VOID

Array = jax.Array


def _is_label(logits: Array, labels: Array) -> Array:
    return labels[..., None] == jnp.arange(logits.shape[-1])


def _log_prob(logits: Array, labels: Array) -> Array:
    """Returns the log of the softmax probability of each pixel's label."""
    logits = logits.astype(jnp.float32)
    at_label = jnp.where(_is_label(logits, labels), logits, 0).sum(-1)
    return at_label - jax.nn.logsumexp(logits, axis=-1)


def cross_entropy(logits: Array, labels: Array) -> Array:
    return -_log_prob(logits, labels).mean()


def cross_entropy_void(logits: Array, labels: Array) -> Array:
    valid = labels != VOID
    return -jnp.where(valid, _log_prob(logits, labels), 0).sum() / valid.sum()


def cross_entropy_weights(logits: Array, labels: Array) -> Array:
    weights = 1.0 + jnp.arange(logits.shape[-1])
    weights = jnp.where(_is_label(logits, labels), weights, 0).sum(-1)
    return -(weights * _log_prob(logits, labels)).sum() / weights.sum()


def focal(logits: Array, labels: Array) -> Array:
    log_prob = _log_prob(logits, labels)
    return -((1 - jnp.exp(log_prob)) ** 2 * log_prob).mean()


def poly(logits: Array, labels: Array) -> Array:
    log_prob = _log_prob(logits, labels)
    return (-log_prob + 1 - jnp.exp(log_prob)).mean()


def top_k(logits: Array, labels: Array) -> Array:
    loss = -_log_prob(logits, labels).ravel()
    return jax.lax.top_k(loss, max(1, round(0.25 * loss.size)))[0].mean()


def log_bilinear(logits: Array, labels: Array) -> Array:
    log_miss = jnp.log1p(-jax.nn.softmax(logits.astype(jnp.float32)))
    price = -jnp.where(_is_label(logits, labels), 0, log_miss).sum(-1)
    return (-0.5 * _log_prob(logits, labels) + 0.5 * price).mean()


def _log_sigmoids(logits: Array) -> tuple[Array, Array]:
    logits = logits.astype(jnp.float32)
    return jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)


def sigmoid_cross_entropy(logits: Array, tags: Array) -> Array:
    hit, miss = _log_sigmoids(logits)
    return -(tags * hit + (1 - tags) * miss).mean()


def normalized_sigmoid_cross_entropy(logits: Array, tags: Array) -> Array:
    hit, miss = _log_sigmoids(logits)
    share = tags.mean()
    return -((1 - share) * tags * hit + share * (1 - tags) * miss).mean()


def gated_sigmoid_cross_entropy(logits: Array, tags: Array) -> Array:
    hit, miss = _log_sigmoids(logits)
    gate = jnp.where(logits < 0, 5.0, 1.0)  # where the probability is below 1/2
    return -(gate * (tags * hit + (1 - tags) * miss)).mean()


def sigmoid_focal(logits: Array, tags: Array) -> Array:
    hit, miss = _log_sigmoids(logits)
    positive = 0.25 * jnp.exp(miss) ** 2 * tags * hit
    return -(positive + 0.75 * jnp.exp(hit) ** 2 * (1 - tags) * miss).mean()


def _region_sums(
    logits: Array, labels: Array, power: int = 1
) -> tuple[Array, Array, Array]:
    """Returns `sum(p t)`, `sum(p^power)` and `sum(t)` over the pixels, per class.

    p is the probability of the class; t is 1 where it is the label, else 0.
    """
    probs = jax.nn.softmax(logits.astype(jnp.float32))
    is_label = _is_label(logits, labels)
    probs = jnp.where((labels != VOID)[..., None], probs, 0)
    axes = tuple(range(labels.ndim))
    hits = jnp.where(is_label, probs, 0).sum(axes)
    return hits, (probs**power).sum(axes), is_label.sum(axes)


def dice(logits: Array, labels: Array, power: int = 2) -> Array:
    hits, predicted, labelled = _region_sums(logits, labels, power)
    return (1 - 2 * hits / (predicted + labelled)).mean()


def log_cosh_dice(logits: Array, labels: Array) -> Array:
    return jnp.log(jnp.cosh(dice(logits, labels)))


def tversky(
    logits: Array, labels: Array, fp_weight: float, fn_weight: float, gamma: float = 1
) -> Array:
    hits, predicted, labelled = _region_sums(logits, labels)
    errors = fp_weight * (predicted - hits) + fn_weight * (labelled - hits)
    return ((1 - hits / (hits + errors)) ** gamma).mean()


def generalized_dice(logits: Array, labels: Array) -> Array:
    hits, predicted, labelled = _region_sums(logits, labels)
    weights = jnp.where(labelled > 0, 1 / jnp.maximum(labelled, 1) ** 2.0, 0)
    return 1 - 2 * (weights * hits).sum() / (weights * (predicted + labelled)).sum()


def _lovasz(errors: Array, is_label: Array) -> Array:
    """Returns the Lovasz extension of the Jaccard loss over axis 0, the pixels.

    Algorithm 1 of Berman et al. 2018 (arXiv:1705.08790), as in its authors' code.
    """
    order = jnp.argsort(-errors, axis=0)
    errors, is_label = (jnp.take_along_axis(x, order, 0) for x in (errors, is_label))
    is_label = is_label.astype(jnp.float32)
    total = is_label.sum(0)
    union = total + jnp.cumsum(1 - is_label, 0)
    jaccard = 1 - (total - jnp.cumsum(is_label, 0)) / union
    steps = jnp.diff(jaccard, axis=0, prepend=jnp.zeros_like(jaccard[:1]))
    return (errors * jax.lax.stop_gradient(steps)).sum(0)


def lovasz_softmax(logits: Array, labels: Array) -> Array:
    classes = logits.shape[-1]
    probs = jax.nn.softmax(logits.astype(jnp.float32)).reshape(-1, classes)
    is_label = _is_label(logits, labels).reshape(-1, classes)
    losses = _lovasz(jnp.where(is_label, 1 - probs, probs), is_label)
    present = is_label.any(0)
    return jnp.where(present, losses, 0).sum() / present.sum()


def lovasz_hinge(logits: Array, labels: Array) -> Array:
    logits, labels = (x.reshape(len(x), -1).T for x in (logits, labels))
    signs = 2 * labels - 1
    errors = jax.nn.relu(1 - logits.astype(jnp.float32) * signs)
    return _lovasz(errors, labels).mean()


def boundary(logits: Array, labels: tuple[Array, Array]) -> Array:
    ids, distances = labels
    probs = jax.nn.softmax(logits.astype(jnp.float32))
    errors = jnp.where(_is_label(logits, ids), probs - 1, probs)
    return (distances * errors).sum(-1).mean()


_TVERSKY = dict(fp_weight=0.3, fn_weight=0.7)

# Keyed by the rows of `benchmarks.loss_rows.make_rows`.
TEXTBOOK: dict[str, Callable[..., Array]] = {
    "softmax_cross_entropy": cross_entropy,
    "softmax_cross_entropy void": cross_entropy_void,
    "softmax_cross_entropy weights": cross_entropy_weights,
    "sigmoid_cross_entropy": sigmoid_cross_entropy,
    "normalized_sigmoid_cross_entropy": normalized_sigmoid_cross_entropy,
    "gated_sigmoid_cross_entropy": gated_sigmoid_cross_entropy,
    "focal_loss": focal,
    "sigmoid_focal_loss": sigmoid_focal,
    "poly_loss": poly,
    "top_k_cross_entropy": top_k,
    "log_bilinear_loss": log_bilinear,
    "soft_dice": dice,
    "soft_dice linear": functools.partial(dice, power=1),
    "soft_dice void": dice,
    "soft_iou": functools.partial(tversky, fp_weight=1, fn_weight=1),
    "tversky": functools.partial(tversky, **_TVERSKY),
    "focal_tversky": functools.partial(tversky, **_TVERSKY, gamma=0.75),
    "generalized_dice": generalized_dice,
    "log_cosh_dice": log_cosh_dice,
    "lovasz_softmax": lovasz_softmax,
    "lovasz_hinge": lovasz_hinge,
    "boundary_loss": boundary,
}


def confusion(predicted: Array, labels: Array, num_classes: int) -> Array:
    cells = (labels.astype(jnp.int32) * num_classes + predicted).ravel()
    return jnp.bincount(cells, length=num_classes**2).reshape(num_classes, num_classes)
