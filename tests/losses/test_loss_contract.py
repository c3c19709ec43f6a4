"""What DESIGN.md promises of every loss, checked for each of their settings."""

import functools
import itertools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies

from segloss import losses
from segloss.losses import soft_dice, soft_iou, softmax_cross_entropy

WEIGHTS = (0.5, 2.0, 1.5)
PENALTY = ((0.0, 1.0, 4.0), (2.0, 0.0, 0.5), (3.0, 0.0, 0.0))
SETTINGS = {
    "boundary": (losses.boundary_loss, {}),
    "cldice": (losses.soft_cldice, {"iterations": 1}),
    "cross_entropy_by_samples": (softmax_cross_entropy, {"normalize_by": "samples"}),
    "cross_entropy_smooth": (
        softmax_cross_entropy,
        {"class_weights": WEIGHTS, "label_smoothing": 0.2, "normalize_by": "weights"},
    ),
    "focal": (losses.focal_loss, {"gamma": 0.5, "class_weights": WEIGHTS}),
    "poly": (losses.poly_loss, {"epsilon": 2}),
    "top_k": (losses.top_k_cross_entropy, {"fraction": 0.4}),
    "log_bilinear": (losses.log_bilinear_loss, {"penalty": PENALTY}),
    "sigmoid": (
        losses.sigmoid_cross_entropy,
        {"pos_weight": WEIGHTS, "normalize_by": "weights"},
    ),
    "sigmoid_complement": (losses.normalized_sigmoid_cross_entropy, {}),
    "sigmoid_inverse": (
        losses.normalized_sigmoid_cross_entropy,
        {"weighting": "inverse", "normalize_by": "samples"},
    ),
    "sigmoid_gated": (losses.gated_sigmoid_cross_entropy, {}),
    "sigmoid_focal": (losses.sigmoid_focal_loss, {"gamma": 1}),
    "dice": (soft_dice, {}),
    "dice_linear": (
        soft_dice,
        {"denominator": "linear", "classes": "present", "class_weights": WEIGHTS},
    ),
    "dice_per_image": (soft_dice, {"per_image": True, "smooth": 1}),
    "iou_by_samples": (soft_iou, {"normalize_by": "samples"}),
    "iou_per_image": (
        soft_iou,
        {"per_image": True, "classes": "present", "normalize_by": "samples"},
    ),
    "tversky": (losses.tversky, {"fp_weight": 0.3, "fn_weight": 0.7}),
    "focal_tversky": (
        losses.focal_tversky,
        {"per_image": True, "classes": "present"},
    ),
    "generalized_dice": (losses.generalized_dice, {}),
    "log_cosh_dice": (losses.log_cosh_dice, {"classes": "present"}),
    "lovasz": (losses.lovasz_softmax, {}),
    # So many that crossing from one to the next is no visible step.
    "lovasz_bins": (losses.lovasz_softmax, {"bins": 2**16, "classes": "all"}),
    "lovasz_hinge": (losses.lovasz_hinge, {}),
    "lovasz_per_image": (losses.lovasz_softmax, {"per_image": True}),
    "multi_label": (soft_dice, {"multi_label": True}),
    "multi_label_linear": (
        losses.tversky,
        {
            "multi_label": True,
            "fp_weight": 0.2,
            "per_image": True,
            "classes": "present",
        },
    ),
    "power_of_mean": (losses.focal_tversky, {"power_of": "mean"}),
    "soft_labels": (losses.focal_loss, {"class_weights": WEIGHTS}),
    "soft_labels_of_regions": (soft_dice, {"denominator": "linear"}),
    "weighted_pixels": (softmax_cross_entropy, {"normalize_by": "weights"}),
    "weighted_pixels_of_regions": (
        soft_iou,
        {"per_image": True, "classes": "present"},
    ),
}
# Those whose labels are a mask for each class.
MASKS = {
    s for s in SETTINGS if s.startswith(("sigmoid", "multi_label", "lovasz_hinge"))
}
SOFT = {"soft_labels", "soft_labels_of_regions"}
# A pixel's weight follows from its label, so that shuffling keeps the two together.
WEIGHTED = {"weighted_pixels", "weighted_pixels_of_regions"}
# They compare neighbours: pixels laid out otherwise are another image, and the slope
# jumps where two are equal.
OF_NEIGHBOURHOODS = {"cldice"}


def test_no_loss_is_without_a_setting():
    assert {loss for loss, _ in SETTINGS.values()} == {*losses.LOSSES.values()}


def make_loss(setting, **changes):
    """The loss of class ids, also where it takes several labels or distances."""
    function, hyperparameters = SETTINGS[setting]
    loss = functools.partial(function, **(hyperparameters | changes))

    def loss_of_distances(logits, labels, valid=None):
        inside = jax.nn.one_hot(labels.astype(jnp.int32), logits.shape[-1])
        return loss(logits, labels, valid, distances=3 - 5 * inside)

    def loss_of_weights(logits, labels, valid=None):
        weights = 1.0 + (labels % 3).astype(logits.dtype)
        return loss(logits, labels, valid, pixel_weights=weights)

    def loss_of_soft_labels(logits, labels, valid=None):
        shares = jax.nn.one_hot(labels.astype(jnp.int32), logits.shape[-1])
        return loss(logits, shares, valid)

    if setting == "boundary":
        return loss_of_distances
    if setting in WEIGHTED:
        return loss_of_weights
    if setting in SOFT:
        return loss_of_soft_labels
    if setting not in MASKS:
        return loss

    def loss_of_masks(logits, labels, valid=None):
        targets = jax.nn.one_hot(labels.astype(jnp.int32), logits.shape[-1])
        return loss(logits, targets, None if valid is None else valid[..., None])

    return loss_of_masks


def make_batch(seed=0):
    """Eight samples of 3 x 4 pixels and 3 classes: one all void, the others partly."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(8, 3, 4, 3)).astype(np.float32)
    labels = rng.integers(0, 3, size=(8, 3, 4), dtype=np.int32)
    share = np.reshape([0, 0.9, 0.5, 0.7, 1, 0.3, 0.8, 0.6], (8, 1, 1))
    return logits, labels, rng.random((8, 3, 4)) < share


LOGITS, LABELS, VALID = make_batch()

# One of each way to compute, for what hyperparameters have no part in.
OF_EACH_KIND = (
    "boundary",
    "cldice",
    "cross_entropy_smooth",
    "dice_per_image",
    "focal_tversky",
    "generalized_dice",
    "log_bilinear",
    "lovasz",
    "lovasz_bins",
    "lovasz_hinge",
    "multi_label",
    "poly",
    "sigmoid_complement",
    "sigmoid_focal",
    "sigmoid_gated",
    "soft_labels_of_regions",
    "top_k",
    "weighted_pixels",
    "weighted_pixels_of_regions",
)

each_setting = pytest.mark.parametrize("setting", SETTINGS)
each_of_pixels = pytest.mark.parametrize(
    "setting", [setting for setting in SETTINGS if setting not in OF_NEIGHBOURHOODS]
)


@functools.cache
def value_and_grad(setting, **changes):
    return jax.jit(jax.value_and_grad(make_loss(setting, **changes)))


def assert_close(actual, desired, rtol=1e-5, atol=1e-7):
    check = functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol)
    jax.tree.map(check, actual, desired)


assert_equal = functools.partial(assert_close, rtol=0, atol=0)


@each_of_pixels
def test_it_has_the_slope_it_claims_by_finite_differences_in_float64(setting):
    """And in float32 it is a float32 scalar of the same value and slope."""
    single = value_and_grad(setting)(LOGITS, LABELS, VALID)
    assert (single[0].shape, single[0].dtype) == ((), jnp.float32)
    # Short, because the slope jumps where two pixels change places.
    step = np.random.default_rng(1).choice([-1e-5, 1e-5], LOGITS.shape)
    logits = LOGITS.astype(np.float64)
    with jax.enable_x64(True):
        up, down, double = (
            jax.tree.map(np.asarray, value_and_grad(setting)(x, LABELS, VALID))
            for x in (logits + step, logits - step, logits)
        )
    assert double[1].dtype == np.float64
    assert_close((up[0] - down[0]) / 2, (double[1] * step).sum(), rtol=1e-6, atol=1e-13)
    assert_close(single, double, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "setting",
    [
        "cross_entropy_smooth",
        "dice",
        "focal",
        "iou_per_image",
        "multi_label",
        "sigmoid_focal",
        "tversky",
    ],
)
def test_its_gradient_has_the_slope_it_claims(setting):
    step = np.random.default_rng(1).choice([-1e-5, 1e-5], LOGITS.shape)
    logits = LOGITS.astype(np.float64)

    def along_step(logits):
        return (jax.grad(make_loss(setting))(logits, LABELS, VALID) * step).sum()

    with jax.enable_x64(True):
        up, down = (
            np.asarray(value_and_grad(setting)(x, LABELS, VALID)[1])
            for x in (logits + step, logits - step)
        )
        slope = np.asarray(jax.jit(jax.grad(along_step))(logits))
    assert np.abs(slope).max() > 1e-9
    assert_close((up - down) / 2, slope, rtol=1e-6, atol=1e-14)


# The derivative of these is written by hand, for reverse mode.
OF_REGIONS = {
    setting
    for setting in SETTINGS
    if setting.startswith(("dice", "iou", "tversky", "focal_tversky", "generalized"))
} | {"log_cosh_dice", "power_of_mean", "weighted_pixels_of_regions"}


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


@each_setting
def test_a_perfect_prediction_is_a_flat_minimum(setting):
    smoothed = "label_smoothing" in SETTINGS[setting][1]
    changes = {"label_smoothing": 0.0} if smoothed else {}
    logits = np.where(jax.nn.one_hot(LABELS, 3), 1e4, -1e4).astype(np.float32)
    perfect = value_and_grad(setting, **changes)(logits, LABELS, VALID)
    assert_equal(perfect, (0.0, np.zeros_like(LOGITS)))


@each_of_pixels
def test_infinite_logits_that_are_right_cost_nothing(setting):
    smoothed = "label_smoothing" in SETTINGS[setting][1]
    changes = {"label_smoothing": 0.0} if smoothed else {}
    right = 1e4 if setting not in MASKS else np.inf
    logits = np.where(jax.nn.one_hot(LABELS, 3), right, -np.inf).astype(np.float32)
    perfect = value_and_grad(setting, **changes)(logits, LABELS, VALID)
    assert_equal(perfect, (0.0, np.zeros_like(LOGITS)))


@each_setting
def test_the_opposite_of_the_labels_is_worst_and_its_gradient_finite(setting):
    logits = np.where(jax.nn.one_hot(LABELS, 3), -1e4, 1e4).astype(np.float32)
    value, grad = value_and_grad(setting)(logits, LABELS, VALID)
    assert value > 1.2 * value_and_grad(setting)(LOGITS, LABELS, VALID)[0]
    assert np.isfinite(grad).all()


@each_setting
def test_what_a_void_pixel_holds_changes_nothing(setting):
    clean = value_and_grad(setting)(LOGITS, LABELS, VALID)
    np.testing.assert_array_equal(clean[1][~VALID], 0.0)
    for junk, void in itertools.product([np.nan, np.inf, -np.inf, 3e38], [255, -1, 1]):
        logits = np.where(VALID[..., None], LOGITS, np.float32(junk))
        labels = np.where(VALID, LABELS, void)
        assert_equal(value_and_grad(setting)(logits, labels, VALID), clean)


@each_of_pixels
def test_void_might_as_well_be_cut_out(setting):
    """Void pixels of a sample, and the padding samples beside it."""
    only = VALID & np.reshape(np.arange(8) == 1, (8, 1, 1))
    value, grad = value_and_grad(setting)(LOGITS, LABELS, only)
    cut = value_and_grad(setting)(LOGITS[only][None], LABELS[only][None])
    assert_close((value, grad[only][None]), cut)


@each_setting
def test_no_valid_pixel_is_no_loss_and_no_gradient(setting):
    nothing = value_and_grad(setting)(LOGITS, LABELS, np.zeros_like(VALID))
    assert_equal(nothing, (0.0, np.zeros_like(LOGITS)))


@pytest.mark.parametrize("setting", sorted(SETTINGS.keys() - MASKS - SOFT))
def test_a_valid_pixel_whose_label_is_no_class_is_not_overlooked(setting):
    for unknown in (255, -1, 3):
        some, all_of_it = LABELS.copy(), np.full_like(LABELS, unknown)
        some[1, 2, 3] = unknown
        everywhere = np.ones_like(VALID)
        assert np.isnan(value_and_grad(setting)(LOGITS, some, everywhere)[0])
        assert np.isnan(value_and_grad(setting)(LOGITS, all_of_it, everywhere)[0])


@pytest.mark.parametrize("setting", sorted({*OF_EACH_KIND} - OF_NEIGHBOURHOODS))
def test_uint8_labels_a_third_spatial_dim_and_a_broadcast_valid(setting):
    valid = np.reshape(np.arange(8) != 1, (8, 1, 1)) & np.ones_like(VALID)
    labels = np.where(valid, LABELS, 255).astype(np.uint8)
    value, grad = value_and_grad(setting)(
        LOGITS.reshape(8, 3, 2, 2, 3),
        labels.reshape(8, 3, 2, 2),
        valid[:, :1, :1, None],
    )
    flat = value, grad.reshape(LOGITS.shape)
    assert_close(flat, value_and_grad(setting)(LOGITS, LABELS, valid))


@each_setting
@hypothesis.given(seed=strategies.integers(0, 2**16))
@hypothesis.settings(max_examples=10, derandomize=True, deadline=None, database=None)
def test_the_order_of_samples_pixels_and_classes_does_not_matter(setting, seed):
    logits, labels, valid = make_batch(seed)
    samples, pixels, classes = map(np.random.default_rng(seed).permutation, (8, 12, 3))
    of_class = {"class_weights", "pos_weight", "penalty"}
    if setting in WEIGHTED or of_class & SETTINGS[setting][1].keys():
        classes = np.arange(3)
    if setting in OF_NEIGHBOURHOODS:
        pixels = np.arange(12)

    def shuffle(x):
        return x.reshape(8, 12, -1)[samples][:, pixels].reshape(x.shape)

    value, grad = value_and_grad(setting)(logits, labels, valid)
    shuffled = value_and_grad(setting)(
        shuffle(logits)[..., classes],
        np.argsort(classes)[shuffle(labels)].astype(np.int32),
        shuffle(valid),
    )
    assert_close(shuffled, (value, shuffle(np.array(grad))[..., classes]))


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
