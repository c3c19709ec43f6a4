import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segloss.losses import softmax_cross_entropy, top_k_cross_entropy

# In bits: -log2 of the label's probability is 2 and 1 in the first sample, 3 and void
# in the second; the third is all void.
PROBS = jnp.array(
    [[[1 / 4, 3 / 4], [1 / 2, 1 / 2]], [[1 / 8, 7 / 8]] * 2, [[1, 1]] * 2]
)
LOGITS = jnp.log(PROBS)
LABELS = jnp.array([[0, 1], [0, 255], [255, -1]])
VALID = (LABELS == 0) | (LABELS == 1)


@pytest.mark.parametrize(
    ("class_weights", "normalize_by", "bits"),
    [
        (None, "pixels", (2 + 1 + 3) / 3),
        (None, "weights", (2 + 1 + 3) / 3),
        (None, "samples", (2 + 1 + 3) / 2),
        ((3.0, 1.0), "pixels", (6 + 1 + 9) / 3),
        ((3.0, 1.0), "weights", (6 + 1 + 9) / (3 + 1 + 3)),
        ((3.0, 1.0), "samples", (6 + 1 + 9) / 2),
        ([3, 1], "pixels", (6 + 1 + 9) / 3),
        (jnp.array([3.0, 0.0]), "pixels", (6 + 9) / 3),
    ],
)
def test_softmax_cross_entropy_matches_hand_computed_value(
    class_weights, normalize_by, bits
):
    loss = softmax_cross_entropy(
        LOGITS, LABELS, VALID, class_weights=class_weights, normalize_by=normalize_by
    )
    np.testing.assert_allclose(loss, bits * np.log(2), rtol=1e-6)


@pytest.mark.parametrize(
    ("fraction", "bits"),
    [(0.01, 3), (0.4, 3), (0.6, (3 + 2) / 2), (1, (3 + 2 + 1) / 3)],
)
def test_top_k_is_the_mean_of_the_hardest(fraction, bits):
    loss = top_k_cross_entropy(LOGITS, LABELS, VALID, fraction=fraction)
    np.testing.assert_allclose(loss, bits * np.log(2), rtol=1e-6)


def test_pixels_that_tie_for_the_last_places_of_top_k_share_them():
    logits = jnp.zeros((1, 5, 2)).at[0, 0, 1].set(1.0)
    labels = jnp.zeros((1, 5), jnp.int32)
    gradient = jax.grad(top_k_cross_entropy)(logits, labels, fraction=0.6)
    # Of three places one is taken, and the other two are shared by four of slope 1/2.
    np.testing.assert_allclose(gradient[0, 1:, 1], 2 / 4 * 1 / 2 / 3, rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_softmax_cross_entropy_equals_optax(smoothing):
    logits = jax.random.normal(jax.random.key(0), (2, 5, 7, 4)) * 3
    labels = jax.random.randint(jax.random.key(1), (2, 5, 7), 0, 4)
    targets = optax.smooth_labels(jax.nn.one_hot(labels, 4), smoothing)
    np.testing.assert_allclose(
        softmax_cross_entropy(logits, labels, label_smoothing=smoothing),
        optax.softmax_cross_entropy(logits, targets).mean(),
        rtol=1e-6,
    )


# torch 2.13.0: CrossEntropyLoss(weight, ignore_index=255, label_smoothing=s) of
TORCH_LOGITS = [[[2.0, -1.0, 0.5], [0.25, 1.5, -0.75], [-2.0, 0.0, 3.0], [9.0, 0, 0]]]
TORCH_LABELS = [[0, 2, 1, 255]]


@pytest.mark.parametrize(
    ("class_weights", "smoothing", "torch_loss"),
    [
        (None, 0.0, 1.9589897),
        (None, 0.3, 1.9673230),
        ((0.5, 2.0, 3.0), 0.0, 2.5404807),
        ((0.5, 2.0, 3.0), 0.3, 2.3205789),
    ],
)
def test_softmax_cross_entropy_equals_torch(class_weights, smoothing, torch_loss):
    labels = jnp.array(TORCH_LABELS)
    loss = softmax_cross_entropy(
        jnp.array(TORCH_LOGITS),
        labels,
        labels != 255,
        class_weights=class_weights,
        label_smoothing=smoothing,
        normalize_by="weights",
    )
    np.testing.assert_allclose(loss, torch_loss, rtol=1e-6)


def test_softmax_cross_entropy_reads_uint8_labels_among_300_classes():
    labels = jnp.array([[7, 255]])
    logits = 30 * jax.nn.one_hot(labels, 300)
    assert softmax_cross_entropy(logits, labels.astype(jnp.uint8)) < 1e-6
    # 30 more than right, and 256 more than 7 is not 7.
    other = jnp.roll(logits, 256, axis=-1)
    np.testing.assert_allclose(
        softmax_cross_entropy(other, labels.astype(jnp.uint8)), 30, rtol=1e-6
    )


@pytest.mark.parametrize(
    ("scores", "loss", "grad"),
    [
        ((1e4, -1e4), 0.0, (0.0, 0.0)),
        ((-1e4, 1e4), 2e4, (-1.0, 1.0)),
        ((0.0, -jnp.inf), 0.0, (0.0, 0.0)),
    ],
    ids=["all_right", "all_wrong", "impossible_class"],
)
def test_softmax_cross_entropy_at_saturation(scores, loss, grad):
    logits, labels = jnp.array([[scores]]), jnp.zeros((1, 1), jnp.int32)
    value, slope = jax.value_and_grad(softmax_cross_entropy)(logits, labels)
    np.testing.assert_array_equal(value, loss)
    np.testing.assert_array_equal(slope[0, 0], grad)


@pytest.mark.parametrize(
    ("hyperparameters", "message"),
    [
        ({"label_smoothing": 1.5}, r"label_smoothing must be in \[0, 1\], got 1.5"),
        ({"label_smoothing": float("nan")}, "label_smoothing .* got nan"),
        (
            {"normalize_by": "classes"},
            "normalize_by must be 'pixels' or 'weights' or 'samples', got 'classes'",
        ),
        (
            {"class_weights": (1.0, 2.0, 3.0)},
            r"class_weights must have shape \(2,\), one per class, got \(3,\)",
        ),
    ],
)
def test_softmax_cross_entropy_refuses(hyperparameters, message):
    with pytest.raises(ValueError, match=f"^softmax_cross_entropy: {message}"):
        softmax_cross_entropy(LOGITS, LABELS, VALID, **hyperparameters)
