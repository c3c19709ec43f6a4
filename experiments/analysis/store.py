"""What a study leaves for good: a record per run, and confusions of each test image.

Run folders hold gigabytes and lie outside of git; what is stored here is small, is
committed, and is all that tables, plots and reports are made from.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import operator
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from experiments.analysis.run_folder import Run, read_run, shared_setting
from experiments.running.sweep import load_study, smoke_overrides
from segloss.writing import replacing

_ROOT = pathlib.Path(__file__).parents[2]
_FILES = ("study.json", "runs.json", "confusions.npz")
_REMEDY = "python -m experiments.collect STUDY --workdir=DIR writes all anew"


@dataclasses.dataclass(frozen=True)
class Study:
    """A question, and the runs that answer it.

    Attributes:
        name: of the config in `configs/sweeps/`.
        question: in a sentence or two.
        comparisons: (arm, its baseline), in order of interest.
        paper: which of the paper's numbers stand beside; None is none.
        runs: in the order of the sweep.
        setting: fields of the config, dotted, that all runs share.
    """

    name: str
    question: str
    comparisons: tuple[tuple[str, str], ...]
    paper: str | None
    runs: tuple[Run, ...]
    setting: dict[str, Any]

    @property
    def arms(self) -> dict[str, tuple[Run, ...]]:
        """Runs of each arm, by seed."""
        names = dict.fromkeys(run.arm for run in self.runs)
        return {
            name: tuple(
                sorted((r for r in self.runs if r.arm == name), key=lambda r: r.seed)
            )
            for name in names
        }

    @property
    def pixel_shares(self) -> dict[str, float]:
        """Share of the labelled pixels by class, the largest first."""
        first = self.runs[0]
        shares = zip(first.class_names, first.pixel_share, strict=True)
        return dict(sorted(shares, key=lambda pair: -pair[1]))

    def pairs(self, arm: str, baseline: str) -> tuple[tuple[Run, ...], tuple[Run, ...]]:
        """Runs of both, the same seed in the same place.

        Raises:
            ValueError: if one of them lacks a seed of the other.
        """
        arms = self.arms
        for name in (arm, baseline):
            if name not in arms:
                raise ValueError(
                    f"study {self.name}: a comparison names the arm {name!r}; the "
                    f"runs have {', '.join(arms)}."
                )
        seeds = [[run.seed for run in arms[name]] for name in (arm, baseline)]
        if seeds[0] != seeds[1]:
            raise ValueError(
                f"study {self.name}: {arm} has the seeds {seeds[0]}, its baseline "
                f"{baseline} has {seeds[1]}; pairs need the same."
            )
        return arms[arm], arms[baseline]


def study_folder(name: str) -> pathlib.Path:
    """Where README, results and plots of a study lie."""
    return _ROOT / "experiments" / name


def study_config(name: str) -> pathlib.Path:
    """The config of a study."""
    return _ROOT / "configs" / "sweeps" / f"{name}.py"


def check_known(path: pathlib.Path) -> None:
    """Checks that a study's config is there.

    Raises:
        ValueError: listing those beside it.
    """
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.py")))
        raise ValueError(f"{path} is missing; known studies are {known}.")


def confusions(runs: Sequence[Run]) -> Int[np.ndarray, "s n c c"]:
    """The confusions of several runs, one after the other."""
    return np.stack([run.per_image for run in runs])


def collect(
    study_config_path: str | pathlib.Path,
    workdir: str | pathlib.Path,
    *,
    smoke: bool = False,
) -> Study:
    """Reads the finished runs of a study from their folders.

    Args:
        study_config_path: `configs/sweeps/STUDY.py`.
        workdir: where the runner put them, each in `ARM/seed=S/`.
        smoke: whether the runner was asked for `--smoke`, which is a part of the sweep.

    Raises:
        ValueError: if runs are missing, or differ in code, in the fields that the sweep
            leaves alone, or in the images they were scored on. It names them.
    """
    path, workdir = pathlib.Path(study_config_path), pathlib.Path(workdir)
    check_known(path)
    about = load_study(path)
    planned = _to_json(smoke_overrides(about) if smoke else list(about.sweep()))
    folders = {f"{p['arm']}/seed={p['seed']}": p for p in planned}
    missing = [k for k in folders if not (workdir / k / "results.json").exists()]
    if missing:
        raise ValueError(
            f"{workdir} lacks {len(missing)} of {len(folders)} runs of {path.stem}: "
            f"{', '.join(missing)}; run the same experiments.run again, which goes on."
        )
    runs, settings = [], {}
    for key, overrides in folders.items():
        run, config = read_run(workdir / key)
        _check_overrides(workdir / key, overrides, config)
        runs.append(run)
        settings[key] = shared_setting(config, [overrides])
    _check_one_setting(settings, folders)
    study = Study(
        name=path.stem,
        question=about.question,
        comparisons=about.comparisons[:1] if smoke else about.comparisons,
        paper=about.paper,
        runs=tuple(runs),
        setting=shared_setting(config, planned),
    )
    _check_comparable(study)
    return study


def save(study: Study, folder: str | pathlib.Path) -> None:
    """Writes `study.json`, `runs.json` (a line per run) and `confusions.npz`.

    The bytes depend on the study alone. The first holds the SHA-256 of the others, by
    which `load` knows that the three belong together.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    about = {name: getattr(study, name) for name in _fields_stored(Study)}
    records = [
        json.dumps(
            {name: getattr(run, name) for name in _fields_stored(Run)}, allow_nan=False
        )
        for run in study.runs
    ]
    # None takes its place before all are written.
    with contextlib.ExitStack() as stack:
        about_path, runs_path, npz_path = (
            stack.enter_context(replacing(folder / name)) for name in _FILES
        )
        runs_path.write_text("[\n" + ",\n".join(records) + "\n]\n")
        with npz_path.open("wb") as file:
            # NumPy gives each array the date at which zip files begin.
            np.savez_compressed(file, **{run.key: run.per_image for run in study.runs})
        digests = {"runs.json": _sha256(runs_path), "confusions.npz": _sha256(npz_path)}
        text = json.dumps(about | {"sha256": digests}, indent=2, allow_nan=False)
        about_path.write_text(text + "\n")


def load(folder: str | pathlib.Path) -> Study:
    """Reads what `save` wrote.

    Raises:
        ValueError: if a file is missing or damaged, the three are not of one `save`, or
            were stored before a field was added. It names the file.
    """
    folder = pathlib.Path(folder)
    for name in _FILES:
        if not (folder / name).exists():
            raise ValueError(f"{folder / name} is missing; {_REMEDY}.")
    try:
        about = json.loads((folder / "study.json").read_text())
    except ValueError as error:
        raise ValueError(f"{folder / 'study.json'} is damaged; {_REMEDY}.") from error
    _check_fields(folder / "study.json", about, {*_fields_stored(Study), "sha256"})
    digests = about.pop("sha256")
    for name in _FILES[1:]:
        if digests.get(name) != _sha256(folder / name):
            raise ValueError(
                f"{folder / name} is damaged, or of another collection than study.json "
                f"beside it; {_REMEDY}, or take all files from one commit."
            )
    records = json.loads((folder / "runs.json").read_text())
    runs = []
    with np.load(folder / "confusions.npz") as arrays:
        for record in records:
            _check_fields(folder / "runs.json", record, set(_fields_stored(Run)))
            record["class_names"] = tuple(record["class_names"])
            key = f"{record['arm']}/seed={record['seed']}"
            runs.append(Run(**record, per_image=arrays[key]))
    about["comparisons"] = tuple(map(tuple, about["comparisons"]))
    study = Study(**about, runs=tuple(runs))
    _check_comparable(study)
    return study


def _fields_stored(kind: type[Study] | type[Run]) -> list[str]:
    """Those of a study without its runs, of a run without its confusions."""
    names = [field.name for field in dataclasses.fields(kind)]
    return [name for name in names if name not in ("runs", "per_image")]


def _check_fields(
    path: pathlib.Path, stored: Mapping[str, Any], names: set[str]
) -> None:
    for word, differing in (
        ("lacks", names - stored.keys()),
        ("has the unknown", stored.keys() - names),
    ):
        if differing:
            raise ValueError(
                f"{path} {word} {', '.join(sorted(differing))}, so other code stored "
                f"it; {_REMEDY}."
            )


def _sha256(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _check_overrides(
    folder: pathlib.Path, overrides: Mapping[str, Any], config: Mapping[str, Any]
) -> None:
    for path, wanted in overrides.items():
        if path == "arm":
            continue
        try:
            is_there = functools.reduce(operator.getitem, path.split("."), config)
        except (KeyError, TypeError):  # a list, a number or None has no names
            problem = "is missing"
        else:
            problem = None if is_there == wanted else f"is {is_there!r}"
        if problem:
            raise ValueError(
                f"{folder / 'config.json'}: {path} {problem}, the sweep says "
                f"{wanted!r}; results of different configs are never mixed. Delete the "
                "folder and run it again, or go back to that sweep."
            )


def _check_one_setting(
    settings: Mapping[str, Mapping[str, Any]],
    overrides: Mapping[str, Mapping[str, Any]],
) -> None:
    """What a run leaves as it is, is as in all others that leave it so."""
    paths = {path for setting in settings.values() for path in setting}
    # A file of weights may be renamed; `_check_comparable` compares its SHA-256.
    for path in sorted(paths - {"model.pretrained"}):
        keys = [
            key
            for key, own in overrides.items()
            if not any(f"{path}.".startswith(f"{field}.") for field in own)
        ]
        values = {key: settings[key].get(path) for key in keys}
        first, *others = keys
        for key in others:
            if values[key] != values[first]:
                raise ValueError(
                    "results of different configs are never mixed: "
                    f"{path} is {values[key]!r} in {key}, {values[first]!r} in {first}."
                    " Delete the runs that should not be, and run them again."
                )


def _check_comparable(study: Study) -> None:
    """All of one code, on the same images of the same classes."""
    if not study.runs:
        raise ValueError(f"study {study.name} holds no run.")
    first = study.runs[0]
    for what, of_run in {
        "code": lambda run: run.code,
        "data": lambda run: run.data,
        "pretrained weights": lambda run: run.pretrained,
        "devices": lambda run: run.devices,
        "split": lambda run: run.split,
        "classes": lambda run: run.class_names,
        "confusions (images, classes, classes)": lambda run: run.per_image.shape,
        # The same images in the same order have the same labels.
        "labels of the images": lambda run: run.per_image.sum(axis=2).tobytes(),
    }.items():
        others = [run.key for run in study.runs if of_run(run) != of_run(first)]
        if others:
            raise ValueError(
                f"study {study.name}: results of different {what} are never mixed; "
                f"{first.key} differs from {', '.join(others)}. Choose another "
                "--workdir, or delete those runs and run them again."
            )


def _to_json(tree: Any) -> Any:
    """Tuples as lists, as a run's config.json has them."""
    return json.loads(json.dumps(tree))
