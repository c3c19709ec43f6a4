r"""Runs a sweep: skips the runs that are done, resumes and retries the others.

python -m experiments.run --config=configs/sweeps/demo_samplers.py --workdir=DIR
python -m experiments.run --config=configs/sweeps/STUDY.py:ARG --workdir=DIR --jobs=2
python -m experiments.run --config=... --workdir=DIR --smoke
python -m experiments.run --config=... --workdir=DIR --launcher=slurm \
    --slurm_partition=gpu --slurm_gpus=1 --slurm_time=600 --slurm_set=mem=32G
python -m experiments.run --config=... --workdir=DIR --launcher=slurm \
    --slurm_partition=gpu --slurm_nodes=2 --slurm_gpus=8

The same command resumes a sweep that was stopped. Each run is in DIR/ARM/seed=S/, and
the logs of its attempts are in DIR/.jobs/ARM/seed=S/. With --skip_stored, another
machine continues it with any DIR: runs that `experiments.collect --partial` stored with
this config and code are not trained again.

If the study has BARS, the arms named there are trained first, except by --smoke. No
other arm is started unless each of them reaches its score: a mean IoU, the mean of its
seeds.

--smoke takes seconds. It trains the base config of size `smoke` on the arms of the
first comparison, with one seed and the overrides of `sampler` and `loss` only.
"""

import contextlib
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from rich.console import Console

from experiments.running.sweep import (
    PlannedRun,
    StudyConfig,
    check_comparisons,
    expand,
    load_study,
    smoke_overrides,
    study_config,
)
from segloss import cli
from segloss.errors import SeglossError

CONFIG = cli.define_config(
    "A study of configs/sweeps, with the argument of its `get_config`."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Holds a folder per run.", required=True)
LAUNCHER = flags.DEFINE_enum(
    "launcher",
    "local",
    ["local", "slurm"],
    "Where runs are trained: in processes of this machine, or as jobs of Slurm.",
)
JOBS = flags.DEFINE_integer(
    "jobs",
    None,
    "Runs at once. Default: local, one per accelerator, 1 on CPU; slurm, all.",
    lower_bound=1,
)
RETRIES = flags.DEFINE_integer(
    "retries", 2, "How often a run that crashed is tried again.", lower_bound=0
)
ACCEPT_CODE = flags.DEFINE_multi_string(
    "accept_code",
    [],
    "Fingerprint of other code (or its beginning) that computes the same. Runs of it "
    "are kept and resumed, and the results of the study say so.",
)
SKIP_STORED = flags.DEFINE_bool(
    "skip_stored",
    False,
    "Leaves out the runs whose results are stored in experiments/STUDY/results, if "
    "they have this config, and this code or accepted code.",
)
BELOW_BARS = flags.DEFINE_bool(
    "below_bars",
    False,
    "Trains all arms, even if those of the study's BARS fail or stay below their "
    "scores.",
)
SMOKE = flags.DEFINE_bool("smoke", False, "Tries the study out, in seconds.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Shows the runs, and starts none.")
SLURM_PARTITION = flags.DEFINE_string("slurm_partition", None, "Where jobs queue.")
SLURM_TIME = flags.DEFINE_integer(
    "slurm_time", 1440, "Minutes of a job; a longer run is resumed in another job."
)
SLURM_GPUS = flags.DEFINE_integer("slurm_gpus", None, "GPUs of a job, per node.")
SLURM_NODES = flags.DEFINE_integer(
    "slurm_nodes", None, "Nodes that train one run together.", lower_bound=1
)
SLURM_TASKS = flags.DEFINE_integer(
    "slurm_tasks_per_node",
    None,
    "Processes of a run on each node, which share its GPUs. Default: one with all.",
    lower_bound=1,
)
SLURM_SET = flags.DEFINE_multi_string(
    "slurm_set", [], "KEY=VALUE for any other flag of sbatch, such as mem=32G."
)


def plan() -> tuple[StudyConfig, list[PlannedRun]]:
    """Returns the study and the runs that the flags ask for.

    Raises:
        ValueError: if the study's file or an override is invalid.
    """
    flag = flags.FLAGS["config"]
    # Without the argument of `get_config`, which follows a colon.
    path = config_flags.get_config_filename(flag).split(":", 1)[0]
    study = load_study(path)
    runs = expand(CONFIG.value, study.sweep())
    check_comparisons(study.comparisons, runs, study.bars)
    if SMOKE.value:
        base = study.get_config("smoke")
        # The command line's overrides were applied to the base of another size.
        _override(base, config_flags.get_override_values(flag))
        runs = expand(base, smoke_overrides(study))
    return study, runs


def _override(base: ConfigDict, values: Mapping[str, Any]) -> None:
    """Sets the given fields of `base`, and prints the names of those that it lacks."""
    lacking = []
    for field, value in values.items():
        try:
            base.update_from_flattened_dict({field: value})
        except KeyError:
            lacking.append(field)
    if lacking:
        print(f"--smoke has no use for {', '.join(lacking)}, which its base lacks.")


def make_launcher(workdir: pathlib.Path):
    """Makes the launcher that the flags ask for: `Local` or `Slurm`."""
    from experiments.running import launch

    if LAUNCHER.value == "local":
        # Runs that start together would prepare the small dataset together.
        return launch.Local(JOBS.value or (1 if SMOKE.value else None))
    others = dict(setting.partition("=")[::2] for setting in SLURM_SET.value)
    if not all(key and value for key, value in others.items()):
        raise SeglossError(f"--slurm_set must be KEY=VALUE, got {SLURM_SET.value}.")
    settings = {
        "name": workdir.name or "sweep",
        "timeout_min": SLURM_TIME.value,
        "slurm_partition": SLURM_PARTITION.value,
        "nodes": SLURM_NODES.value,
        "tasks_per_node": SLURM_TASKS.value,
        "gpus_per_node": SLURM_GPUS.value,
        "slurm_additional_parameters": others or None,
    }
    settings = {key: value for key, value in settings.items() if value is not None}
    return launch.Slurm(settings, JOBS.value)


def what_next(study: StudyConfig, workdir: pathlib.Path) -> str:
    """Returns the command line of `experiments.collect` for the runs in `workdir`."""
    known = study.path.resolve() == study_config(study.name)
    name = study.name if known else study.path
    smoke = " --smoke" if SMOKE.value else ""
    return f"python -m experiments.collect {name} --workdir={workdir}{smoke}"


def main(argv: list[str]) -> None:
    from experiments.running.baselines import Baselines
    from experiments.running.board import DONE, WAITING, Board, Row
    from experiments.running.fingerprint import (
        check_devices,
        check_unmixed,
        code_fingerprint,
    )
    from experiments.running.runner import Runner, summary
    from experiments.running.stored import stored_runs
    from segloss.config import as_workdir

    workdir = as_workdir(WORKDIR.value)
    study, runs = plan()
    console = Console(markup=False, highlight=False)
    console.print(f"{study.name}: {study.question}", soft_wrap=True)
    # Refuse now what `experiments.collect` would refuse after the runs.
    code = code_fingerprint()
    bars = {} if SMOKE.value or BELOW_BARS.value else study.bars
    stored, known = [], []
    if SKIP_STORED.value:
        stored, known = stored_runs(
            study, runs, code=code, accept_code=ACCEPT_CODE.value
        )
        console.print(f"{len(stored)} of {len(runs)} runs are stored and left out.")
        keys = {run.key for run in stored}
        runs = [run for run in runs if run.key not in keys]
    accepted = check_unmixed(runs, workdir, code=code, accept_code=ACCEPT_CODE.value)
    accepted = list(dict.fromkeys([*accepted, *known]))
    check_devices(runs, workdir)
    board = Board([Row(run, run.folder(workdir)) for run in runs], console)
    baselines = Baselines(bars, stored)
    if baselines.hold_back(board.rows):
        first = ", ".join(f"{arm} (mean IoU {x:g})" for arm, x in bars.items())
        console.print(f"Other arms wait until these have learned: {first}.")
    if DRY_RUN.value:
        console.print(board.table())
        return
    launcher = make_launcher(workdir)
    runner = Runner(board, launcher, workdir, code, accepted, RETRIES.value, baselines)
    exit_code = runner.run()
    states = {row.state for row in board.rows}
    if DONE in states and not console.is_terminal:
        console.print(board.table())
    if DONE in states and WAITING not in states:
        command = what_next(study, workdir)
        console.print(f"For differences with intervals: {command}", soft_wrap=True)
    # The terminal may be gone.
    with contextlib.suppress(OSError):
        if text := summary(exit_code, board.rows, baselines):
            print(text, file=sys.stderr)
    sys.exit(exit_code)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    cli.run(main)
