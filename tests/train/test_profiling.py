"""Profiles of chosen steps, and the file that xprof reads."""

import re

import jax
import pytest
from rich.console import Console

from segloss.errors import explain
from segloss.train import train
from segloss.train.profiling import Profiler, ProfileSteps

pytestmark = pytest.mark.shared_out(by="module")


def host_events(path):
    """Names of the events on the host in a trace."""
    # Planes and lines are views of this object, which must outlive them. The numbers of
    # the steps are not read: jaxlib 0.12 aborts when it gives an event's statistics.
    data = jax.profiler.ProfileData.from_file(str(path))
    planes = [plane for plane in data.planes if plane.name == "/host:CPU"]
    return [e.name for plane in planes for line in plane.lines for e in line.events]


def count_steps(workdir):
    """The number of steps in each trace of a run, oldest trace first."""
    paths = sorted(workdir.glob("tensorboard/plugins/profile/*/*.xplane.pb"))
    return [host_events(path).count("train") for path in paths]


def test_steps_are_traced_and_a_resumed_run_traces_those_that_are_left(
    tiny_config, tmp_path, capsys
):
    def fail(step):
        if step == 3:
            raise KeyboardInterrupt

    tiny_config.evaluate_every_steps = 4
    with pytest.raises(KeyboardInterrupt):
        train(tiny_config, tmp_path, on_step=fail, profile_steps="2:4")
    # The trace of the run that failed is closed, too.
    assert count_steps(tmp_path) == [2]  # steps 2 and 3
    printed = " ".join(capsys.readouterr().out.split())
    tensorboard = tmp_path / "tensorboard"
    assert (
        f"profile: {tensorboard}/plugins/profile; to see it, pip install xprof and "
        f"run: xprof --logdir={tensorboard}"
    ) in printed
    train(tiny_config, tmp_path, profile_steps="2:4")
    assert count_steps(tmp_path) == [2, 2]
    newest = sorted(tensorboard.rglob("*.xplane.pb"))[-1]
    assert any("fusion" in name for name in host_events(newest))


def test_a_run_past_the_steps_says_so_and_traces_nothing(tmp_path):
    console = Console(record=True, width=200)
    profiler = Profiler(ProfileSteps(2, 4), tmp_path, console, start_step=4)
    profiler.before(5, None)
    profiler.after(5, None)
    profiler.close()
    assert console.export_text() == (
        "--profile_steps=2:4: profiles nothing, since the run resumes after step 4\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_place_of_the_traces_is_named(tmp_path):
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "plugins").touch()
    profiler = Profiler(ProfileSteps(1, 1), tmp_path, Console(), start_step=0)
    with pytest.raises(OSError, match="plugins") as refused:
        profiler.before(1, None)
    path = tmp_path / "tensorboard" / "plugins" / "profile"
    assert explain(refused.value) == (
        f"{path}: Not a directory; a part of the path is a file; choose another place."
    )
    profiler.close()


@pytest.mark.parametrize("text", ["", "3", "0:2", "3:2", "3:5", "a:b", "1:2:3", "-1:2"])
def test_wrong_steps_are_refused_before_anything_is_written(
    tiny_config, tmp_path, text
):
    line = (
        f"--profile_steps={text}: must be FIRST:LAST such as 10:15, with 1 <= FIRST <= "
        "LAST <= 4 = config.total_steps."
    )
    with pytest.raises(ValueError, match=re.escape(line)):
        train(tiny_config, tmp_path / "run", profile_steps=text)
    assert list(tmp_path.iterdir()) == []
