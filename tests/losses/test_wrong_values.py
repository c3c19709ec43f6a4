"""Values that no loss can use: masks of 0 and 255, weights below 0, channels first."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_settings import LABELS, LOGITS, VALID, assert_equal

from segloss import losses

pytestmark = pytest.mark.shared_out

MASKS = np.eye(3, dtype=np.float32)[LABELS]
ELEMENTS = np.broadcast_to(VALID[..., None], MASKS.shape)
OF_MASKS = {
    name: functools.partial(
        loss, **({"multi_label": True} if name not in losses.make.MASK_LOSSES else {})
    )
    for name, loss in losses.LOSSES.items()
    if losses.takes_masks(name, {})
    or "multi_label" in inspect.signature(loss).parameters
}
OF_SHARES = (
    "softmax_cross_entropy",
    "focal_loss",
    "poly_loss",
    "soft_dice",
    "soft_iou",
    "tversky",
    "focal_tversky",
    "generalized_dice",
    "log_cosh_dice",
)
of_masks = pytest.mark.parametrize("loss", OF_MASKS.values(), ids=OF_MASKS)


def test_all_losses_of_masks_are_among_them():
    assert len(OF_MASKS) == 5 + 6


@of_masks
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_valid_mask_value_outside_0_and_1_makes_the_loss_nan(loss, dtype):
    compiled = jax.jit(jax.value_and_grad(loss))
    valid_element, void_element = (
        tuple(np.argwhere(x)[5]) for x in (ELEMENTS, ~ELEMENTS)
    )
    clean = compiled(LOGITS, jnp.asarray(MASKS, dtype), ELEMENTS)
    for wrong in (255.0, 2.0, 1.02, -0.02, -1.0, np.nan, np.inf, -np.inf):
        masks, void = MASKS.copy(), MASKS.copy()
        masks[valid_element] = void[void_element] = wrong
        value, _ = compiled(LOGITS, jnp.asarray(masks, dtype), ELEMENTS)
        assert np.isnan(value), wrong
        assert_equal(compiled(LOGITS, jnp.asarray(void, dtype), ELEMENTS), clean)
    scaled = jnp.asarray(255 * MASKS, dtype)
    assert np.isnan(compiled(LOGITS, scaled, ELEMENTS)[0])
    assert np.isnan(loss(jnp.asarray(LOGITS), scaled))


@of_masks
def test_masks_of_integers_are_refused(loss):
    with pytest.raises(ValueError, match=r"got uint8; masks of .*: pass labels > 0\."):
        inspect.unwrap(loss.func)(
            jnp.asarray(LOGITS), jnp.uint8(255 * MASKS), **loss.keywords
        )


@pytest.mark.parametrize("name", OF_SHARES)
def test_a_soft_label_outside_0_and_1_makes_the_loss_nan(name):
    loss = jax.jit(losses.LOSSES[name])
    clean = loss(LOGITS, jnp.asarray(MASKS), VALID)
    assert np.isfinite(clean)
    for wrong in (255.0, -0.5, np.nan):
        shares = jnp.asarray(MASKS).at[tuple(np.argwhere(ELEMENTS)[5])].set(wrong)
        assert np.isnan(loss(LOGITS, shares, VALID))
        void = jnp.where(ELEMENTS, MASKS, wrong)
        assert_equal(loss(LOGITS, void, VALID), clean)


def test_a_value_above_1_by_rounding_is_no_fault():
    """0.7 and 0.3 of 1 add up to 1 + 1/128 if computed in bfloat16."""
    labels = jnp.full((1, 2, 1), 1 + 1 / 128, jnp.bfloat16)
    logits = jnp.zeros((1, 2, 1))
    loss = losses.sigmoid_cross_entropy(logits, labels)
    np.testing.assert_allclose(loss, np.log(2), rtol=1e-6)


def explain(labels, valid=None, *, num_classes=2):
    loss = losses.sigmoid_cross_entropy
    if num_classes > 2:
        loss = losses.softmax_cross_entropy
    return losses.explain(loss, LOGITS, labels, valid, num_classes=num_classes)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (255.0, r"\[0, 1\], got 255 \(.* are out of range\): divide by 255 or compare"),
        (np.nan, r"\[0, 1\], got nan \(1 of 288 valid .*leave void elements out with"),
        (-1.0, r"\[0, 1\], got -1 \(1 of 288 valid values .*leave void elements out"),
    ],
)
def test_explain_says_why_a_loss_of_masks_is_nan(wrong, message):
    labels = jnp.asarray(MASKS).at[0, 0, 0, 0].set(wrong)
    if wrong == 255:
        labels = 255 * jnp.asarray(MASKS)
    with pytest.raises(ValueError, match=f"^explain: masks must be in {message}"):
        explain(labels)
    assert explain(labels, jnp.asarray(labels <= 1) & (labels >= 0)).loss > 0
    # Under `jax.jit` the values are unknown, and NaN is all that tells.
    assert np.isnan(jax.jit(explain)(labels).loss)


def test_explain_says_why_a_loss_of_class_ids_is_nan():
    labels = jnp.asarray(LABELS).at[0, 0, 0].set(255)
    with pytest.raises(ValueError, match=r"class ids in \[0, 3\), got 255 \(1 of 96 "):
        explain(labels, num_classes=3)
    assert explain(labels, labels < 3, num_classes=3).loss > 0


WITH_WEIGHTS = [
    (name, argument)
    for name, loss in losses.LOSSES.items()
    for argument in ("class_weights", "pos_weight", "penalty")
    if argument in inspect.signature(loss).parameters
]


@pytest.mark.parametrize(
    ("name", "argument"), [x for x in WITH_WEIGHTS if x[1] != "penalty"]
)
def test_a_traced_weight_below_0_makes_the_loss_nan(name, argument):
    masks = name in losses.make.MASK_LOSSES
    labels = jnp.asarray(MASKS if masks else LABELS)

    @jax.jit
    def loss(weights):
        return losses.LOSSES[name](LOGITS, labels, **{argument: weights})

    assert np.isfinite(loss(jnp.array([1.0, 0.0, 2.0])))
    assert np.isnan(loss(jnp.array([1.0, -0.5, 2.0])))


def test_log_cosh_dice_calls_itself_by_its_name():
    with pytest.raises(
        ValueError, match=r"^log_cosh_dice: denominator must be 'squared"
    ):
        losses.log_cosh_dice(LOGITS, jnp.asarray(LABELS), denominator="cubed")
    with pytest.raises(ValueError, match=r"^log_cosh_dice: labels must have shape"):
        losses.log_cosh_dice(LOGITS, jnp.asarray(LABELS)[:1])


@pytest.mark.parametrize(("name", "argument"), WITH_WEIGHTS)
@pytest.mark.parametrize("kind", [tuple, jnp.array])
def test_weights_below_0_or_not_finite_are_refused(name, argument, kind):
    masks = name in losses.make.MASK_LOSSES
    loss = functools.partial(
        losses.LOSSES[name], LOGITS, jnp.asarray(MASKS if masks else LABELS)
    )
    for wrong in (-1.0, np.nan, np.inf):
        weights, place = (1.0, wrong, 2.0), "1"
        if argument == "penalty":
            weights, place = ((0.0, 1.0, 1.0), weights, (1.0, 1.0, 0.0)), "1, 1"
        message = (
            f"^{name}: {argument} must be finite and >= 0, got {wrong:g} "
            f"for class {place}\\.$"
        )
        with pytest.raises(ValueError, match=message):
            loss(**{argument: kind(weights)})
        # At once, as for a config, and not only when the loss is computed.
        with pytest.raises(ValueError, match=message):
            losses.make_loss(name, **{argument: weights})
        with pytest.raises(ValueError, match=message):
            losses.compound_loss([(1, name, {argument: weights})])
    if argument != "penalty":
        with pytest.raises(ValueError, match=f"^{name}: {argument} must not all be 0"):
            loss(**{argument: kind((0.0, 0.0, 0.0))})


@pytest.mark.parametrize("name", losses.LOSSES)
def test_classes_on_axis_1_are_named_where_shapes_can_tell(name, complete):
    labels, needed = complete(name, jnp.zeros((2, 8, 6), jnp.int32), 3)
    logits = jnp.zeros((2, 3, 8, 6))
    message = rf"^{name}: labels must have shape .* channels last: pass jnp.moveaxis"
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(losses.LOSSES[name])(logits, labels, **needed)
    losses.LOSSES[name](jnp.moveaxis(logits, 1, -1), labels, **needed)
