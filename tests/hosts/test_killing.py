"""A run of two processes, one of which is killed at a named moment, resumes exactly."""

import re
import signal
import time

import numpy as np
import pytest
from processes import running
from test_ending import last_line
from trainings import commands_of, lines_of, newest_arrays, wait_for

from segloss.train.log import OF_THE_MACHINE

pytestmark = pytest.mark.shared_out(by="module")

MOMENTS = {
    "preparation": "segloss.config.parts.open_dataset",
    "compilation": "segloss.train.loop.train_step",  # it is traced then
    "step": "3",
    "evaluation": "segloss.train.watch.evaluate",
    "save": "segloss.trained.checkpoints:Checkpoints.save",
}


@pytest.fixture(scope="module")
def undisturbed(datasets_dir, tmp_path_factory):
    from conftest import make_tiny_config

    workdir = tmp_path_factory.mktemp("undisturbed")
    assert run_two(workdir, make_tiny_config(datasets_dir))[0] == [0, 0]
    return workdir


def run_two(workdir, config, *plan):
    """Returns codes, outputs, and the seconds between the ends of the two."""
    with running(commands_of(workdir, config, 2, *plan), devices=2) as processes:
        ended = {}
        while len(ended) < 2:
            for i, process in enumerate(processes):
                if i not in ended and process.poll() is not None:
                    ended[i] = time.monotonic()
            time.sleep(0.1)
        return *wait_for(processes), abs(ended[0] - ended[1])


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
@pytest.mark.parametrize("moment", MOMENTS)
def test_other_process_ends_with_a_line_and_restart_gives_the_same(
    tiny_config, tmp_path, undisturbed, moment, killed
):
    if moment == "preparation":
        tiny_config.data.data_dir = str(tmp_path / "datasets")
    workdir = tmp_path / "run"
    plan = f"{killed}={int(signal.SIGKILL)}={MOMENTS[moment]}"
    codes, outputs, seconds = run_two(workdir, tiny_config, plan)
    assert seconds < 60
    assert codes[killed] == -signal.SIGKILL
    assert codes[1 - killed] not in (0, -signal.SIGKILL)
    line = last_line(outputs[1 - killed])
    assert re.fullmatch(r"error: process .* the same command resumes\.", line)
    # JAX aborts the others itself where process 0 is gone.
    assert killed == 0 or "no sign of life for 30 s" in line

    codes, outputs, _ = run_two(workdir, tiny_config)
    assert codes == [0, 0], "\n".join(outputs)
    curves = [
        [{k: x[k] for k in x if k not in OF_THE_MACHINE} for x in lines_of(folder)]
        for folder in (undisturbed, workdir)
    ]
    assert curves[0] == curves[1]
    (step, arrays), (expected_step, expected) = map(
        newest_arrays, (workdir, undisturbed)
    )
    assert step == expected_step
    for path in expected:
        np.testing.assert_array_equal(arrays[path], expected[path], err_msg=path)
