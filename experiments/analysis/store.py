"""What a study leaves for good: a record per run, and confusions of each test image.

Run folders hold gigabytes and lie outside of git; what is stored here is small, is
committed, and is all that tables, plots and reports are made from.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from experiments.analysis.run_folder import Run, read_run, shared_setting
from experiments.running.sweep import load_study, smoke_overrides

_ROOT = pathlib.Path(__file__).parents[2]


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
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.py")))
        raise ValueError(f"{path} is missing; known studies are {known}.")
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

    The bytes depend on the study alone.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    about = dataclasses.asdict(dataclasses.replace(study, runs=()))
    del about["runs"]
    text = json.dumps(about, indent=2, allow_nan=False)
    (folder / "study.json").write_text(text + "\n")
    records = (json.dumps(_record(r), allow_nan=False) for r in study.runs)
    (folder / "runs.json").write_text("[\n" + ",\n".join(records) + "\n]\n")
    # NumPy gives each array the date at which zip files begin.
    np.savez_compressed(
        folder / "confusions.npz", **{run.key: run.per_image for run in study.runs}
    )


def load(folder: str | pathlib.Path) -> Study:
    """Reads what `save` wrote.

    Raises:
        ValueError: if a file is missing, or the two are not of the same runs.
    """
    folder = pathlib.Path(folder)
    for name in ("study.json", "runs.json", "confusions.npz"):
        if not (folder / name).exists():
            raise ValueError(
                f"{folder / name} is missing; python -m experiments.collect STUDY "
                "--workdir=DIR writes it."
            )
    about = json.loads((folder / "study.json").read_text())
    records = json.loads((folder / "runs.json").read_text())
    with np.load(folder / "confusions.npz") as arrays:
        per_image = {key: arrays[key] for key in arrays.files}
    keys = [f"{r['arm']}/seed={r['seed']}" for r in records]
    if keys != list(per_image):
        differing = sorted({*keys} ^ {*per_image}) or ["their order"]
        raise ValueError(
            f"{folder}: runs.json and confusions.npz differ in "
            f"{', '.join(differing)}; collect the study anew."
        )
    runs = [
        Run(
            **record | {"class_names": tuple(record["class_names"])},
            per_image=per_image[key],
        )
        for key, record in zip(keys, records, strict=True)
    ]
    about["comparisons"] = tuple(map(tuple, about["comparisons"]))
    study = Study(**about, runs=tuple(runs))
    _check_comparable(study)
    return study


def _check_overrides(
    folder: pathlib.Path, overrides: Mapping[str, Any], config: Mapping[str, Any]
) -> None:
    for path, wanted in overrides.items():
        is_there = config
        for name in path.split("."):
            is_there = None if path == "arm" else is_there[name]
        if path != "arm" and is_there != wanted:
            raise ValueError(
                f"{folder}: {path} is {is_there!r}, the sweep says {wanted!r}; results "
                "of different configs are never mixed. Delete the folder and run it "
                "again, or go back to that sweep."
            )


def _check_one_setting(
    settings: Mapping[str, Mapping[str, Any]],
    overrides: Mapping[str, Mapping[str, Any]],
) -> None:
    """What a run leaves as it is, is as in all others that leave it so."""
    for path in sorted({path for setting in settings.values() for path in setting}):
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


def _record(run: Run) -> dict[str, Any]:
    fields = {f.name: getattr(run, f.name) for f in dataclasses.fields(run)}
    del fields["per_image"]
    return fields


def _to_json(tree: Any) -> Any:
    """Tuples as lists, as a run's config.json has them."""
    return json.loads(json.dumps(tree))
