"""One run in one or several real processes: they learn, write and stop alike."""

import re
import signal

import pytest
from processes import run_together, running
from test_ending import last_line
from trainings import (
    assert_same_end,
    assert_same_run,
    commands_of,
    lines_of,
    newest_arrays,
    wait_for,
)

from segloss.train import train

pytestmark = pytest.mark.shared_out(by="module")

LATE = """
import time
import jax
import numpy as np
from segloss.devices import AXIS, map_over_devices

def step(x):
    time.sleep(35 * jax.process_index())  # while it is compiled
    return jax.lax.psum(x, AXIS)

print(np.asarray(map_over_devices(step)(np.ones((1, 2), np.float32))).tolist())
"""
# Threads of Gloo tell of their connections, in pieces that can interleave.
GLOO = (
    r"\[Gloo\] Rank | is connected to | peer ranks\. "
    r"|Expected number of connected peer ranks is : |\d+|\n"
)
BEFORE_STEP_1 = "segloss.train.loop.prefetch_to_devices"


@pytest.mark.slow
def test_one_process_may_compile_for_longer_than_collectives_wait():
    outputs = run_together(LATE, 2)
    assert [x.strip().splitlines()[-1] for x in outputs] == ["[[2.0, 2.0]]"] * 2


def test_two_processes_train_the_run_that_one_does(tiny_config, tmp_path, finished_run):
    commands = commands_of(tmp_path, tiny_config, 2)
    with running(commands, devices=2) as processes:
        codes, outputs = wait_for(processes)
    assert codes == [0, 0], "\n".join(outputs)
    assert not re.sub(GLOO, "", outputs[1]), outputs[1]
    assert [x["step"] for x in lines_of(tmp_path)] == [1, 2, 2, 3, 4, 4]
    assert_same_run(finished_run, tmp_path)


@pytest.mark.slow
def test_one_process_of_4_devices_equals_2_of_2_and_4_of_1(tiny_config, tmp_path):
    tiny_config.data.on_bad_sample = "skip"
    for count in (1, 2, 4):
        workdir = tmp_path / str(count)
        commands = commands_of(workdir, tiny_config, count)
        with running(commands, devices=4 // count) as processes:
            codes, outputs = wait_for(processes)
        assert codes == [0] * count, "\n".join(outputs)
        assert_same_run(tmp_path / "1", workdir)


@pytest.mark.parametrize(
    "plan",
    [
        pytest.param([f"1=15={BEFORE_STEP_1}"], id="one"),
        # Across a boundary: process 0 has handed out step 1 when it gets the signal.
        pytest.param(
            ["0=15=1", f"1=15={BEFORE_STEP_1}"], id="both", marks=pytest.mark.slow
        ),
    ],
)
def test_sigterm_to_any_process_stops_all_after_the_same_step(
    tiny_config, tmp_path, finished_run, plan
):
    tiny_config.evaluate_every_steps = 4
    tiny_config.checkpoint_every_steps = 4
    commands = commands_of(tmp_path, tiny_config, 2, *plan)
    with running(commands, devices=2) as processes:
        codes, outputs = wait_for(processes)
    assert codes == [128 + signal.SIGTERM] * 2, "\n".join(outputs)
    # Step 1 has the signal, and is looked at 2 steps later.
    assert newest_arrays(tmp_path)[0] == lines_of(tmp_path)[-1]["step"] == 3
    assert "SIGTERM: saved at step 3 of 4" in outputs[0]
    assert "saved at" not in outputs[1]
    # One process resumes the run of two.
    train(tiny_config, tmp_path)
    assert_same_end(finished_run, tmp_path)


@pytest.mark.slow
def test_sigterm_during_an_evaluation_stops_all_without_waiting_for_its_end(
    tiny_config, tmp_path
):
    # Process 1 gets it when it starts to evaluate step 2.
    plan = "1=15=segloss.train.watch.evaluate"
    with running(commands_of(tmp_path, tiny_config, 2, plan), devices=2) as processes:
        codes, outputs = wait_for(processes)
    assert codes == [128 + signal.SIGTERM] * 2, "\n".join(outputs)
    assert newest_arrays(tmp_path)[0] == 2
    assert "SIGTERM: saved at step 2 of 4" in outputs[0]
    assert not any("val_mean_iou" in line for line in lines_of(tmp_path))


@pytest.mark.slow
def test_full_disk_of_one_process_ends_all_and_the_same_command_resumes(
    tiny_config, tmp_path
):
    with running(
        commands_of(tmp_path, tiny_config, 2, "0=0=3"), devices=2
    ) as processes:
        codes, outputs = wait_for(processes)
    assert codes == [1, 1], "\n".join(outputs)
    assert re.fullmatch(
        rf"error: process 0 on \S+: {tmp_path}/metrics.jsonl: File too large; choose a "
        r"place where files may be larger; process 1 ends too; the same command "
        r"resumes\.",
        last_line(outputs[1]),
    )
    with running(commands_of(tmp_path, tiny_config, 2), devices=2) as processes:
        codes, outputs = wait_for(processes)
    assert codes == [0, 0], "\n".join(outputs)
    assert [x["step"] for x in lines_of(tmp_path)] == [1, 2, 2, 3, 4, 4]
