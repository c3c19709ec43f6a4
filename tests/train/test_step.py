import functools

import chex
import jax
import numpy as np
import pytest
from PIL import Image

from segloss.data import BalanceBatch, iterate_batches, load_batch
from segloss.data.augment import normalize
from segloss.devices import AXIS, first_replica, map_over_devices, replicate, shard
from segloss.losses import boundary_loss, softmax_cross_entropy
from segloss.train import loop, make_setup, step, train
from segloss.train import step as steps
from segloss.train.first_state import make_fresh_state
from segloss.train.step import make_state

pytestmark = pytest.mark.shared_out


def begin(setup, num_devices, *, mapping="pmap"):
    """The step on so many devices, and the state before the first."""
    devices = jax.devices()[:num_devices]
    train_step = map_over_devices(
        steps.train_step,
        mapping=mapping,
        donate_first=True,
        devices=devices,
        model=setup.model,
        loss=setup.loss,
        optimizer=setup.optimizer,
        augment=setup.augment,
        num_classes=setup.dataset.num_classes,
    )
    return train_step, replicate(make_fresh_state(setup), devices)


def first_batches(setup, num_steps):
    return iterate_batches(
        setup.dataset.source("train"),
        setup.sampler,
        setup.loading,
        start=0,
        stop=num_steps,
        # The same global batch of 8 rows for 1, 2 and 4 devices.
        num_devices=4,
    )


def loss_curve(setup, num_devices, num_steps):
    """Losses and gradient norms of the first steps on so many devices."""
    train_step, state = begin(setup, num_devices)
    curve = []
    for batch in first_batches(setup, num_steps):
        state, scalars = train_step(state, shard(batch, num_devices))
        curve.append([float(np.asarray(scalars[k])[0]) for k in ("loss", "grad_norm")])
    return np.array(curve)


@pytest.fixture
def compound_config(tiny_config):
    """Batches of different sizes under a mean over pixels and one over classes."""
    with tiny_config.ignore_type():
        tiny_config.loss = [
            dict(name="softmax_cross_entropy"),
            # So that its gradient is about as large.
            dict(name="soft_dice", weight=20.0),
        ]
    tiny_config.sampler = dict(name="balance_batch", batch_max=7, batch_cl=5)
    return tiny_config


def test_1_2_and_4_devices_give_the_same_loss_curve(compound_config):
    setup = make_setup(compound_config)
    sizes = {len(setup.sampler[k]) for k in range(6)}
    assert len(sizes) > 1, "batches must differ in size, or padding is not tested"
    assert min(sizes) <= 6, "a device must be without a sample"
    one, two, four = (loss_curve(setup, n, 6) for n in (1, 2, 4))
    np.testing.assert_allclose(two, one, rtol=2e-4)
    np.testing.assert_allclose(four, one, rtol=2e-4)
    assert one[0, 0] != one[1, 0]


def test_step_compiles_once_over_50_batches_of_different_sizes(
    tiny_config, tmp_path, monkeypatch, caplog
):
    tiny_config.total_steps = 50
    tiny_config.checkpoint_every_steps = 50
    tiny_config.evaluate_every_steps = 20
    tiny_config.sampler = dict(name="balance_batch", batch_max=7, batch_cl=5)
    sampler = make_setup(tiny_config).sampler
    assert len({len(sampler[k]) for k in range(50)}) > 2
    chex.clear_trace_counter()
    once = chex.assert_max_traces(step.train_step, n=1)
    monkeypatch.setattr(loop, "train_step", once)
    compiled = {}

    def on_step(step):
        # What pmap compiles is called `_fun`.
        messages = [record.getMessage() for record in caplog.records]
        compiled[step] = sum("XLA compilation of jit(_fun)" in m for m in messages)

    with jax.log_compiles(), caplog.at_level("WARNING"):
        assert train(tiny_config, tmp_path, on_step=on_step)["step"] == 50
    # Traced once is not yet compiled once: a state placed otherwise compiles again.
    assert compiled[1] > 0
    assert compiled[19] == compiled[1]
    # Step 20 adds the programs of the shares and of the evaluation.
    assert compiled[21] > compiled[19]
    assert compiled[50] == compiled[21]


@pytest.mark.parametrize("devices", [1, 2])
def test_shard_map_and_pmap_are_the_same_step(tiny_config, devices):
    setup = make_setup(tiny_config)
    (batch,) = first_batches(setup, 1)
    ends = []
    for mapping in ("pmap", "shard_map"):
        train_step, state = begin(setup, devices, mapping=mapping)
        for _ in range(2):
            state, scalars = train_step(state, shard(batch, devices))
        ends.append(first_replica((state, scalars)))
    chex.assert_trees_all_close(*ends, rtol=1e-6, atol=1e-7)


def test_a_mapping_that_is_unknown_is_refused(tiny_config):
    with tiny_config.unlocked():
        tiny_config.mapping = "xmap"
    with pytest.raises(ValueError, match="'pmap' or 'shard_map', got 'xmap'"):
        make_setup(tiny_config)


def test_trace_count_notices_a_second_shape(tiny_config, monkeypatch):
    """The test above can fail: a batch of another size is a second trace."""
    setup = make_setup(tiny_config)
    chex.clear_trace_counter()
    monkeypatch.setattr(
        step, "train_step", chex.assert_max_traces(step.train_step, n=1)
    )
    train_step, state = begin(setup, 1)
    one, two = (shard(batch, 1) for batch in first_batches(setup, 2))
    jax.eval_shape(train_step, state, one)
    jax.eval_shape(train_step, state, two)
    smaller = jax.tree.map(lambda x: x[:, :4], two)
    with pytest.raises(AssertionError, match="traced"):
        jax.eval_shape(train_step, state, smaller)


def test_attention_is_that_of_the_batch_under_the_loss(tiny_config):
    # Nothing is cut off or moved, so the class index knows the pixels.
    tiny_config.augment = dict(scale_range=(1.0, 1.0), flip_probability=0.0)
    with tiny_config.ignore_type():
        weights = (0.0, *[1.0] * 20)
        tiny_config.loss = dict(name="softmax_cross_entropy", class_weights=weights)
    setup = make_setup(tiny_config)
    names = setup.dataset.class_names
    attention_step = map_over_devices(
        steps.attention_step,
        model=setup.model,
        loss=setup.loss,
        augment=setup.augment,
        class_names=names,
    )
    state = make_state(setup.model, setup.optimizer, seed=0, image_hw=(32, 32))
    batch = load_batch(
        setup.dataset.source("train"), setup.sampler[0], setup.loading, batch_size=16
    )
    shares = first_replica(attention_step(replicate(state), shard(batch)))
    pixels, gradient = (
        np.array([shares[f"{kind}_share/{name}"] for name in names])
        for kind in ("pixel", "gradient")
    )
    counts = setup.dataset.class_index("train").pixel_counts[setup.sampler[0]].sum(0)
    np.testing.assert_allclose(pixels, counts / counts.sum(), rtol=1e-6)
    # All that is there but the background, which weighs nothing.
    np.testing.assert_array_equal(gradient > 0, (counts > 0) & (np.arange(21) > 0))
    np.testing.assert_allclose(gradient.sum(), 1.0, rtol=1e-6)


def test_bfloat16_computes_in_half_and_keeps_float32_parameters(compound_config):
    full = loss_curve(make_setup(compound_config), 1, 3)
    compound_config.model.dtype = "bfloat16"
    setup = make_setup(compound_config)
    state = make_state(setup.model, setup.optimizer, seed=0, image_hw=(32, 32))
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {np.dtype(np.float32)}
    half = loss_curve(setup, 1, 3)
    np.testing.assert_allclose(half[:, 0], full[:, 0], rtol=0.05)
    assert not np.array_equal(half, full)


def test_same_seed_same_state_other_seed_another(tiny_config):
    setup = make_setup(tiny_config)
    a, b, c = (
        make_state(setup.model, setup.optimizer, seed=s, image_hw=(32, 32))
        for s in (0, 0, 1)
    )
    chex.assert_trees_all_equal(a, b)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(a.params, c.params)


def test_balance_batch_is_what_the_demo_trains_with(tiny_config):
    assert isinstance(make_setup(tiny_config).sampler, BalanceBatch)


def nearest(array, hw):
    """`[b, h, w, ...]` as PIL resizes each image and channel."""
    if array.ndim == 4:
        return np.stack([nearest(x, hw) for x in np.moveaxis(array, -1, 0)], axis=-1)
    images = [Image.fromarray(x.astype(np.float32)) for x in array]
    resized = [x.resize(hw[::-1], Image.Resampling.NEAREST) for x in images]
    return np.stack([np.asarray(x) for x in resized]).astype(array.dtype)


@pytest.fixture
def multi_scale_setup(tiny_config):
    """A network at two scales, on batches that augmentation leaves as they are."""
    still = dict(brightness=0.0, contrast=0.0, saturation=0.0, flip_probability=0.0)
    tiny_config.augment = dict(scale_range=(1.0, 1.0), **still)
    unet = dict(name="unet", depth=0, width=2, norm="none", input_stride=2)
    with tiny_config.ignore_type():
        tiny_config.model = dict(name="multi_scale", scales=(0.75, 1.0), network=unet)
        tiny_config.loss = [
            dict(name="softmax_cross_entropy"),
            dict(name="boundary_loss", weight=0.01),
        ]
    return make_setup(tiny_config)


def test_each_of_several_logits_is_punished_at_its_own_size(multi_scale_setup):
    setup = multi_scale_setup
    train_step, state = begin(setup, 1)
    (batch,) = first_batches(setup, 1)
    apply = jax.jit(functools.partial(setup.model.apply, train=True))
    images = normalize(jax.numpy.asarray(batch["images"]))
    logits = apply(first_replica(state).variables, images)
    # Of 32 pixels, 24 and 32, which the network halves.
    sizes = [each.shape[1:3] for each in logits]
    assert sizes == [(12, 12), (16, 16), (16, 16)]
    expected = 0.0
    for each, hw in zip(logits, sizes, strict=True):
        names = ("labels", "valid", "distances")
        labels, valid, distances = (nearest(batch[name], hw) for name in names)
        expected += softmax_cross_entropy(each, labels, valid)
        expected += 0.01 * boundary_loss(each, labels, valid, distances=distances)
    _, scalars = train_step(state, shard(batch, 1))
    np.testing.assert_allclose(first_replica(scalars)["loss"], expected, rtol=1e-4)


def test_several_logits_on_2_devices_give_the_loss_curve_of_1(multi_scale_setup):
    one, two = (loss_curve(multi_scale_setup, n, 3) for n in (1, 2))
    np.testing.assert_allclose(two, one, rtol=2e-4)
    assert one[0, 0] != one[1, 0]


def test_attention_of_several_logits_is_that_of_the_fused(multi_scale_setup):
    setup = multi_scale_setup
    names = setup.dataset.class_names
    attention_step = jax.pmap(
        functools.partial(
            step.attention_step,
            model=setup.model,
            loss=setup.loss,
            augment=setup.augment,
            class_names=names,
        ),
        axis_name=AXIS,
        devices=jax.devices()[:1],
    )
    _, state = begin(setup, 1)
    (batch,) = first_batches(setup, 1)
    shares = first_replica(attention_step(state, shard(batch, 1)))
    labels, valid = (nearest(batch[name], (16, 16)) for name in ("labels", "valid"))
    counts = np.bincount(labels[valid], minlength=len(names))
    pixels = [shares[f"pixel_share/{name}"] for name in names]
    np.testing.assert_allclose(pixels, counts / counts.sum(), rtol=1e-5)
    gradient = np.array([shares[f"gradient_share/{name}"] for name in names])
    np.testing.assert_array_equal(gradient > 0, counts > 0)
