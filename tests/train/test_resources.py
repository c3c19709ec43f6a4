"""Memory and compilations: what is logged, and what a lack of memory says."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segloss.config import read_config
from segloss.errors import OutOfMemoryError, explain
from segloss.train import train
from segloss.train.log import OF_THE_MACHINE
from segloss.train.resources import CompiledOnce, compilations
from segloss.trained import evaluate_run, load_trained

pytestmark = pytest.mark.shared_out(by="module")

# More than the 128 TiB that a process can address.
TOO_LARGE = 2**50


def test_lines_of_a_log_interval_say_what_the_machine_did(finished_run):
    lines = (finished_run / "metrics.jsonl").read_text().splitlines()
    logged = [x for x in map(json.loads, lines) if "seconds_per_step" in x]
    assert [line["step"] for line in logged] == [2, 4]
    # CPUs do not tell their memory.
    of_cpu = [name for name in OF_THE_MACHINE if not name.startswith("device")]
    for line in logged:
        assert set(of_cpu) == {name for name in OF_THE_MACHINE if name in line}
        assert 0.1 < line["host_memory_gib"] <= line["host_memory_peak_gib"]
    # Step 2 adds the shares of the gradient, step 4 what was evaluated between them.
    first, second = (line["compilations"] for line in logged)
    assert 2 <= first < second


def test_compilations_are_counted_once_each():
    count = compilations()
    twice = jax.jit(lambda x: 2 * x)
    before = count()
    for size in (3, 3, 4):
        twice(np.ones(size, np.float32))
    assert count() - before == 2
    assert compilations() is count


def test_step_that_compiles_again_warns_once_with_what_changed():
    step = CompiledOnce(
        jax.jit(lambda state, batch: state + batch["x"].sum()), "a step"
    )
    state = jnp.zeros(())
    for _ in range(2):
        state = step(state, {"x": np.ones((4, 2), np.float32)})
    with pytest.warns(UserWarning, match="a step was compiled again") as warned:
        state = step(state, {"x": np.ones((5, 2), np.float32)})
    step(state, {"x": np.ones((6, 2), np.float32)})  # warns no more: that is an error
    (line,) = (str(w.message) for w in warned)
    assert (
        ": 1/x was float32 (4, 2) on the host, is float32 (5, 2) on the host. Later one"
    ) in line


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: np.ones(TOO_LARGE, np.uint8),
        lambda: jnp.ones(TOO_LARGE, jnp.uint8).block_until_ready(),
    ],
    ids=["host", "device"],
)
def test_lack_of_memory_is_one_line(allocate):
    with pytest.raises((MemoryError, RuntimeError)) as refused:
        allocate()
    line = explain(refused.value)
    assert line.startswith("out of memory: cannot allocate 1")
    assert line.endswith("; give the process more, or less to do.")
    assert explain(RuntimeError("a bug")) is None


@pytest.mark.parametrize(
    ("field", "value", "largest"),
    [
        ("crop_hw", (2**20, 2**20), "the features of the network on each device"),
        ("width", 2**19, "the weights and the optimizer on each device"),
    ],
)
def test_training_that_does_not_fit_names_the_fields_to_lower(
    tiny_config, tmp_path, field, value, largest
):
    (tiny_config.data if field == "crop_hw" else tiny_config.model)[field] = value
    with pytest.raises(OutOfMemoryError) as refused:
        train(tiny_config, tmp_path / "run")
    line = str(refused.value)
    assert line.startswith("out of memory while training: cannot allocate ")
    assert f"of the parts with a known size, the largest are {largest} " in line
    assert f"{field}={value}" in line.split("; lower ")[1]
    assert "\n" not in line
    assert not (tmp_path / "run/config.json").exists()


def test_evaluation_that_does_not_fit_names_the_batch_size(finished_run, tmp_path):
    config = read_config(finished_run)
    with config.unlocked():
        config.evaluate.batch_size = 2**40
    with pytest.raises(
        OutOfMemoryError,
        match=r"out of memory while evaluating val: cannot allocate 3.00 PiB.*; lower "
        r"config.evaluate.batch_size=1099511627776 or config.evaluate.max_pixels=",
    ):
        evaluate_run(config, finished_run)


def test_prediction_that_does_not_fit_names_the_image(finished_run):
    config = read_config(finished_run)
    with config.unlocked():
        config.evaluate.scales = (2.0**12,)
    with pytest.raises(
        OutOfMemoryError,
        match=r"out of memory while predicting an image of 32x32 pixels: cannot .*; low"
        r"er config.evaluate.max_pixels=2097152 or config.evaluate.scales=",
    ):
        load_trained(config, finished_run).predict(np.zeros((32, 32, 3), np.uint8))
