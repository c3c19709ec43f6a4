"""What frozen parameters save of a training step, and that they stay as they are."""

import functools

import chex
import jax
import numpy as np
import pytest

from segloss.devices import AXIS, first_replica, map_over_devices, replicate
from segloss.losses import make_loss
from segloss.models import make_model
from segloss.train import step as steps
from segloss.train.optimizers import constant, sgd
from segloss.train.parameter_groups import trained_part
from segloss.train.step import make_state

HW = (8, 8)


def begin(frozen=None, *, learning_rate=1.0, loss_scale=None, **hyperparameters):
    """A step of a tiny U-Net on one device, and the state before it as shapes."""
    unet = dict(width=4, norm="none") | hyperparameters
    model = make_model("unet", num_classes=3, axis_name=AXIS, **unet)
    groups = [dict(match=frozen, frozen=True)] if frozen else ()
    optimizer = sgd(constant(9, learning_rate=learning_rate), groups=groups)
    step = map_over_devices(
        steps.train_step,
        devices=jax.devices()[:1],
        model=model,
        loss=make_loss("softmax_cross_entropy"),
        optimizer=optimizer,
        augment=lambda keys, images, labels, valid: (images / 255, labels, valid),
        num_classes=3,
    )
    make = functools.partial(make_state, model, optimizer, seed=0, image_hw=HW)
    return step, functools.partial(make, loss_scale=loss_scale)


def make_batch():
    rng = np.random.default_rng(0)
    return {
        "images": rng.integers(0, 256, (1, 2, *HW, 3), np.uint8),
        "labels": rng.integers(0, 3, (1, 2, *HW), np.uint8),
        "valid": np.ones((1, 2, *HW), bool),
        "sample_valid": np.ones((1, 2), bool),
    }


def count(frozen=None, **options):
    """Operations of the step by name, before XLA optimises it; nothing is compiled."""
    step, make = begin(frozen, **options)
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), jax.eval_shape(make)
    )
    chex.assert_trees_all_equal_shapes(
        jax.eval_shape(step, state, make_batch())[0], state
    )
    text = step.lower(state, make_batch()).as_text()
    names = dict(
        convolutions="stablehlo.convolution",
        summed_over_devices="stablehlo.all_reduce",
        summed_over_pixels="across dimensions = [0, 1, 2] : (tensor<2x",
    )
    return {name: text.count(part) for name, part in names.items()}


def saved(frozen, **options):
    all_, fewer = count(**options), count(frozen, **options)
    return {name: all_[name] - fewer[name] for name in all_}


@pytest.mark.parametrize("loss_scale", [None, "dynamic"])
def test_a_frozen_stage_has_no_backward_pass(loss_scale):
    # Two convolutions: the gradients of both kernels, of the second one's input, and of
    # the stage's output. Biases are summed over pixels; all four are averaged.
    assert saved("down0", depth=1, loss_scale=loss_scale) == dict(
        convolutions=4, summed_over_devices=4, summed_over_pixels=2
    )


def test_frozen_norms_by_running_statistics_need_no_sums_over_pixels():
    # Scale and bias of two norms. By the batch, its mean and variance need the sums.
    expected = dict(convolutions=0, summed_over_devices=4, summed_over_pixels=4)
    assert saved("norm", depth=0, norm="frozen") == expected
    assert saved("norm", depth=0, norm="batch") == expected | {"summed_over_pixels": 0}


def test_step_trains_the_others_as_without_groups():
    ends, flops = [], []
    for frozen in (None, "bottom/conv0/"):
        step, make = begin(frozen, depth=0, width=2, norm="batch")
        start = make()
        compiled = step.lower(
            replicate(start, jax.devices()[:1]), make_batch()
        ).compile()
        flops.append(compiled.cost_analysis()["flops"])
        state = replicate(start, jax.devices()[:1])
        ends.append(first_replica(compiled(state, make_batch())))
    (wanted, _), (found, scalars) = ends
    # The frozen convolution has 3 input channels, the next one has 2; each has 2 output
    # channels. All 9 products at all but the border's pixels, an addition each.
    inner = 2 * (HW[0] - 2) * (HW[1] - 2)
    assert flops[0] - flops[1] > 2 * 9 * inner * (3 * 2 + 2 * 2)
    still = start.params["bottom"].pop("conv0")
    chex.assert_trees_all_equal(found.params["bottom"].pop("conv0"), still)
    assert not np.array_equal(
        wanted.params["bottom"].pop("conv0")["conv"]["kernel"], still["conv"]["kernel"]
    )
    chex.assert_trees_all_close(found.params, wanted.params, rtol=1e-5, atol=1e-6)
    # The batch normalises behind frozen parameters, too.
    chex.assert_trees_all_close(found.batch_stats, wanted.batch_stats, rtol=1e-6)
    moved = jax.tree.map(np.subtract, found.params, start.params)
    # By the gradient, at a learning rate of 1.
    norm = np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(moved)))
    np.testing.assert_allclose(scalars["grad_norm"], norm, rtol=1e-5)


def test_gradients_of_frozen_parameters_are_not_accumulated():
    params = {"a": {"kernel": np.ones(3)}, "b": {"kernel": np.ones(5)}}
    groups = [dict(match="^a/", frozen=True)]
    schedule = constant(9, learning_rate=1.0)
    optimizer = sgd(schedule, accumulate_steps=2, groups=groups)
    state = optimizer.init(params)
    held = [x.size for x in jax.tree.leaves(state) if x.ndim]
    assert held == [5, 5]  # momentum, and the sum of gradients
    part = trained_part(optimizer, params)
    for grads in (part, params):
        updates, _ = optimizer.update(grads, state, params)
        chex.assert_trees_all_equal_shapes(updates, grads)


def test_a_run_that_would_train_nothing_is_refused():
    optimizer = sgd(
        constant(9, learning_rate=1.0), groups=[dict(match="", frozen=True)]
    )
    with pytest.raises(
        ValueError, match=r"groups: a parameter must stay .*are a/kernel"
    ):
        optimizer.init({"a": {"kernel": np.ones(3)}})
