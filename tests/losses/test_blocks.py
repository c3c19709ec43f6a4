"""How losses go through the pixels: what is kept, and what runs on other platforms."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segloss import losses
from segloss.losses import blocks

SHAPE = (2, 32, 48, 21)
LOGITS = 2 * jax.random.normal(jax.random.key(0), SHAPE)
LABELS = jax.random.randint(jax.random.key(1), SHAPE[:3], 0, 21)
VALID = jax.random.bernoulli(jax.random.key(2), 0.9, SHAPE[:3])


@pytest.mark.parametrize(
    ("pixels", "half", "shape"),
    [
        (100, False, (100,)),
        (4096, False, (4096,)),
        (4 * 321 * 321, False, (107, 428)),
        (4 * 321 * 321, True, (3852,)),
        (321 * 321, False, (963,)),  # no divisor is a multiple of 4
        (2 * 8209, False, (4096,)),  # of twice a prime none is of any use
    ],
)
def test_a_block_is_a_divisor_of_the_pixels_if_there_is_one(pixels, half, shape):
    assert blocks._block_shape(pixels, half) == shape


@pytest.mark.parametrize(
    ("loss", "dtype"),
    [
        (losses.softmax_cross_entropy, jnp.float32),
        (losses.softmax_cross_entropy, jnp.bfloat16),
        (losses.focal_loss, jnp.float32),
        (losses.soft_dice, jnp.float32),
        (losses.soft_dice, jnp.bfloat16),
        (losses.soft_iou, jnp.float32),
        (losses.tversky, jnp.float32),
        (losses.generalized_dice, jnp.float32),
    ],
)
def test_temporary_memory_is_below_that_of_the_logits(loss, dtype):
    shape = jax.ShapeDtypeStruct
    arrays = shape((4, 200, 200, 21), dtype), shape((4, 200, 200), jnp.int32)
    compiled = jax.jit(jax.value_and_grad(loss)).lower(*arrays).compile()
    size = arrays[0].size * arrays[0].dtype.itemsize
    assert compiled.memory_analysis().temp_size_in_bytes < 1.1 * size


@pytest.mark.parametrize("per_image", [False, True])
def test_a_number_of_pixels_without_a_divisor_changes_nothing(per_image, monkeypatch):
    cut = [x[:, :31, :47] for x in (LOGITS, LABELS, VALID)]  # 1457 of 31 x 47 each
    dice = functools.partial(inspect.unwrap(losses.soft_dice), per_image=per_image)
    whole = jax.value_and_grad(dice)(*cut)
    monkeypatch.setattr(blocks, "_ROW_PIXELS", 500)
    in_blocks = jax.value_and_grad(dice)(*cut)
    np.testing.assert_allclose(in_blocks[0], whole[0], rtol=1e-6)
    np.testing.assert_allclose(in_blocks[1], whole[1], rtol=1e-4, atol=1e-9)


def test_sums_of_millions_of_pixels_keep_their_digits():
    """A prime number of them, where one by one a sum in float32 comes to a halt."""
    pixels = 4_194_301
    logits = jnp.stack([jnp.zeros((1, pixels)), jnp.ones((1, pixels))], axis=-1)
    ones = jnp.ones((1, pixels), jnp.uint8)
    p = 1 / (1 + np.exp(-1))
    # 4096 equal numbers one by one are off by at most 4096 / 2**24 of their sum.
    dice = losses.soft_dice(logits, ones, classes="present")
    np.testing.assert_allclose(dice, 1 - 2 * p / (1 + p**2), rtol=2.5e-4)
    entropy = losses.softmax_cross_entropy(logits, ones)
    np.testing.assert_allclose(entropy, -np.log(p), rtol=2.5e-4)


@pytest.mark.parametrize("loss", [losses.focal_loss, losses.soft_dice])
def test_of_the_logits_size_only_the_logits_are_kept_for_the_gradient(loss):
    _, pull = jax.vjp(lambda logits: loss(logits, LABELS, VALID), LOGITS)
    large = [x for x in jax.tree.leaves(pull) if x.size >= LOGITS.size]
    assert len(large) == 1
    np.testing.assert_array_equal(large[0], LOGITS)


def one_hot_dice(logits, labels, valid, **options):
    masks = jax.nn.one_hot(labels, 21)
    dice = inspect.unwrap(losses.soft_dice)
    return dice(logits, masks, valid[..., None], multi_label=True, **options)


@pytest.mark.parametrize(
    ("loss", "dtype", "per_image"),
    [
        (inspect.unwrap(losses.soft_dice), jnp.float32, False),
        (inspect.unwrap(losses.soft_dice), jnp.float32, True),
        (inspect.unwrap(losses.tversky), jnp.bfloat16, False),
        (one_hot_dice, jnp.float32, True),
    ],
)
def test_other_platforms_take_all_pixels_at_once(loss, dtype, per_image, monkeypatch):
    monkeypatch.setattr(blocks, "_ROW_PIXELS", 512)
    monkeypatch.setattr(blocks, "_BLOCK_PIXELS", 1024)
    loss = functools.partial(loss, per_image=per_image)
    arrays = LOGITS.astype(dtype), LABELS, VALID
    on_cpu = jax.jit(jax.value_and_grad(loss))(*arrays)

    def elsewhere(*args, cpu, default):
        return default(*args)

    monkeypatch.setattr(jax.lax, "platform_dependent", elsewhere)
    program = jax.jit(lambda *arrays: jax.value_and_grad(loss)(*arrays))
    assert "while" not in program.lower(*arrays).as_text()
    value, grad = program(*arrays)
    np.testing.assert_allclose(value, on_cpu[0], rtol=1e-6)
    grads = [np.asarray(x, np.float32) for x in (grad, on_cpu[1])]
    tolerance = 1e-2 if dtype == jnp.bfloat16 else 1e-5
    np.testing.assert_allclose(
        *grads, rtol=tolerance, atol=1e-5 * np.abs(grads[0]).max()
    )


def test_second_derivatives_in_half_precision_are_those_of_float32():
    direction = jax.random.normal(jax.random.key(3), SHAPE)

    def curvature(logits):
        def slope(logits):
            grad = jax.grad(losses.tversky)(logits, LABELS, VALID)
            return (grad.astype(jnp.float32) * direction).sum()

        return np.asarray(jax.grad(slope)(logits), np.float32)

    half = LOGITS.astype(jnp.bfloat16)
    full = curvature(half.astype(jnp.float32))
    np.testing.assert_allclose(curvature(half), full, atol=0.02 * np.abs(full).max())


@pytest.mark.parametrize("loss", [losses.softmax_cross_entropy, losses.soft_dice])
def test_forward_mode_is_refused_and_forward_over_reverse_works(loss):
    def of_logits(logits):
        return loss(logits, LABELS, VALID)

    ones = jnp.ones_like(LOGITS)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(of_logits, (LOGITS,), (ones,))
    # The same constant on all logits of a pixel changes no gradient.
    _, curvature = jax.jvp(jax.grad(of_logits), (LOGITS,), (ones,))
    np.testing.assert_allclose(curvature, 0.0, atol=1e-8)
