import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segloss.losses import soft_cldice

pytestmark = pytest.mark.shared_out

# Rows 3 to 5 of an image, of which row 4 without its ends is the skeleton: 8 pixels.
BAR = np.zeros((9, 12), bool)
BAR[3:6, 1:11] = True
CUT = BAR.copy()
CUT[:, 5:7] = False
LINE = np.zeros_like(BAR)
LINE[4] = BAR[4]
SPURIOUS = BAR.copy()
SPURIOUS[8, :8] = True


def scores_of(region):
    """Logits of two classes that predict the region beyond doubt."""
    return jnp.stack([jnp.where(x, 1e4, -1e4) for x in (~region, region)], axis=-1)


def loss_of_bar(predicted, labelled=BAR, valid=None, **hyperparameters):
    """What class 1 costs."""
    labels = jnp.array(labelled[None], jnp.int32)
    hyperparameters = {"class_weights": (0.0, 1.0)} | hyperparameters
    return soft_cldice(scores_of(predicted[None]), labels, valid, **hyperparameters)


@pytest.mark.parametrize(
    ("predicted", "precision", "sensitivity"),
    [
        (BAR, 1, 1),
        # What connects is the same, only not as wide or not quite in place.
        (LINE, 1, 1),
        (np.roll(BAR, 1, axis=0), 1, 1),
        # The halves have skeletons of 2 pixels, and 2 of the bar's are not covered.
        (CUT, 1, 6 / 8),
        # A line of 8 pixels beside the bar is its own skeleton.
        (SPURIOUS, 8 / 16, 1),
        (np.roll(BAR, 2, axis=0), 0, 0),
        # Nothing is predicted, so nothing of it is wrong.
        (np.zeros_like(BAR), 1, 0),
    ],
)
def test_cldice_matches_hand_computed_value(predicted, precision, sensitivity):
    cost = 1
    if sensitivity:
        cost -= 2 * precision * sensitivity / (precision + sensitivity)
    np.testing.assert_allclose(loss_of_bar(predicted), cost, atol=1e-6)
    np.testing.assert_allclose(loss_of_bar(predicted.T, BAR.T), cost, atol=1e-6)


def test_cldice_of_a_volume():
    def tube(image):
        """Three deep, with one empty layer on either side."""
        return np.pad(np.stack([image] * 3), ((1, 1), (0, 0), (0, 0)))

    np.testing.assert_allclose(loss_of_bar(tube(CUT), tube(BAR)), 1 / 7, rtol=1e-6)


# Of class 1, the skeletons are (0, 1/4, 0) and (0, 1, 0), and 1/2 of the latter is
# covered; of class 0, (1/4, 0, 1/4) and (1, 0, 1), covered to 3/4.
@pytest.mark.parametrize(
    ("hyperparameters", "loss"),
    [
        ({}, (1 / 3 + 1 / 7) / 2),
        ({"class_weights": (3, 1)}, (1 / 3 + 3 / 7) / 4),
        ({"smooth": 1}, (1 / 7 + 1 / 11) / 2),
        ({"iterations": 0}, (1 / 3 + 1 / 7) / 2),
    ],
)
def test_cldice_of_probabilities_matches_hand_computed_value(hyperparameters, loss):
    logits = jnp.log(jnp.array([[[3.0, 1.0], [1.0, 1.0], [3.0, 1.0]]]))
    value = soft_cldice(logits, jnp.array([[0, 1, 0]]), **hyperparameters)
    np.testing.assert_allclose(value, loss, rtol=1e-6)


def test_each_erosion_adds_to_the_skeleton_what_is_not_there_yet():
    odds = jnp.array([-1e4, 0, 1e4, 0, -1e4, -1e4, 0, -1e4])
    labels = jnp.array([[0, 1, 1, 1, 0, 0, 0, 0]])
    logits = jnp.stack([jnp.zeros(8), odds], axis=-1)[None]
    only = functools.partial(soft_cldice, logits, labels, class_weights=(0.0, 1.0))
    # At first the skeleton is 1/2 in the middle of the bar, of which the labels have
    # none yet, and 1/2 at the pixel beside it.
    np.testing.assert_allclose(only(iterations=0), 1 - 2 / 3, rtol=1e-6)
    # Then half of what lacks of 1 is added in the middle: 3/4 beside 1/2.
    np.testing.assert_allclose(only(iterations=1), 1 - 2 * 0.6 / 1.6, rtol=1e-6)


def test_what_is_void_is_outside_of_both():
    # Where the gap is void the bar is cut as well; where the line is, it is not there.
    valid = jnp.array((BAR == CUT) & (BAR == SPURIOUS))[None]
    assert loss_of_bar(CUT, valid=valid) == 0
    assert loss_of_bar(SPURIOUS, CUT, valid=valid) == 0
    assert loss_of_bar(SPURIOUS, CUT) > 0


def test_a_region_too_wide_for_a_skeleton_costs_nothing_if_predicted():
    wide = np.zeros((1, 10, 10), np.int32)
    wide[:, 1:8, 1:8] = 1
    value = functools.partial(soft_cldice, labels=jnp.array(wide), iterations=1)
    assert value(scores_of(wide == 1)) == 0
    # A line elsewhere is wrong all the same.
    line = np.zeros_like(wide)
    line[:, 9] = 1
    np.testing.assert_allclose(
        value(scores_of(line == 1), class_weights=(0.0, 1.0)), 1.0
    )


@pytest.mark.parametrize("score", [0.0, -60.0, -jnp.inf])
def test_an_absent_class_is_left_out_or_costs_one_without_gradient(score):
    labels = jax.random.randint(jax.random.key(0), (2, 6, 5), 0, 2)
    logits = jax.random.normal(jax.random.key(1), (2, 6, 5, 3)).at[..., 2].set(score)
    present = soft_cldice(logits, labels)
    np.testing.assert_allclose(
        soft_cldice(logits, labels, classes="all"), (2 * present + 1) / 3, rtol=1e-6
    )
    only = functools.partial(soft_cldice, classes="all", class_weights=(0.0, 0.0, 1.0))
    value, grad = jax.value_and_grad(only)(logits, labels)
    assert value == 1
    np.testing.assert_array_equal(grad, 0.0)


def test_mirrored_and_turned_images_cost_the_same():
    labels = jax.random.randint(jax.random.key(0), (2, 6, 5), 0, 2)
    logits = jax.random.normal(jax.random.key(1), (2, 6, 5, 3))
    loss = soft_cldice(logits, labels)
    turns = [lambda x: x[:, ::-1], lambda x: x[:, :, ::-1], lambda x: x.swapaxes(1, 2)]
    for turn in turns:
        turned = soft_cldice(turn(logits), turn(labels))
        np.testing.assert_allclose(turned, loss, rtol=1e-6)


def test_first_and_second_derivatives():
    labels = jnp.array([[[0, 0, 1, 0], [1, 1, 1, 0], [0, 1, 0, 0], [0, 1, 1, 1]]])
    # The slope jumps where two neighbours are equal, so none is near another.
    scores = jax.random.permutation(jax.random.key(0), jnp.linspace(-2, 2, 16))
    logits = jnp.stack([scores, -scores], axis=-1).reshape(1, 4, 4, 2)
    step = jax.random.normal(jax.random.key(1), logits.shape)

    @jax.jit
    def along(x):
        """Value, slope and curvature on the way from `logits` by x steps."""
        slope = jax.grad(lambda x: soft_cldice(logits + x * step, labels, iterations=1))
        value = soft_cldice(logits + x * step, labels, iterations=1)
        return jnp.stack([value, slope(x), jax.grad(slope)(x)])

    before, here, after = (along(x) for x in (-1e-2, 0.0, 1e-2))
    np.testing.assert_allclose((after - before)[:2] / 2e-2, here[1:], rtol=1e-2)


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_batch_and_height_may_be_sharded(kind):
    """With `lax.reduce_window` the gradient was another one."""
    kinds = 2 * (jax.sharding.AxisType[kind],)
    mesh = jax.make_mesh((2, 4), ("batch", "height"), axis_types=kinds)
    sharding = jax.NamedSharding(mesh, jax.P("batch", "height"))
    labels = jax.random.randint(jax.random.key(0), (4, 8, 6), 0, 3)
    logits = jax.random.normal(jax.random.key(1), (4, 8, 6, 3))
    step = jax.jit(jax.value_and_grad(soft_cldice))
    many = step(*(jax.device_put(x, sharding) for x in (logits, labels)))
    for actual, expected in zip(many, step(logits, labels), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("hyperparameters", "message"),
    [
        ({"iterations": -1}, r"iterations must be in \[0, inf\), got -1"),
        ({"smooth": -1.0}, "smooth must be 0, or at least 1e-18 and finite, got -1.0"),
        ({"classes": "seen"}, "classes must be 'all' or 'present', got 'seen'"),
        ({"class_weights": (1.0,)}, r"class_weights must have shape \(2,\)"),
    ],
)
def test_cldice_refuses(hyperparameters, message):
    with pytest.raises(ValueError, match=f"^soft_cldice: {message}"):
        loss_of_bar(BAR, **hyperparameters)
