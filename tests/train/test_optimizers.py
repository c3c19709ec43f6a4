import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segloss.train.optimizers import adamw, constant, cosine, polynomial, sgd
from segloss.train.step import TrainState
from segloss.trained.checkpoints import Checkpoints

PARAMS = {"conv": {"kernel": jnp.array([2.0]), "bias": jnp.array([2.0])}}
GRADS = {"conv": {"kernel": jnp.array([3.0]), "bias": jnp.array([4.0])}}
FLAT = constant(10, learning_rate=0.1)


def steps(optimizer, n):
    """Parameters (kernel, bias) after n steps with the same gradient."""
    params, state = PARAMS, optimizer.init(PARAMS)
    for _ in range(n):
        updates, state = optimizer.update(GRADS, state, params)
        params = optax.apply_updates(params, updates)
    return [float(params["conv"][k][0]) for k in ("kernel", "bias")]


def test_polynomial_falls_by_its_power_after_warm_up():
    schedule = polynomial(12, learning_rate=1.0, power=2.0, warmup_steps=2)
    # Ramp 1/3, 2/3; then (1 - t / 10)^2.
    expected = [1 / 3, 2 / 3, 1.0, 0.81, 0.64]
    np.testing.assert_allclose([schedule(i) for i in range(5)], expected, rtol=1e-6)
    np.testing.assert_allclose(schedule(12), 0.0, atol=1e-7)


def test_cosine_is_half_way_in_the_middle_and_ends_where_asked():
    schedule = cosine(10, learning_rate=0.2, end_learning_rate=0.1)
    np.testing.assert_allclose(
        [schedule(0), schedule(5), schedule(10)], [0.2, 0.15, 0.1], rtol=1e-6
    )


def test_sgd_l2_decay_goes_through_momentum():
    # Kernel: g = 3 + 0.5 * 2 = 4, w = 2 - 0.1 * 4 = 1.6; then g = 3 + 0.5 * 1.6 = 3.8,
    # m = 3.8 + 0.9 * 4 = 7.4, w = 1.6 - 0.74. Bias: m = 4, then 4 + 3.6.
    optimizer = sgd(FLAT, momentum=0.9, weight_decay=0.5)
    np.testing.assert_allclose(steps(optimizer, 1), [1.6, 1.6], rtol=1e-6)
    np.testing.assert_allclose(steps(optimizer, 2), [0.86, 0.84], rtol=1e-5)


def test_sgd_decoupled_decay_does_not():
    # w = 2 - 0.1 * (3 + 0.5 * 2) = 1.6; m = 3 + 2.7, w = 1.6 - 0.1 * (5.7 + 0.8).
    optimizer = sgd(FLAT, momentum=0.9, weight_decay=0.5, decay="decoupled")
    np.testing.assert_allclose(steps(optimizer, 2), [0.95, 0.84], rtol=1e-5)


def test_adamw_moves_by_the_rate_and_pulls_kernels_only():
    # Adam's first step is the sign of the gradient; the pull is 0.1 * 0.5 * 2.
    optimizer = adamw(FLAT, weight_decay=0.5)
    np.testing.assert_allclose(steps(optimizer, 1), [2 - 0.1 - 0.1, 2 - 0.1], rtol=1e-5)
    # As L2 the pull vanishes in the sign.
    optimizer = adamw(FLAT, weight_decay=0.5, decay="l2")
    np.testing.assert_allclose(steps(optimizer, 1), [1.9, 1.9], rtol=1e-5)


def test_clipping_scales_the_whole_gradient():
    # The norm is 5, so both shrink to a fifth.
    optimizer = sgd(FLAT, momentum=0.0, clip_norm=1.0)
    np.testing.assert_allclose(steps(optimizer, 1), [2 - 0.06, 2 - 0.08], rtol=1e-6)


def test_accumulated_steps_update_once_by_their_mean_gradient():
    # Rates 1, 3/4, 1/2, 1/4 of four steps: the updates have the first and the third.
    schedule = polynomial(4, learning_rate=1.0, power=1.0)
    optimizer = sgd(schedule, momentum=0.0, clip_norm=5.0, accumulate_steps=2)
    params = {"kernel": jnp.array([0.0, 0.0])}
    state, seen = optimizer.init(params), []
    for gradient in ([4.0, 0.0], [2.0, 8.0], [0.0, 6.0], [0.0, 10.0]):
        updates, state = optimizer.update(
            {"kernel": jnp.array(gradient)}, state, params
        )
        params = optax.apply_updates(params, updates)
        seen.append(params["kernel"].tolist())
    # The means are (3, 4), of norm 5, and (0, 8), clipped to (0, 5).
    expected = [[0, 0], [-3, -4], [-3, -4], [-3, -6.5]]
    np.testing.assert_allclose(seen, expected, rtol=1e-6)


def test_gradients_accumulated_so_far_survive_a_checkpoint(tmp_path):
    optimizer = sgd(FLAT, momentum=0.0, accumulate_steps=2)
    state = TrainState(
        step=jnp.ones((), jnp.int32),
        params=PARAMS,
        batch_stats={},
        opt_state=optimizer.update(GRADS, optimizer.init(PARAMS), PARAMS)[1],
        key=jnp.zeros(2, jnp.uint32),
    )
    with contextlib.closing(Checkpoints(tmp_path / "checkpoints")) as checkpoints:
        checkpoints.save(jax.tree.map(np.asarray, state), mean_iou=None, meta={})
    with contextlib.closing(
        Checkpoints(tmp_path / "checkpoints", read_only=True)
    ) as checkpoints:
        restored = checkpoints.restore(state).state
    none = jax.tree.map(jnp.zeros_like, GRADS)
    updates, _ = optimizer.update(none, restored.opt_state, PARAMS)
    # The mean of the gradients (3, 4) before and 0 after it.
    moved = [float(updates["conv"][k][0]) for k in ("kernel", "bias")]
    np.testing.assert_allclose(moved, [-0.15, -0.2], rtol=1e-6)


def test_accumulation_leaves_frozen_groups_alone():
    groups = [dict(match="bias", frozen=True)]
    optimizer = sgd(FLAT, momentum=0.0, accumulate_steps=2, groups=groups)
    np.testing.assert_allclose(steps(optimizer, 3), [2 - 0.1 * 3, 2.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sgd(FLAT, decay="l3"), "sgd: decay must be 'l2' or 'decoupled'.*'l3'"),
        (lambda: adamw(FLAT, weight_decay=-1.0), "adamw: weight_decay must be >= 0"),
        (lambda: sgd(FLAT, clip_norm=0.0), "sgd: clip_norm must be > 0 or None, got 0"),
        (
            lambda: adamw(FLAT, accumulate_steps=0),
            "adamw: accumulate_steps must be >= 1, got 0",
        ),
        (lambda: cosine(5, learning_rate=0.0), "cosine: learning_rate must be > 0"),
        (
            lambda: polynomial(5, learning_rate=1.0, warmup_steps=5),
            r"polynomial: warmup_steps must be in \[0, total_steps=5\), got 5",
        ),
    ],
)
def test_bad_hyperparameters_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
