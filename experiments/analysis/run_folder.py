"""What one run left in its folder."""

import dataclasses
import json
import math
import pathlib
import statistics
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from experiments.running.fingerprint import FREE, RECORD
from segloss.report import read_metrics

_CURVE_POINTS = 100


@dataclasses.dataclass(frozen=True)
class Run:
    """One training of one arm.

    Attributes:
        arm: the arm's name.
        seed: runs of other arms with this seed are its pairs.
        loss: `config.loss`.
        sampler: `config.sampler`.
        total_steps: steps of training.
        images_seen: images that those steps used.
        summary: scores of the final split; None where there is none.
        class_names: names by class id.
        per_image: confusions of the split's images, rows labels, columns predictions.
        curve: points with `step`, and `loss` (mean since the point before) or the
            watched split's `SPLIT_mean_iou`, or both.
        gradient_shares: each class's share of the gradient, mean of the batches logged.
        seconds: of training.
        commit: of the code, None outside of a checkout.
        devices: number and kind.
        versions: of Python and packages.
        code: fingerprint of code and versions.
        split: name of the final split.
        data: fingerprint of the data set, training split included.
        pretrained: SHA-256 of the weights that the run began with; None without any.
        pixel_share: each class's share of the split's labelled pixels.
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

    @property
    def key(self) -> str:
        """The run's folder below the study's, and its name among the confusions."""
        return f"{self.arm}/seed={self.seed}"


def read_run(folder: pathlib.Path) -> tuple[Run, dict[str, Any]]:
    """The run, and its config.

    Raises:
        ValueError: if one of its files is damaged, or they are not of one evaluation.
    """
    results, config, about = (
        json.loads((folder / name).read_text())
        for name in ("results.json", "config.json", RECORD)
    )
    try:
        # Opened here, as NumPy leaves a damaged one open.
        with (folder / "confusions.npz").open("rb") as file, np.load(file) as arrays:
            per_image = arrays["per_image"]
    except (zipfile.BadZipFile, EOFError, ValueError) as error:
        raise ValueError(
            f"{folder / 'confusions.npz'} is damaged; delete the folder and run it "
            "again."
        ) from error
    if not np.array_equal(per_image.sum(axis=0, dtype=np.int64), results["confusion"]):
        raise ValueError(
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
        images_seen=results["images_seen"],
        summary=results["summary"],
        class_names=tuple(row["name"] for row in results["per_class"]),
        per_image=per_image,
        curve=_curve(lines, config["evaluate"]["split"]),
        gradient_shares=_mean_shares(lines),
        seconds=results["seconds"],
        commit=results["commit"],
        devices=results["devices"],
        versions=results["versions"],
        code=about["code"],
        split=results["split"],
        data=results["fingerprint"],
        pretrained=(results.get("pretrained") or {}).get("sha256"),
        pixel_share=[_round(row["pixel_share"]) for row in results["per_class"]],
    )
    return run, config


def shared_setting(
    config: Mapping[str, Any], planned: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The fields that no run overrides, without those that change no figure."""
    left_out = {"seed", *FREE, *(path for run in planned for path in run)}
    kept = {
        path: value
        for path, value in _flatten(dict(config)).items()
        if not any(f"{path}.".startswith(f"{out}.") for out in left_out)
    }
    if kept.get("model.pretrained"):
        kept["model.pretrained"] = pathlib.PurePath(kept["model.pretrained"]).name
    return kept


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted paths to the values of nested dicts."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        path: value
        for name, branch in tree.items()
        for path, value in _flatten(branch, f"{prefix}.{name}".lstrip(".")).items()
    }


def _curve(lines: Sequence[Mapping[str, Any]], split: str) -> list[dict[str, float]]:
    """Some hundred points: mean loss since the last one, and every evaluation."""
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    every = math.ceil(max(losses, default=1) / _CURVE_POINTS)
    points: dict[int, dict[str, float]] = {}
    window = []
    for step, loss in sorted(losses.items()):
        window.append(loss)
        if step % every == 0 or step == max(losses):
            points[step] = {
                "step": step,
                "loss": _round(math.fsum(window) / len(window)),
            }
            window = []
    name = f"{split}_mean_iou"
    for line in lines:
        if line.get(name) is not None:
            point = points.setdefault(line["step"], {"step": line["step"]})
            point[name] = _round(line[name])
    return [points[step] for step in sorted(points)]


def _mean_shares(lines: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """Mean of each class over the batches for which shares were logged."""
    start = "gradient_share/"
    logged: dict[str, list[float]] = {}
    for line in lines:
        for name, value in line.items():
            # None where it was not finite.
            if name.startswith(start) and value is not None:
                logged.setdefault(name.removeprefix(start), []).append(value)
    return {name: _round(statistics.fmean(x)) for name, x in logged.items()} or None


def _round(value: float) -> float:
    """Six digits, which is more than anything here is known to."""
    return float(f"{value:.6g}")
