r"""Runs what a sweep asks for: skips what is done, resumes and retries the rest.

python -m experiments.run --config=configs/sweeps/demo_samplers.py --workdir=DIR
python -m experiments.run --config=configs/sweeps/STUDY.py:ARG --workdir=DIR --jobs=2
python -m experiments.run --config=... --workdir=DIR --smoke
python -m experiments.run --config=... --workdir=DIR --launcher=slurm \
    --slurm_partition=gpu --slurm_gpus=1 --slurm_time=600 --slurm_set=mem=32G

The same command goes on with a sweep that was stopped. Each run lies in
DIR/ARM/seed=S/, the log of each of its tries in DIR/.jobs/ARM/seed=S/.

--smoke takes seconds: the base at size `smoke`, of the sweep the arms of the first
comparison with one seed, and of their overrides `sampler` and `loss` alone.
"""

import pathlib
from collections.abc import Mapping, Sequence
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
)
from segloss import cli

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A study of configs/sweeps, with the argument of its `get_config`."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Holds a folder per run.", required=True)
LAUNCHER = flags.DEFINE_enum(
    "launcher",
    None,
    ["local", "slurm", "inline"],
    "Where runs are trained: processes here, jobs of Slurm, or one after the other in "
    "this process. Default: inline for --smoke, else local.",
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
SMOKE = flags.DEFINE_bool("smoke", False, "Tries the study out, in seconds.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Shows the runs, and starts none.")
SLURM_PARTITION = flags.DEFINE_string("slurm_partition", None, "Where jobs queue.")
SLURM_TIME = flags.DEFINE_integer(
    "slurm_time", 1440, "Minutes of a job; a run that needs more goes on in another."
)
SLURM_GPUS = flags.DEFINE_integer("slurm_gpus", None, "GPUs of a job.")
SLURM_SET = flags.DEFINE_multi_string(
    "slurm_set", [], "KEY=VALUE for any other flag of sbatch, such as mem=32G."
)


def plan() -> tuple[StudyConfig, list[PlannedRun]]:
    """The study and the runs that the flags ask for.

    Raises:
        ValueError: if the sweep is wrong.
    """
    flag = flags.FLAGS["config"]
    # Without the argument of `get_config`, which follows a colon.
    path = config_flags.get_config_filename(flag).split(":", 1)[0]
    study = load_study(path)
    runs = expand(CONFIG.value, study.sweep())
    check_comparisons(study.comparisons, runs)
    if SMOKE.value:
        base = study.get_config("smoke")
        # Those of the command line, which were applied to the other size.
        _override(base, config_flags.get_override_values(flag))
        runs = expand(base, smoke_overrides(study))
    return study, runs


def _override(base: ConfigDict, values: Mapping[str, Any]) -> None:
    """Sets the fields that a base has, and says which it has not."""
    lacking = []
    for field, value in values.items():
        try:
            base.update_from_flattened_dict({field: value})
        except KeyError:
            lacking.append(field)
    if lacking:
        print(f"--smoke has no use for {', '.join(lacking)}, which its base lacks.")


def make_launcher(name: str, workdir: pathlib.Path):
    """The launcher of that name, as the flags have it."""
    from experiments.running import launch, slurm

    if name == "inline":
        return launch.Inline(cache=workdir / ".jobs" / "compiled")
    if name == "local":
        return launch.Local(JOBS.value)
    settings = {
        "name": workdir.name or "sweep",
        "timeout_min": SLURM_TIME.value,
        "slurm_partition": SLURM_PARTITION.value,
        "gpus_per_node": SLURM_GPUS.value,
    }
    settings = {key: value for key, value in settings.items() if value is not None}
    others = dict(setting.partition("=")[::2] for setting in SLURM_SET.value)
    if not all(key and value for key, value in others.items()):
        raise ValueError(f"--slurm_set must be KEY=VALUE, got {SLURM_SET.value}.")
    if others:
        settings["slurm_additional_parameters"] = others
    return slurm.Slurm(settings, JOBS.value)


def what_next(
    study: StudyConfig, workdir: pathlib.Path, done: Sequence[pathlib.Path]
) -> str:
    """What the runs that are done are for, and the command."""
    from experiments.analysis.readme import has_place
    from experiments.analysis.store import study_config, study_folder

    # `collect --smoke` begins a README in the workdir.
    collects = SMOKE.value or has_place(study_folder(study.name) / "README.md")
    if collects and study_config(study.name).exists():
        smoke = " --smoke" if SMOKE.value else ""
        return (
            "for differences with intervals: python -m experiments.collect "
            f"{study.name} --workdir={workdir}{smoke}"
        )
    folders = " ".join(map(str, done))
    return f"for tables in a README: python -m experiments.results README {folders}"


def main(argv: list[str]) -> None:
    from experiments.running.board import DONE, Board, Row, arm_table
    from experiments.running.fingerprint import check_unmixed, code_fingerprint
    from experiments.running.runner import Runner, exit_with
    from experiments.running.worker import check_free, locked

    study, runs = plan()
    workdir = pathlib.Path(WORKDIR.value)
    console = Console(markup=False, highlight=False)
    console.print(f"{study.name}: {study.question}", soft_wrap=True)
    code = code_fingerprint()
    check_unmixed(runs, workdir, code=code)
    rows = [Row(run, run.folder(workdir)) for run in runs]
    board = Board(rows, console)
    if DRY_RUN.value:
        console.print(board.table())
        return
    name = LAUNCHER.value or ("inline" if SMOKE.value else "local")
    with locked(workdir):
        check_free([row.folder for row in rows])
        runner = Runner(
            board=board,
            launcher=make_launcher(name, workdir),
            workdir=workdir,
            code=code,
            retries=RETRIES.value,
        )
        exit_code = runner.run()
    if done := [row.folder for row in rows if row.state == DONE]:
        console.print(arm_table(rows))
        console.print(
            f"Mean over the seeds, and their range; {what_next(study, workdir, done)}",
            soft_wrap=True,
        )
    exit_with(exit_code, rows)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    cli.run(main)
