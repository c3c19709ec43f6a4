"""Reads the results of one run from its folder."""

import dataclasses
import math
import pathlib
import statistics
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from experiments.running.fingerprint import RECORD
from segloss.errors import SeglossError
from segloss.report import read_metrics
from segloss.writing import read_json

_CURVE_POINTS = 100
# Fields of `Run` that `results.json` has under the same names.
_SAME_NAME = ("images_seen", "summary", "seconds", "commit", "devices", "versions")
# Fields of the config that have a field of `Run`.
_OWN_FIELD = ("loss", "sampler", "total_steps")


@dataclasses.dataclass(frozen=True)
class Run:
    """The results of one training run of an arm (a setting that a study compares).

    Attributes:
        seed: seed of the run; runs of two arms with the same seed form a pair.
        loss: `config.loss`.
        sampler: `config.sampler`.
        images_seen: number of images used in training.
        summary: scores on `split`, by name.
        class_names: names by class id.
        per_image: confusion matrix of each image of `split`; rows are labels.
        curve: points with `step`, and `loss` (mean since the point before) or the
            `SPLIT_mean_iou` of evaluations during training, or both.
        gradient_shares: `gradient_share` by class name, mean over the logged batches.
        seconds: duration of training.
        commit: commit of the code; None outside of a checkout.
        devices: number and kind.
        code: fingerprint of code and versions.
        split: the split evaluated after training.
        data: fingerprint of the dataset with all its splits.
        pretrained: SHA-256 of the weights that the run started from, or None.
        pixel_share: share of the labelled pixels of `split`, by class id.
        accepted_code: fingerprints of other code that the user said computes the same.
        others: fields of the config that the sweep sets for this arm, by dotted path,
            without `loss`, `sampler` and `total_steps`.
        config: fingerprint of the config; "" for runs that older code stored.
    """

    arm: str
    seed: int
    loss: Any
    sampler: dict[str, Any]
    total_steps: int
    images_seen: int
    summary: dict[str, float | None]
    class_names: tuple[str, ...]
    per_image: Int[np.ndarray, "n c c"]
    curve: list[dict[str, float]]
    gradient_shares: dict[str, float] | None
    seconds: float
    commit: str | None
    devices: str
    versions: dict[str, str]
    code: str
    split: str
    data: str
    pretrained: str | None
    pixel_share: list[float]
    accepted_code: tuple[str, ...] = ()
    others: dict[str, Any] = dataclasses.field(default_factory=dict)
    config: str = ""

    @property
    def key(self) -> str:
        """`ARM/seed=S`: the run's folder within the sweep's, and its name in files."""
        return f"{self.arm}/seed={self.seed}"


def read_run(folder: pathlib.Path) -> tuple[Run, dict[str, Any]]:
    """Reads a run's results from its folder; returns them and its config as a dict.

    Reads `results.json`, `config.json`, `run.json`, `confusions.npz`, `metrics.jsonl`.

    Raises:
        ValueError: if a file is damaged, or if `confusions.npz` and `results.json` are
            not of one evaluation.
    """
    remedy = f"delete {folder} and run it again"
    needs = {
        "results.json": (*_SAME_NAME, "step", "per_class", "split", "confusion"),
        "config.json": ("loss", "sampler", "evaluate"),
        RECORD: ("arm", "seed", "code"),
    }
    results, config, about = (
        read_json(folder / name, remedy=remedy, needs=names)
        for name, names in needs.items()
    )
    confusions = folder / "confusions.npz"
    try:
        # Opened here, as NumPy leaves a damaged file open.
        with confusions.open("rb") as file, np.load(file) as arrays:
            per_image = arrays["per_image"]
    except (zipfile.BadZipFile, EOFError, ValueError) as error:
        raise SeglossError(
            f"{confusions} is damaged; delete the folder and run it again."
        ) from error
    if not np.array_equal(per_image.sum(axis=0, dtype=np.int64), results["confusion"]):
        raise SeglossError(
            f"{folder}: confusions.npz does not add up to the confusion of "
            "results.json; delete the folder and run it again."
        )
    lines = read_metrics(folder / "metrics.jsonl")
    run = Run(
        arm=about["arm"],
        seed=about["seed"],
        loss=config["loss"],
        sampler=config["sampler"],
        total_steps=results["step"],
        class_names=tuple(row["name"] for row in results["per_class"]),
        per_image=per_image,
        curve=_curve(lines, config["evaluate"]["split"]),
        gradient_shares=_mean_shares(lines),
        code=about["code"],
        split=results["split"],
        data=results["fingerprint"],
        pretrained=(results.get("pretrained") or {}).get("sha256"),
        pixel_share=[_round(row["pixel_share"]) for row in results["per_class"]],
        accepted_code=tuple(about.get("accepted_code", ())),
        others={
            name: x
            for name, x in about.get("overrides", {}).items()
            if name not in _OWN_FIELD
        },
        config=about.get("config", ""),
        **{name: results[name] for name in _SAME_NAME},
    )
    return run, config


def _curve(lines: Sequence[Mapping[str, Any]], split: str) -> list[dict[str, float]]:
    """Reduces the lines of `metrics.jsonl` to the points of `Run.curve`.

    There are about a hundred points with a mean loss, and one for each evaluation.
    """
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    every = math.ceil(max(losses, default=1) / _CURVE_POINTS)
    points: dict[int, dict[str, float]] = {}
    window = []
    for step, loss in sorted(losses.items()):
        window.append(loss)
        if step % every == 0 or step == max(losses):
            mean = math.fsum(window) / len(window)
            points[step] = {"step": step, "loss": _round(mean)}
            window = []
    name = f"{split}_mean_iou"
    for line in lines:
        if line.get(name) is not None:
            point = points.setdefault(line["step"], {"step": line["step"]})
            point[name] = _round(line[name])
    return [points[step] for step in sorted(points)]


def _mean_shares(lines: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """Returns each class's mean `gradient_share` in the lines of `metrics.jsonl`.

    None if there is none.
    """
    start = "gradient_share/"
    logged: dict[str, list[float]] = {}
    for line in lines:
        for name, value in line.items():
            # None where it was not finite.
            if name.startswith(start) and value is not None:
                logged.setdefault(name.removeprefix(start), []).append(value)
    return {name: _round(statistics.fmean(x)) for name, x in logged.items()} or None


def _round(value: float) -> float:
    """Rounds to six digits, more than the accuracy of any of these values."""
    return float(f"{value:.6g}")
