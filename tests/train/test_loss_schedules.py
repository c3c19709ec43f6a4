import os
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import curve

from segloss import losses
from segloss.data import iterate_batches
from segloss.devices import first_replica, map_over_devices, replicate, shard
from segloss.train import Stopped, loop, make_setup, step, train
from segloss.train import step as steps
from segloss.train.loss_schedules import cosine, linear, piecewise_constant
from segloss.train.step import make_state
from segloss.trained.checkpoints import Checkpoints

pytestmark = pytest.mark.shared_out

# Over 4 steps the weight is 0, 1/2, 1, 1, and gamma 2, 2, 1/2, 1/2.
WEIGHT = dict(name="linear", init_value=0.0, end_value=1.0, transition_steps=2)
GAMMA = dict(name="piecewise_constant", values=(2.0, 0.5), boundaries=(2,))
WEIGHTS, GAMMAS = (0.0, 0.5, 1.0, 1.0), (2.0, 2.0, 0.5, 0.5)
LOGGED = "loss_schedule/soft_dice.weight", "loss_schedule/focal_loss.gamma"


def set_loss(config, loss):
    with config.ignore_type():
        del config.loss
        config.loss = loss


def terms(weight, gamma):
    # So that both have gradients of about the same size.
    return [
        dict(name="focal_loss", gamma=gamma, weight=0.05),
        dict(name="soft_dice", weight=weight),
    ]


@pytest.fixture
def scheduled_config(tiny_config):
    set_loss(tiny_config, terms(WEIGHT, GAMMA))
    return tiny_config


def batches_of(setup):
    return iterate_batches(
        setup.dataset.source("train"),
        setup.sampler,
        setup.loading,
        start=0,
        stop=4,
        num_devices=jax.device_count(),
    )


def step_of(setup):
    return map_over_devices(
        steps.train_step,
        donate_first=True,
        model=setup.model,
        loss=setup.loss,
        optimizer=setup.optimizer,
        augment=setup.augment,
        num_classes=setup.dataset.num_classes,
    )


def test_linear_is_constant_before_and_after_its_transition():
    schedule = linear(
        9, init_value=1, end_value=0.2, transition_begin=2, transition_steps=4
    )
    expected = [1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0.2]
    np.testing.assert_allclose([schedule(i) for i in range(8)], expected, rtol=1e-6)
    rest = linear(9, init_value=0.0, end_value=3.5, transition_begin=2)
    np.testing.assert_allclose([rest(2), rest(3), rest(9)], [0, 0.5, 3.5], rtol=1e-6)


def test_steps_may_be_shares_of_the_run():
    shares = linear(
        8, init_value=1, end_value=0.2, transition_begin=0.25, transition_steps=0.5
    )
    assert [float(shares(i)) for i in (0, 2, 4, 6)] == pytest.approx([1, 1, 0.6, 0.2])
    jumps = piecewise_constant(8, values=(0.0, 1.0, 0.5), boundaries=(0.25, 0.5))
    assert [float(jumps(i)) for i in range(5)] == [0.0, 0.0, 1.0, 1.0, 0.5]


def test_cosine_is_half_way_in_the_middle():
    schedule = cosine(8, init_value=0.2, end_value=1.0)
    # (1 - cos(pi / 4)) / 2 of the way after a quarter.
    quarter = 0.2 + 0.8 * (1 - np.sqrt(0.5)) / 2
    expected = [0.2, quarter, 0.6, 1.0, 1.0]
    np.testing.assert_allclose(
        [schedule(i) for i in (0, 2, 4, 8, 9)], expected, rtol=1e-6
    )


def test_piecewise_constant_jumps_at_its_boundaries():
    schedule = piecewise_constant(9, values=(0.0, 1.0, 0.5), boundaries=(2, 5))
    found = [float(schedule(i)) for i in range(7)]
    assert found == [0.0, 0.0, 1.0, 1.0, 1.0, 0.5, 0.5]


@pytest.mark.parametrize("make", [linear, cosine])
def test_the_ends_of_a_transition_are_exact(make):
    for first, last in ((1.0, 0.3), (0.3, 1.0), (0.0, 0.7)):
        schedule = make(7, init_value=first, end_value=last)
        assert schedule(0) == jnp.float32(first)
        assert schedule(7) == jnp.float32(last)


def test_a_step_takes_the_values_of_its_schedules(scheduled_config):
    setup = make_setup(scheduled_config)
    train_step = step_of(setup)
    state = make_state(setup.model, setup.optimizer, seed=0, image_hw=(32, 32))
    for batch, weight, gamma in zip(batches_of(setup), WEIGHTS, GAMMAS, strict=True):
        set_loss(scheduled_config, terms(weight, gamma))
        with_numbers = step_of(make_setup(scheduled_config))
        expected = first_replica(with_numbers(replicate(state), shard(batch)))
        found = first_replica(train_step(replicate(state), shard(batch)))
        assert [found[1].pop(name) for name in LOGGED] == [weight, gamma]
        chex.assert_trees_all_close(found[1], expected[1], rtol=1e-5)
        state = found[0]


def test_the_shares_of_the_gradient_are_those_at_the_step(tiny_config):
    # First the loss is cross-entropy alone, after a step it is nine parts Dice.
    jump = dict(name="piecewise_constant", values=(0.0, 9.0), boundaries=(1,))
    by_name = {
        name: [
            dict(name="softmax_cross_entropy", weight=0.1),
            dict(name="soft_dice", weight=weight),
        ]
        for name, weight in (("jump", jump), (0, 0.0), (1, 9.0))
    }
    shares = {}
    for name, loss in by_name.items():
        set_loss(tiny_config, loss)
        setup = make_setup(tiny_config)
        attention_step = map_over_devices(
            steps.attention_step,
            model=setup.model,
            loss=setup.loss,
            augment=setup.augment,
            class_names=setup.dataset.class_names,
        )
        state = make_state(setup.model, setup.optimizer, seed=0, image_hw=(32, 32))
        batch = shard(next(iter(batches_of(setup))))
        for done in (0, 1):
            now = replicate(state.replace(step=jnp.asarray(done)))
            shares[name, done] = first_replica(attention_step(now, batch))
    for done in (0, 1):
        chex.assert_trees_all_close(shares["jump", done], shares[done, done], rtol=1e-4)
    background = [shares["jump", k]["gradient_share/background"] for k in (0, 1)]
    assert abs(background[0] - background[1]) > 0.1


def test_a_run_compiles_its_step_once_and_logs_the_values(
    scheduled_config, tmp_path, monkeypatch, caplog
):
    chex.clear_trace_counter()
    once = chex.assert_max_traces(step.train_step, n=1)
    monkeypatch.setattr(loop, "train_step", once)
    scheduled_config.evaluate_every_steps = 4
    compiled = {}

    def on_step(number):
        messages = [record.getMessage() for record in caplog.records]
        compiled[number] = sum("XLA compilation of jit(_fun)" in m for m in messages)

    with jax.log_compiles(), caplog.at_level("WARNING"):
        train(scheduled_config, tmp_path, on_step=on_step)
    assert compiled[1] > 0
    assert compiled[3] == compiled[1]
    lines = [line for line in curve(tmp_path) if "loss" in line]
    assert [[line[name] for name in LOGGED] for line in lines] == [
        list(pair) for pair in zip(WEIGHTS, GAMMAS, strict=True)
    ]


def test_a_stopped_and_resumed_run_continues_its_schedules(scheduled_config, tmp_path):
    def stop_after_1(number):
        if number == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        train(scheduled_config, tmp_path / "parts", on_step=stop_after_1)
    train(scheduled_config, tmp_path / "parts")
    train(scheduled_config, tmp_path / "whole")
    parts, whole = (curve(tmp_path / name) for name in ("parts", "whole"))
    assert [line[LOGGED[0]] for line in whole if "loss" in line] == list(WEIGHTS)
    assert parts == whole
    setup = make_setup(scheduled_config)
    like = make_state(setup.model, setup.optimizer, seed=0, image_hw=(32, 32))
    states = []
    for name in ("parts", "whole"):
        checkpoints = Checkpoints(tmp_path / name / "checkpoints", read_only=True)
        states.append(checkpoints.restore(like).state)
        checkpoints.close()
    chex.assert_trees_all_equal(*states)
    # A run with another schedule is another run.
    scheduled_config.loss[1]["weight"]["end_value"] = 2.0
    with pytest.raises(ValueError, match="holds a run with another config: loss was"):
        train(scheduled_config, tmp_path / "parts")


def test_masks_and_terms_of_the_same_loss_may_be_scheduled(binary_folder, tmp_path):
    from configs import folder

    config = folder.get_config("smoke").unlock()
    config.data = config.data.to_dict() | {
        "root": str(binary_folder),
        "ignore_label": 2,
        "data_dir": str(tmp_path),
    }
    half = dict(name="linear", init_value=1.0, end_value=0.0, transition_steps=2)
    set_loss(
        config,
        [
            dict(name="sigmoid_cross_entropy", pos_weight=half),
            dict(name="sigmoid_focal_loss", gamma=half),
            dict(name="sigmoid_focal_loss", gamma=2.0, alpha=None, weight=half),
        ],
    )
    loss = make_setup(config).loss
    at_1, values = step.loss_at(loss, 1)
    assert {name.partition("/")[2]: float(x) for name, x in values.items()} == {
        "sigmoid_cross_entropy.pos_weight": 0.5,
        "sigmoid_focal_loss_2.gamma": 0.5,
        "sigmoid_focal_loss_3.weight": 0.5,
    }
    logits = jnp.linspace(-2.0, 2.0, 8).reshape(1, 2, 4, 1)
    labels = jnp.arange(8).reshape(1, 2, 4) % 2
    masks = labels[..., None].astype(jnp.float32)
    expected = (
        losses.sigmoid_cross_entropy(logits, masks, pos_weight=0.5)
        + losses.sigmoid_focal_loss(logits, masks, gamma=0.5)
        + 0.5 * losses.sigmoid_focal_loss(logits, masks, gamma=2.0, alpha=None)
    )
    np.testing.assert_allclose(at_1(logits, labels), expected, rtol=1e-6)


def of(**fields):
    return dict(name="linear", init_value=0.0, end_value=1.0) | fields


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            dict(name="soft_cldice", iterations=of()),
            r"config.loss: iterations of soft_cldice cannot follow a schedule; weight, "
            r"smooth can\.",
        ),
        (
            dict(name="lovasz_softmax", per_image=of()),
            "per_image of lovasz_softmax cannot follow a schedule; weight can",
        ),
        (
            dict(name="soft_dice", multi_label=of()),
            "multi_label of soft_dice cannot follow a schedule; weight, smooth can",
        ),
        (
            dict(name="focal_loss", gamma=of(end_value=-1.0)),
            r"config.loss after 3 steps: focal_loss: gamma must be in \[0, inf\), got",
        ),
        (
            dict(
                name="soft_dice",
                weight=dict(
                    name="piecewise_constant", values=(1, -2, 1), boundaries=(1, 2)
                ),
            ),
            "config.loss after 1 steps: compound_loss: the weight of soft_dice must be "
            "at least 0 and finite, got -2",
        ),
        (
            dict(
                name="soft_dice",
                smooth=dict(
                    name="piecewise_constant",
                    values=(1.0, 1e-20, 0.0),
                    boundaries=(1, 2),
                ),
            ),
            "config.loss after 1 steps: soft_dice: smooth must be 0, or at least 1e-18",
        ),
        (
            dict(name="softmax_cross_entropy", label_smoothing=of(end_value=1.5)),
            r"after 3 steps: .* label_smoothing must be in \[0, 1\], got 1.125",
        ),
        (
            dict(name="focal_loss", gamma=of(name="logarithmic")),
            "no loss schedule is named 'logarithmic'; known are cosine, linear, piecew",
        ),
        (dict(name="focal_loss", gamma=dict(value=1)), "must have a field 'name'"),
        (
            dict(name="focal_loss", gamma=of(steps=3)),
            "linear has no hyperparameter 'steps'; known are init_value, end_value",
        ),
        (
            dict(name="focal_loss", gamma=of(transition_steps=0)),
            r"linear: transition_steps must be a number of steps >= 1, .*, got 0\.",
        ),
        (
            dict(name="focal_loss", gamma=of(transition_begin=4)),
            r"linear: transition_steps must be a number of steps >= 1, .*, got 0\.",
        ),
        (
            dict(name="focal_loss", gamma=of(end_value="1")),
            "end_value of linear must be a finite number, got '1'",
        ),
        (
            dict(name="focal_loss", gamma=GAMMA | dict(boundaries=(2, 3))),
            r"boundaries must be increasing steps above 0, one fewer than values, got",
        ),
        (
            dict(name="focal_loss", gamma=GAMMA | dict(boundaries=(1.5,))),
            r"piecewise_constant: each of boundaries must be a number .*, got 1.5\.",
        ),
        (dict(name="focal_los", gamma=of()), "no loss is named 'focal_los'"),
        (dict(name="soft_dice", gamma=of()), "soft_dice has no hyperparameter 'gamma'"),
    ],
)
def test_what_cannot_be_scheduled_is_refused_in_one_line(tiny_config, loss, message):
    set_loss(tiny_config, [dict(name="softmax_cross_entropy"), loss])
    with pytest.raises(ValueError, match=message) as refused:
        make_setup(tiny_config)
    assert "\n" not in str(refused.value)
