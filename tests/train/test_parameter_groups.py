import contextlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segloss.train.optimizers import adamw, constant, sgd
from segloss.train.step import TrainState
from segloss.trained.checkpoints import Checkpoints


def twos(*shape):
    return np.full(shape, 2.0, np.float32)


FLAT = constant(10, learning_rate=0.1)
PARAMS = {
    "aspp": {"conv0": {"bias": twos(2), "kernel": twos(3, 2)}},
    "backbone": {
        "conv1": {"kernel": twos(5, 3)},
        "norm1": {"bias": twos(3), "scale": twos(3)},
    },
}
ASPP_KERNEL, ASPP_BIAS, CONV1, NORM_BIAS, NORM_SCALE = PATHS = [
    "aspp/conv0/kernel",
    "aspp/conv0/bias",
    "backbone/conv1/kernel",
    "backbone/norm1/bias",
    "backbone/norm1/scale",
]
DEEPLAB = (
    dict(match="aspp/.*/kernel", learning_rate_factor=10.0),
    dict(match="aspp/.*/bias", learning_rate_factor=20, weight_decay=0),
    dict(match="norm", frozen=True),
)


def by_path(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def steps(optimizer, n):
    """Of each parameter a number after n steps; gradients are 3, and 4 of biases."""

    @jax.jit
    def trained(params):
        grads = jax.tree.map_with_path(
            lambda path, x: jnp.full(x.shape, 4.0 if path[-1].key == "bias" else 3.0),
            params,
        )
        state = optimizer.init(params)
        for _ in range(n):
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        return params

    return {k: float(np.ravel(x)[0]) for k, x in by_path(trained(PARAMS)).items()}


def test_groups_have_their_own_rate_and_pull_or_stay():
    optimizer = sgd(FLAT, momentum=0.9, weight_decay=0.5, groups=DEEPLAB)
    # Kernels: g = 3 + 0.5 * 2 = 4. That of the pyramid moves by 10 * 0.1 * 4.
    one = {ASPP_KERNEL: -2.0, ASPP_BIAS: -6.0, CONV1: 1.6}
    # g = 3 - 0.5 * 2 = 2, m = 2 + 0.9 * 4 = 5.6; m = 4 + 3.6; and as without groups.
    two = {ASPP_KERNEL: -7.6, ASPP_BIAS: -6 - 2 * 7.6, CONV1: 0.86}
    norms = {NORM_BIAS: 2.0, NORM_SCALE: 2.0}
    assert steps(optimizer, 1) == pytest.approx(one | norms, rel=1e-5)
    assert steps(optimizer, 2) == pytest.approx(two | norms, rel=1e-5)


def test_pull_of_a_group_holds_for_biases_too():
    groups = [dict(match="aspp", weight_decay=0.25)]
    moved = steps(sgd(FLAT, momentum=0.0, weight_decay=0.5, groups=groups), 1)
    # g = 3 + 0.25 * 2, 4 + 0.25 * 2; outside 3 + 0.5 * 2 and, not being a kernel, 4.
    expected = {ASPP_KERNEL: 1.65, ASPP_BIAS: 1.55, CONV1: 1.6, NORM_BIAS: 1.6}
    assert moved == pytest.approx(expected | {NORM_SCALE: 1.7}, rel=1e-6)


def test_first_group_that_matches_has_the_parameter():
    groups = [dict(match="bias$", frozen=True), dict(match="", learning_rate_factor=2)]
    moved = steps(sgd(FLAT, momentum=0.0, groups=groups), 1)
    assert moved == pytest.approx(
        {path: 2.0 if path.endswith("bias") else 2 - 0.2 * 3 for path in PATHS}
    )


def test_decoupled_pull_grows_with_the_rate():
    groups = [dict(match="aspp", learning_rate_factor=2.0)]
    moved = steps(adamw(FLAT, weight_decay=0.5, groups=groups), 1)
    # Adam's first step is the sign of the gradient; kernels are pulled by 0.5 * 2.
    assert moved[ASPP_KERNEL] == pytest.approx(2 - 0.2 * (1 + 1), rel=1e-5)
    assert moved[ASPP_BIAS] == pytest.approx(2 - 0.2, rel=1e-5)
    assert moved[CONV1] == pytest.approx(2 - 0.1 * (1 + 1), rel=1e-5)


def test_clipping_is_by_the_norm_of_the_gradients_of_all_groups_that_train():
    # Squares: 9 for each of 21 numbers in kernels, 16 for each of 2 biases.
    factor = 1 / np.sqrt(21 * 9 + 2 * 16)
    moved = steps(sgd(FLAT, momentum=0.0, clip_norm=1.0, groups=DEEPLAB), 1)
    expected = {
        ASPP_KERNEL: 2 - 3 * factor,
        ASPP_BIAS: 2 - 2 * 4 * factor,
        CONV1: 2 - 0.1 * 3 * factor,
        NORM_BIAS: 2.0,
        NORM_SCALE: 2.0,
    }
    assert moved == pytest.approx(expected, rel=1e-5)


def test_frozen_parameters_take_no_memory():
    state = adamw(FLAT, groups=DEEPLAB).init(PARAMS)
    # Two moments of 6, 2 and 15 numbers; the norms hold 6.
    assert sum(x.size for x in jax.tree.leaves(state) if x.ndim) == 2 * (6 + 2 + 15)


def test_checkpoint_holds_the_state_of_groups(tmp_path):
    optimizer = adamw(FLAT, groups=DEEPLAB)
    start = optimizer.init(PARAMS)
    _, opt_state = jax.jit(optimizer.update)(PARAMS, start, PARAMS)
    rest = dict(params=PARAMS, batch_stats={}, key=np.zeros(2, np.uint32))
    state = TrainState(step=np.int32(1), opt_state=opt_state, **rest)
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(jax.tree.map(np.asarray, state), mean_iou=None, meta={})
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        like = TrainState(step=np.int32(0), opt_state=start, **rest)
        restored = checkpoints.restore(like).state
    chex.assert_trees_all_equal(restored.opt_state, opt_state)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(restored.opt_state, start)


def test_state_without_groups_is_what_older_checkpoints_hold():
    state = sgd(FLAT, weight_decay=0.5, clip_norm=1.0).init({"w": jnp.ones(1)})
    assert list(by_path(state)) == ["2/trace/w", "3/count"]


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (dict(frozen=True), "sgd: groups needs the hyperparameter 'match'"),
        (
            dict(match="a", lr=1),
            "groups has no hyperparameter 'lr'; known are match, l",
        ),
        (dict(match="("), r"group '\(': match must be a regular expression \(missing"),
        (
            dict(match="a", learning_rate_factor=0),
            "group 'a': learning_rate_factor must be > 0, got 0; use frozen=True",
        ),
        (dict(match="a", weight_decay=-1), "group 'a': weight_decay must be >= 0, got"),
        (
            dict(match="a", weight_decay=0, frozen=True),
            "frozen must not be combined with",
        ),
        (
            dict(match="head/"),
            "group 'head/': match must find .*; some of the 5 parameters are aspp/con",
        ),
        # The groups before it have them all.
        (dict(match="norm1/bias"), "group 'norm1/bias': match must find a parameter"),
    ],
)
def test_wrong_groups_are_named(group, message):
    with pytest.raises(ValueError, match=message):
        sgd(FLAT, groups=[dict(match="norm", frozen=True), group]).init(PARAMS)
