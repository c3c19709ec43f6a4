"""Every loss under transforms, on several devices, and in half precision."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_settings import (
    LABELS,
    LOGITS,
    OF_EACH_KIND,
    OF_REGIONS,
    SETTINGS,
    VALID,
    assert_close,
    make_batch,
    make_loss,
    value_and_grad,
)

pytestmark = pytest.mark.shared_out


@pytest.mark.parametrize("setting", sorted({*OF_EACH_KIND} - OF_REGIONS))
def test_forward_mode_gives_the_slope_too(setting):
    step = np.random.default_rng(1).normal(size=LOGITS.shape).astype(np.float32)
    value, slope = jax.jit(
        lambda x: jax.jvp(lambda x: make_loss(setting)(x, LABELS, VALID), (x,), (step,))
    )(LOGITS)
    expected, grad = value_and_grad(setting)(LOGITS, LABELS, VALID)
    assert_close((value, slope), (expected, (grad * step).sum()), atol=1e-6)


@pytest.mark.parametrize(
    "setting", ["cross_entropy_smooth", "dice_linear", "iou_per_image", "multi_label"]
)
def test_eager_equals_jit(setting):
    with jax.disable_jit():
        eager = make_loss(setting)(*map(jnp.array, (LOGITS, LABELS, VALID)))
    assert_close(eager, value_and_grad(setting)(LOGITS, LABELS, VALID)[0])


@pytest.mark.parametrize("setting", OF_EACH_KIND)
def test_vmap_and_checkpoint_change_nothing(setting):
    loss = jax.checkpoint(make_loss(setting))
    batches = [np.stack(x) for x in zip(make_batch(1), make_batch(2), strict=True)]
    mapped = jax.jit(jax.vmap(jax.value_and_grad(loss)))(*batches)
    alone = [value_and_grad(setting)(*make_batch(seed)) for seed in (1, 2)]
    assert_close(mapped, jax.tree.map(lambda *x: np.stack(x), *alone))


KERNEL = np.array([[1.0, -0.5, 0.2], [0.3, 0.8, -1.0], [-0.7, 0.1, 0.6]], np.float32)


def one_device(setting):
    """Loss and gradient of a linear model whose features are `LOGITS`."""
    value, grad = value_and_grad(setting)(LOGITS @ KERNEL, LABELS, VALID)
    return value, np.einsum("bhwf,bhwc->fc", LOGITS, grad)


def step_on_each(setting):
    """The same as a train step of several devices takes them."""
    loss = make_loss(setting, axis_name="batch")

    def step(kernel, features, labels, valid):
        def loss_of(kernel):
            return loss(features @ kernel, labels, valid)

        value, grad = jax.value_and_grad(loss_of)(kernel)
        return value, jax.lax.pmean(grad, "batch")

    return step


@pytest.mark.parametrize(
    ("setting", "devices"),
    [
        *((setting, 8) for setting in SETTINGS),
        *((setting, 2) for setting in ("dice", "focal", "iou_per_image", "lovasz")),
        *((setting, 2) for setting in ("sigmoid_complement", "top_k")),
    ],
)
def test_pmap_equals_one_device(setting, devices):
    """The first sample is void, so of eight devices one has no valid pixel."""
    step = jax.pmap(
        step_on_each(setting),
        axis_name="batch",
        in_axes=(None, 0, 0, 0),
        devices=jax.devices()[:devices],
    )
    split = [x.reshape(devices, -1, *x.shape[1:]) for x in (LOGITS, LABELS, VALID)]
    values, grads = map(np.array, step(KERNEL, *split))
    for device in range(devices):
        assert_close((values[device], grads[device]), one_device(setting), atol=1e-6)


@pytest.mark.parametrize("setting", ["dice", "focal", "lovasz", "sigmoid_focal"])
def test_value_under_shard_map_that_checks_what_varies(setting):
    batch = jax.P("batch")
    value = jax.shard_map(
        make_loss(setting, axis_name="batch"),
        mesh=jax.sharding.Mesh(jax.devices(), "batch"),
        in_specs=(batch, batch, batch),
        out_specs=jax.P(),
    )
    many = jax.jit(value)(LOGITS, LABELS, VALID)
    assert_close(many, value_and_grad(setting)(LOGITS, LABELS, VALID)[0])


@pytest.mark.parametrize("setting", ["cross_entropy_smooth", "dice_linear"])
def test_shard_map_equals_one_device(setting):
    batch, whole = jax.P("batch"), jax.P()
    step = jax.shard_map(
        step_on_each(setting),
        mesh=jax.sharding.Mesh(jax.devices(), "batch"),
        in_specs=(whole, batch, batch, batch),
        out_specs=whole,
        check_vma=False,
    )
    many = jax.jit(step)(KERNEL, LOGITS, LABELS, VALID)
    assert_close(many, one_device(setting), atol=1e-6)


@pytest.mark.parametrize(
    ("setting", "dtype"),
    [
        ("cross_entropy_smooth", jnp.float16),
        ("dice", jnp.float16),
        ("focal", jnp.bfloat16),
        ("lovasz_bins", jnp.float16),
        ("sigmoid_complement", jnp.float16),
        ("dice_linear", jnp.bfloat16),
        ("multi_label", jnp.bfloat16),
        ("boundary", jnp.float16),
        ("cldice", jnp.bfloat16),
    ],
)
def test_half_precision_sums_in_float32(setting, dtype):
    labels = np.arange(512 * 512).reshape(1, 512, 512) % 7 // 3
    noise = np.random.default_rng(0).normal(size=(1, 512, 512, 3))
    logits = jnp.array(noise + jax.nn.one_hot(labels, 3), dtype)
    value, grad = value_and_grad(setting)(logits, labels)
    assert grad.dtype == dtype
    full_value, full_grad = value_and_grad(setting)(logits.astype(jnp.float32), labels)
    np.testing.assert_allclose(value, full_value, rtol=1e-6)
    # Rounded once: a sum in half precision would be off in far more places.
    assert (grad != full_grad.astype(dtype)).mean() < 1e-3


@pytest.mark.parametrize("setting", ["focal_tversky", "generalized_dice", "dice"])
def test_debugging_of_nans_and_infinities_finds_none(setting):
    """With a class that is absent, void pixels, and saturated classes."""
    right = np.where(jax.nn.one_hot(LABELS, 3), 1e4, -1e4).astype(np.float32)
    absent = np.minimum(LABELS, 1)
    void = np.where(VALID, LABELS, 255)
    with jax.debug_nans(True), jax.debug_infs(True):
        for logits, labels in itertools.product(
            (LOGITS, right, -right), (LABELS, absent, void)
        ):
            value, grad = jax.value_and_grad(make_loss(setting))(logits, labels, VALID)
            assert value >= 0
            assert np.isfinite(grad).all()
