"""Stores a study: a record per run, and the confusion matrix of each test image.

Run folders hold gigabytes and stay outside of git. The stored files are small, are
committed, and are all that tables, plots and reports are made from.
"""

import contextlib
import dataclasses
import hashlib
import json
import operator
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from experiments.analysis.run_folder import Run
from segloss.errors import SeglossError
from segloss.writing import read_json, replacing

_FILES = ("study.json", "runs.json", "confusions.npz")
# Fields of `Study` and `Run` that are stored only if they are not empty.
_IF_ANY = ("base", "missing", "bars", "accepted_code", "others", "config")
_REMEDY = "python -m experiments.collect STUDY --workdir=DIR writes all anew"


@dataclasses.dataclass(frozen=True)
class Study:
    """A question, and the runs that answer it.

    Attributes:
        name: name of the study's file in `configs/sweeps/`.
        comparisons: pairs of an arm (a setting that was trained) and its baseline arm.
        paper: the loss, or losses, in `paper.csv` with which results are shown; or
            None.
        runs: the finished runs, in the order of the sweep.
        setting: the config fields with one value in all runs, by dotted path.
        base: the config fields that only some arms change, by dotted path, with the
            value that the others have.
        missing: number of runs of the sweep that are not among `runs`.
        bars: mean IoU by the arm that must reach it before differences of the study
            count; fixed before the first run.
    """

    name: str
    question: str
    comparisons: tuple[tuple[str, str], ...]
    paper: str | Sequence[str] | None
    runs: tuple[Run, ...]
    setting: dict[str, Any]
    base: dict[str, Any] = dataclasses.field(default_factory=dict)
    missing: int = 0
    bars: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def arms(self) -> dict[str, tuple[Run, ...]]:
        """The runs of each arm, by its name; sorted by seed."""
        arms: dict[str, list[Run]] = {run.arm: [] for run in self.runs}
        for run in sorted(self.runs, key=lambda run: run.seed):
            arms[run.arm].append(run)
        return {name: tuple(runs) for name, runs in arms.items()}

    @property
    def pixel_shares(self) -> dict[str, float]:
        """Share of each class in the labelled pixels, by name; the largest first."""
        first = self.runs[0]
        shares = zip(first.class_names, first.pixel_share, strict=True)
        return dict(sorted(shares, key=lambda pair: -pair[1]))

    def pairs(self, arm: str, baseline: str) -> tuple[tuple[Run, ...], tuple[Run, ...]]:
        """Returns the runs of both arms with the seeds that both have, in order.

        Raises:
            ValueError: if an arm is unknown, or the arms have no seed in common.
        """
        arms = self.arms
        for name in (arm, baseline):
            if name not in arms:
                raise SeglossError(
                    f"study {self.name}: a comparison names the arm {name!r}; the "
                    f"runs have {', '.join(arms)}."
                )
        seeds = [{run.seed for run in arms[name]} for name in (arm, baseline)]
        if not seeds[0] & seeds[1]:
            raise SeglossError(
                f"study {self.name}: {arm} has the seeds {sorted(seeds[0])}, its "
                f"baseline {baseline} has {sorted(seeds[1])}; pairs need the same."
            )
        return tuple(
            tuple(run for run in arms[name] if run.seed in seeds[0] & seeds[1])
            for name in (arm, baseline)
        )


def confusions(runs: Sequence[Run]) -> Int[np.ndarray, "s n c c"]:
    """Stacks the confusion matrices of several runs: `[run, image, label, class]`."""
    return np.stack([run.per_image for run in runs])


def save(study: Study, folder: str | pathlib.Path) -> None:
    """Writes `study.json`, `runs.json` and `confusions.npz`.

    The bytes depend on the study alone. `study.json` has the SHA-256 of the two others,
    by which `load` knows that the three belong together. `runs.json` has a line per
    run, and before them one with what is the same in all runs.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shared, records = _without_shared([_to_store(run) for run in study.runs])
    shared, *lines = (json.dumps(x, allow_nan=False) for x in (shared, *records))
    # The files replace the old ones only after all have been written.
    with contextlib.ExitStack() as stack:
        about_path, runs_path, npz_path = (
            stack.enter_context(replacing(folder / name)) for name in _FILES
        )
        runs = ",\n".join(lines)
        runs_path.write_text(f'{{"shared": {shared},\n"runs": [\n{runs}\n]}}\n')
        with npz_path.open("wb") as file:
            # NumPy writes a fixed date for each array.
            np.savez_compressed(file, **{run.key: run.per_image for run in study.runs})
        digests = {"runs.json": _sha256(runs_path), "confusions.npz": _sha256(npz_path)}
        about = _to_store(study) | {"sha256": digests}
        about_path.write_text(json.dumps(about, indent=2, allow_nan=False) + "\n")


def load(folder: str | pathlib.Path) -> Study:
    """Reads the files that `save` wrote to `folder`.

    Raises:
        ValueError: if a file is missing or damaged, or lacks a field, or if the three
            were not saved together. It names the file.
    """
    folder = pathlib.Path(folder)
    for name in _FILES:
        if not (folder / name).exists():
            raise SeglossError(f"{folder / name} is missing; {_REMEDY}.")
    needs = ("comparisons",)
    about = read_json(folder / "study.json", remedy=_REMEDY, needs=needs)
    digests = about.pop("sha256", {})
    for name in _FILES[1:]:
        if digests.get(name) != _sha256(folder / name):
            raise SeglossError(
                f"{folder / name} is damaged, or of another collection than the "
                f"study.json next to it; {_REMEDY}, or take all files from one commit."
            )
    stored = read_json(folder / "runs.json", remedy=_REMEDY, needs=("shared", "runs"))
    runs = []
    with np.load(folder / "confusions.npz") as arrays:
        for record in stored["runs"]:
            record = stored["shared"] | record
            for field in ("class_names", "accepted_code"):
                record[field] = tuple(record.get(field, ()))
            record["curve"] = _points(record["curve"])
            per_image = arrays[f"{record['arm']}/seed={record['seed']}"]
            run = _from_store(folder / "runs.json", Run, record, per_image=per_image)
            runs.append(run)
    about["comparisons"] = tuple(map(tuple, about["comparisons"]))
    study = _from_store(folder / "study.json", Study, about, runs=tuple(runs))
    check_comparable(study)
    return study


def check_complete(study: Study) -> None:
    """Raises a ValueError if the study lacks runs: nobody looks at half a result."""
    if study.missing:
        raise SeglossError(f"study {study.name} lacks {study.missing} of its runs.")


def check_comparable(study: Study) -> None:
    """Checks that all runs have the same code, devices, images and classes.

    Raises:
        ValueError: if they differ; it says in what.
    """
    if not study.runs:
        raise SeglossError(f"study {study.name} holds no run.")
    first = study.runs[0]
    codes = dict.fromkeys(run.code for run in study.runs)
    accepted = {code for run in study.runs for code in run.accepted_code}
    # All code that was accepted as the same as some other is one.
    one_code = len(codes.keys() - accepted) <= 1
    for what, of_run in {
        "code": lambda run: one_code or run.code,
        "data": operator.attrgetter("data"),
        "pretrained weights": operator.attrgetter("pretrained"),
        "devices": operator.attrgetter("devices"),
        "split": operator.attrgetter("split"),
        "classes": operator.attrgetter("class_names"),
        "confusions (images, classes, classes)": operator.attrgetter("per_image.shape"),
        # The same images in the same order have the same labels.
        "labels of the images": lambda run: run.per_image.sum(axis=2).tobytes(),
    }.items():
        others = [run.key for run in study.runs if of_run(run) != of_run(first)]
        if others:
            raise SeglossError(
                f"study {study.name}: results of different {what} are never mixed; "
                f"{first.key} differs from {', '.join(others)}. Choose another "
                "--workdir, or delete those runs and run them again."
            )


def _to_store(record: Study | Run) -> dict[str, Any]:
    """Returns the fields for JSON: no runs, no `per_image`, no field that is empty."""
    left_out = {"runs", "per_image"}
    left_out |= {x for x in _IF_ANY if not getattr(record, x, True)}
    fields = {name: x for name, x in vars(record).items() if name not in left_out}
    if isinstance(record, Run):
        fields["curve"] = _columns(record.curve)
    return fields


def _columns(points: Sequence[Mapping[str, float]]) -> dict[str, list[float | None]]:
    """Returns the values by name, with None where a point lacks it; names are long."""
    names = dict.fromkeys(name for point in points for name in point)
    return {name: [point.get(name) for point in points] for name in names}


def _points(columns: Mapping[str, Sequence[float | None]]) -> list[dict[str, float]]:
    """Inverts `_columns`."""
    rows = zip(*columns.values(), strict=True)
    points = (zip(columns, row, strict=True) for row in rows)
    return [{name: x for name, x in point if x is not None} for point in points]


def _without_shared(
    records: Sequence[Mapping[str, Any]],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns the fields that are the same in all records, and the records' others."""
    first, *others = records
    shared = {k: x for k, x in first.items() if all(r.get(k) == x for r in others)}
    return shared, [{k: x for k, x in r.items() if k not in shared} for r in records]


def _from_store(
    path: pathlib.Path, kind: Callable[..., Any], fields: Mapping[str, Any], **others
) -> Any:
    try:
        return kind(**fields, **others)
    except TypeError as error:
        raise SeglossError(
            f"{path}: {error}; other code stored it; {_REMEDY}."
        ) from None


def _sha256(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
