"""Reads a study's config file and plans the runs that it asks for."""

import dataclasses
import pathlib
import re
import runpy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from segloss.errors import SeglossError

_ROOT = pathlib.Path(__file__).parents[2]
_FILE_SAFE = re.compile(r"[^\W_][\w.=+-]*")
# The sections of a config that smoke runs take from a sweep. The others, such as
# `total_steps` or `model`, suit the real data and hours of training.
_KEPT_IN_SMOKE = ("sampler", "loss")


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """The contents of a study's file in `configs/sweeps`.

    Attributes:
        question: the question that the study answers.
        comparisons: pairs of an arm (a setting that is trained) and its baseline arm.
        paper: the loss, or losses, in `paper.csv` with which results are shown; or
            None.
        sweep: yields the arm, the seed and the changed fields of each run.
        bars: mean IoU, from 0 to 1, by the arm that must reach it before differences
            of the study count; fixed before the first run.
    """

    path: pathlib.Path
    question: str
    comparisons: tuple[tuple[str, str], ...]
    paper: str | Sequence[str] | None
    get_config: Callable[..., ConfigDict]
    sweep: Callable[[], Iterable[Mapping[str, Any]]]
    bars: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the study, of its file and of its folder in `experiments`."""
        return self.path.stem


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep; runs that differ only in the seed share an `arm`.

    `config` is the base config with `overrides` (values by dotted field) and the seed.
    """

    arm: str
    seed: int
    overrides: dict[str, Any]
    config: ConfigDict

    @property
    def key(self) -> str:
        """`ARM/seed=S`: the run's name, and its folder within that of the sweep."""
        return f"{self.arm}/seed={self.seed}"

    def folder(self, workdir: pathlib.Path) -> pathlib.Path:
        """The folder of this run, if `workdir` is that of the sweep."""
        return workdir / self.key


def study_folder(name: str) -> pathlib.Path:
    """Returns `experiments/NAME`, the folder of a study's README, results and plots."""
    return _ROOT / "experiments" / name


def study_config(name: str) -> pathlib.Path:
    """Returns `configs/sweeps/NAME.py`, or `name` itself if that ends in `.py`."""
    return (
        pathlib.Path(name)
        if name.endswith(".py")
        else _ROOT / "configs" / "sweeps" / f"{name}.py"
    )


def load_study(path: str | pathlib.Path) -> StudyConfig:
    """Reads a study's file, a Python file of `configs/sweeps`.

    Args:
        path: the file, without the `:ARG` that a command line may append.

    Raises:
        ValueError: if there is no such file, or it lacks `get_config`, `sweep`,
            `QUESTION` or `COMPARISONS`, or if its `BARS` are no scores by arm.
    """
    path = pathlib.Path(path)
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.py")))
        raise SeglossError(f"{path} is missing; known studies are {known}.")
    fields = runpy.run_path(str(path))
    for name in ("get_config", "sweep", "QUESTION", "COMPARISONS"):
        if name not in fields:
            raise SeglossError(f"{path} has no {name!r}; run.py takes single configs.")
    bars = fields.get("BARS", {})
    if not isinstance(bars, Mapping) or not all(0 < x < 1 for x in bars.values()):
        raise SeglossError(
            f"{path}: BARS maps arms to a mean IoU between 0 and 1, got {bars!r}."
        )
    return StudyConfig(
        path=path,
        question=fields["QUESTION"],
        comparisons=tuple(map(tuple, fields["COMPARISONS"])),
        paper=fields.get("PAPER"),
        get_config=fields["get_config"],
        sweep=fields["sweep"],
        bars=dict(bars),
    )


def expand(
    base: ConfigDict, overrides: Iterable[Mapping[str, Any]]
) -> list[PlannedRun]:
    """Plans a run for each of `overrides`, in their order.

    Args:
        base: the config that all runs start from.
        overrides: for each run its `arm`, its `seed`, and values by dotted field; a
            value replaces the whole field or section.

    Raises:
        ValueError: if an arm cannot name a folder, a field is not in the config, or two
            runs have the same arm and seed.
    """
    runs: dict[str, PlannedRun] = {}
    for override in overrides:
        override = dict(override)
        for name in ("arm", "seed"):
            if name not in override:
                raise SeglossError(f"sweep: {override} has no {name!r}.")
        arm, seed = override.pop("arm"), override.pop("seed")
        if not isinstance(arm, str) or not _FILE_SAFE.fullmatch(arm):
            raise SeglossError(
                "sweep: an arm must begin with a letter or digit and hold letters, "
                f"digits and _ = + - . alone, got {arm!r}."
            )
        config = base.copy_and_resolve_references()
        with config.unlocked():
            for field, value in {"seed": seed, **override}.items():
                _replace(config, field, value)
        run = PlannedRun(arm, seed, override, config)
        if run.key in runs:
            raise SeglossError(f"sweep: arm {arm!r} has seed {seed} twice.")
        runs[run.key] = run
    return list(runs.values())


def _replace(config: ConfigDict, field: str, value: Any) -> None:
    *parents, name = field.split(".")
    section: Any = config
    for parent in parents:
        section = section.get(parent) if isinstance(section, ConfigDict) else None
    if not isinstance(section, ConfigDict) or name not in section:
        raise SeglossError(f"sweep: the config has no field {field!r}.")
    # Updating a section in place would keep fields that its new `name` does not have.
    del section[name]
    section[name] = value


def check_comparisons(
    comparisons: Iterable[Sequence[str]],
    runs: Iterable[PlannedRun],
    bars: Iterable[str] = (),
) -> None:
    """Checks that comparisons are pairs of arms that have runs, and `bars` such arms.

    Raises:
        ValueError: if one is not; it names the arms.
    """
    arms = dict.fromkeys(run.arm for run in runs)
    for comparison in comparisons:
        if len(comparison) != 2 or not set(comparison) <= arms.keys():
            raise SeglossError(
                f"COMPARISONS must hold pairs of arms, got {tuple(comparison)}; the "
                f"arms are {', '.join(arms)}."
            )
    for arm in bars:
        if arm not in arms:
            raise SeglossError(
                f"BARS must name arms, got {arm!r}; the arms are {', '.join(arms)}."
            )


def smoke_overrides(study: StudyConfig) -> list[dict[str, Any]]:
    """Returns the overrides of the runs that `--smoke` trains.

    These are one seed of each arm of the first comparison (without comparisons, of the
    first two arms), with the overrides of `sampler` and `loss` only.
    """
    first_of: dict[str, Mapping[str, Any]] = {}
    for override in study.sweep():
        first_of.setdefault(override["arm"], override)
    arms = study.comparisons[0] if study.comparisons else list(first_of)[:2]
    kept = ("arm", "seed", *_KEPT_IN_SMOKE)
    return [
        {name: x for name, x in override.items() if name.split(".")[0] in kept}
        for arm, override in first_of.items()
        if arm in arms
    ]
