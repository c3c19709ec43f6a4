"""Numbers of steps that follow the length of the run."""

import importlib

import pytest

from segloss.config import (
    check_same_config,
    flat_fields,
    parse_config,
    read_config,
    to_steps,
    write_config,
)
from segloss.train.introduction import describe_steps

# Per config and size: the length, then the steps between checkpoints, evaluations and
# logs, and the warm-up.
STEPS = {
    ("camvid", "full"): (1_200, 100, 400, 10, 50),
    ("camvid", "smoke"): (2, 2, 2, 2, 1),
    ("demo", "full"): (1_200, 100, 300, 10, 50),
    ("demo", "smoke"): (4, 2, 2, 2, 1),
    ("demo_dice_warm_up", "full"): (1_200, 100, 300, 10, 50),
    ("folder", "full"): (20_000, 500, 1_000, 10, 500),
    ("folder", "smoke"): (4, 2, 2, 2, 1),
    ("folder_balance_batch", "full"): (20_000, 500, 1_000, 10, 500),
    ("voc2012", "full"): (60_000, 1_000, 5_000, 10, 500),
    ("voc2012", "smoke"): (2, 2, 2, 2, 1),
    ("voc2012_paper", "loss=ce"): (20_000, 5_000, 5_000, 10, 0),
    ("sweeps.losses", "full"): (1_000, 400, 10_000, 10, 50),
    ("sweeps.samplers", "full"): (1_000, 400, 10_000, 10, 50),
    ("sweeps.class_weights", "full"): (1_000, 400, 10_000, 10, 50),
    ("sweeps.instability", "full"): (1_000, 500, 10_000, 10, 50),
    ("sweeps.scenes_figures", "full"): (1_000, 400, 10_000, 10, 50),
    ("sweeps.demo_samplers", "full"): (1_200, 100, 300, 10, 50),
    ("sweeps.camvid_balance_batch", "full"): (800, 100, 10_000, 10, 50),
    ("sweeps.cracks", "full"): (500, 100, 10_000, 10, 50),
    ("sweeps.camvid_pretrained", "full"): (900, 100, 450, 10, 30),
    ("sweeps.voc_animals_pretrained", "full"): (900, 100, 450, 10, 30),
}


def load(name, size):
    return importlib.import_module(f"configs.{name}").get_config(size)


def steps_of(config):
    run = parse_config(config)
    return (
        run.total_steps,
        run.checkpoint_every_steps,
        run.evaluate_every_steps,
        run.log_every_steps,
        run.schedule.hyperparameters["warmup_steps"],
    )


@pytest.mark.parametrize(("name", "size"), STEPS)
def test_each_config_has_its_steps(name, size):
    assert steps_of(load(name, size)) == STEPS[name, size]


def test_steps_follow_the_length_of_the_run():
    config = load("folder", "full")
    config.total_steps = 1_000
    assert steps_of(config) == (1_000, 25, 50, 10, 25)
    line = describe_steps(parse_config(config))
    assert line.startswith("warm-up of 25 steps; evaluates every 50 steps, saves every")
    assert line.endswith("saves every 25 and logs every 10")
    # 1/40 of 150 is 3.75, and 1/20 is 7.5, of which Python's round takes the even.
    config.total_steps = 150
    assert steps_of(config) == (150, 4, 8, 10, 4)
    config.total_steps = 1
    assert steps_of(config) == (1, 1, 1, 10, 0)


@pytest.mark.parametrize("study", ["losses", "samplers", "class_weights"])
def test_arms_of_another_length_differ_in_nothing_else(study):
    from experiments.running.sweep import expand

    module = importlib.import_module(f"configs.sweeps.{study}")
    runs = expand(module.get_config(), module.sweep())
    longer = [run for run in runs if run.config.total_steps > 1_000]
    assert longer
    assert {steps_of(run.config)[1:] for run in runs} == {(400, 10_000, 10, 50)}


@pytest.mark.parametrize(
    ("value", "low", "steps"),
    [
        *((50, 0, 50), (50.0, 0, 50), (0, 0, 0), (0.0, 0, 0), (1, 1, 1)),
        *((5_000, 1, 5_000), (0.5, 1, 600), (1 / 3, 1, 400), (1e-9, 1, 1)),
        *((1e-9, 0, 1), (0.9999, 0, 1_199)),
    ],
)
def test_a_whole_number_is_steps_and_a_fraction_a_share(value, low, steps):
    found = to_steps("f", value, 1_200, low=low)
    assert (found, type(found)) == (steps, int)


@pytest.mark.parametrize(
    ("value", "low"),
    [
        *((0, 1), (-1, 0), (-0.5, 0), (2.5, 0), (True, 0), ("50", 0), (None, 0)),
        *((float("nan"), 0), (float("inf"), 0), ((1,), 0)),
    ],
)
def test_what_is_neither_is_refused(value, low):
    message = f"f must be a number of steps >= {low}, or a share of total_steps in "
    with pytest.raises(ValueError, match=message):
        to_steps("f", value, 1_200, low=low)


@pytest.mark.parametrize("field", ["log_every_steps", "evaluate_every_steps"])
def test_the_field_is_named(tiny_config, field):
    tiny_config[field] = 2.5
    with pytest.raises(ValueError, match=f"^config.{field} must be a number of step"):
        parse_config(tiny_config)
    tiny_config[field] = 2
    tiny_config.schedule.warmup_steps = -1
    with pytest.raises(ValueError, match=r"^config.schedule.warmup_steps must be a n"):
        parse_config(tiny_config)


def test_a_share_and_its_number_of_steps_are_one_config(tmp_path):
    shares, numbers = load("folder", "full"), load("folder", "full").unlock()
    numbers.schedule.warmup_steps = 500
    numbers.evaluate_every_steps = 1_000
    numbers.checkpoint_every_steps = 500
    assert flat_fields(shares) == flat_fields(numbers)
    for stored, config in ((numbers, shares), (shares, numbers)):
        write_config(stored, tmp_path)
        check_same_config(config, tmp_path)
        check_same_config(read_config(tmp_path), tmp_path)
    write_config(shares, tmp_path)
    # A longer run with the same shares differs in its length alone, which may change.
    shares.total_steps = 30_000
    check_same_config(shares, tmp_path)
    numbers.schedule.warmup_steps = 600
    with pytest.raises(ValueError, match=r"schedule.warmup_steps was 0.025, is 600"):
        check_same_config(numbers, tmp_path)
