"""From a study's config file to the runs it asks for."""

import dataclasses
import importlib.util
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

_FILE_SAFE = re.compile(r"[^\W_][\w.=+-]*")
# What a smoke run keeps of the overrides: the sections that a study is about. The rest,
# such as `total_steps` or a network, is made for data and hours that it does not have.
_KEPT_IN_SMOKE = ("sampler", "loss")


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """What a file in `configs/sweeps` says.

    Attributes:
        question: what the study asks, in a sentence or two.
        comparisons: pairs of arms, the second the first's baseline.
        paper: the rows of the paper's numbers that stand beside the results.
    """

    name: str
    question: str
    comparisons: tuple[tuple[str, str], ...]
    paper: str | None
    get_config: Callable[..., ConfigDict]
    sweep: Callable[[], Iterable[Mapping[str, Any]]]


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep; those that differ in the seed alone share an arm."""

    arm: str
    seed: int
    overrides: dict[str, Any]
    config: ConfigDict

    @property
    def key(self) -> str:
        """`ARM/seed=S`, which is also where the run lies."""
        return f"{self.arm}/seed={self.seed}"

    def folder(self, workdir: pathlib.Path) -> pathlib.Path:
        """Where training writes."""
        return workdir / self.arm / f"seed={self.seed}"


def load_study(path: str | pathlib.Path) -> StudyConfig:
    """Reads a study's file.

    Args:
        path: of the file, without the argument of its `get_config`.

    Raises:
        ValueError: if it lacks something that a study has.
    """
    path = pathlib.Path(path)
    spec = importlib.util.spec_from_file_location(f"study_{path.stem}", path)
    if spec is None:
        raise ValueError(f"{path} must be a Python file.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("get_config", "sweep", "QUESTION", "COMPARISONS"):
        if not hasattr(module, name):
            raise ValueError(f"{path} has no {name!r}; run.py takes single configs.")
    return StudyConfig(
        name=path.stem,
        question=module.QUESTION,
        comparisons=tuple(map(tuple, module.COMPARISONS)),
        paper=getattr(module, "PAPER", None),
        get_config=module.get_config,
        sweep=module.sweep,
    )


def expand(
    base: ConfigDict, overrides: Iterable[Mapping[str, Any]]
) -> list[PlannedRun]:
    """The runs of a sweep, in its order.

    Args:
        base: what every run begins with.
        overrides: per run its `arm`, its `seed`, and dotted paths to values, each of
            which replaces the whole field.

    Raises:
        ValueError: if an arm cannot name a folder, a field is not in the config, or two
            runs have the same arm and seed.
    """
    runs: dict[str, PlannedRun] = {}
    for override in overrides:
        override = dict(override)
        for name in ("arm", "seed"):
            if name not in override:
                raise ValueError(f"sweep: {override} has no {name!r}.")
        arm, seed = override.pop("arm"), override.pop("seed")
        if not isinstance(arm, str) or not _FILE_SAFE.fullmatch(arm):
            raise ValueError(
                "sweep: an arm must begin with a letter or digit and hold letters, "
                f"digits and _ = + - . alone, got {arm!r}."
            )
        config = base.copy_and_resolve_references()
        with config.unlocked():
            for field, value in {"seed": seed, **override}.items():
                _replace(config, field, value)
        run = PlannedRun(arm, seed, override, config)
        if run.key in runs:
            raise ValueError(f"sweep: arm {arm!r} has seed {seed} twice.")
        runs[run.key] = run
    return list(runs.values())


def _replace(config: ConfigDict, field: str, value: Any) -> None:
    *parents, name = field.split(".")
    section: Any = config
    for parent in parents:
        section = section.get(parent) if isinstance(section, ConfigDict) else None
    if not isinstance(section, ConfigDict) or name not in section:
        raise ValueError(f"sweep: the config has no field {field!r}.")
    # Deleted first: an update would keep the siblings of another `name`.
    del section[name]
    section[name] = value


def check_comparisons(
    comparisons: Iterable[Sequence[str]], runs: Iterable[PlannedRun]
) -> None:
    """Checks that each comparison is of two arms of the sweep.

    Raises:
        ValueError: naming the comparison that is not.
    """
    arms = dict.fromkeys(run.arm for run in runs)
    for comparison in comparisons:
        if len(comparison) != 2 or not set(comparison) <= arms.keys():
            raise ValueError(
                f"COMPARISONS must hold pairs of arms, got {tuple(comparison)}; the "
                f"arms are {', '.join(arms)}."
            )


def smoke_overrides(study: StudyConfig) -> list[dict[str, Any]]:
    """What `--smoke` takes of a sweep: two arms, one seed, sampler and loss.

    The arms are those of the first comparison, or the sweep's first two. Of the
    overrides `arm`, `seed` and what lies in `sampler` or `loss` is kept.
    """
    first_of: dict[str, dict[str, Any]] = {}
    for override in study.sweep():
        first_of.setdefault(override["arm"], override)
    arms = study.comparisons[0] if study.comparisons else list(first_of)[:2]
    return [
        {
            field: value
            for field, value in override.items()
            if field in ("arm", "seed") or field.split(".")[0] in _KEPT_IN_SMOKE
        }
        for arm, override in first_of.items()
        if arm in arms
    ]
