"""Predicts images: writes class ids, overlays, and scores if there are labels."""

import collections
import functools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8
from ml_collections import ConfigDict
from PIL import Image

from segloss import metrics
from segloss.console import make_console, make_progress
from segloss.data import read_image, read_labels
from segloss.errors import MissingFileError, SeglossError
from segloss.report import overlay, summary_table, to_palette_png
from segloss.trained.model import TrainedModel, load_trained
from segloss.trained.tiles import describe_tiles
from segloss.writing import without_nan, write_json

_SUFFIXES = (".jpg", ".jpeg", ".png")


def predict(
    config: ConfigDict, workdir: str | Path, images: str | Path
) -> dict[str, Any] | None:
    """Predicts an image, or every image of a folder, with a run's checkpoint.

    Writes `predictions/NAME/indices/STEM.png` (palette PNGs with class ids as values)
    and `predictions/NAME/overlays/STEM.png` (images blended with class colours) in
    `workdir`. NAME is that of the folder or the image. If there are labels as in the
    `folder` format (`NAME/images`, `NAME/labels`), also writes
    `predictions/NAME/scores.json`.

    Args:
        config: the run's config.
        workdir: directory of the run.
        images: an image, a folder of images, or a folder that contains `images/`.

    Returns:
        The contents of `scores.json`; None if there are no labels.

    Raises:
        FileNotFoundError: if there is no image or no checkpoint.
        ValueError: if a file cannot be used; it names the file.
    """
    console = make_console()
    paths, label_dir, name = _find(Path(images).resolve())
    trained = load_trained(config, Path(workdir))
    directory = Path(workdir) / "predictions" / name
    # Remove earlier predictions under the same name: the two must not mix.
    shutil.rmtree(directory, ignore_errors=True)
    for kind in ("indices", "overlays"):
        (directory / kind).mkdir(parents=True)
    num_classes = len(trained.class_names)
    confusion = np.zeros((num_classes, num_classes + 1), np.int64)
    image_scores, tilings = {}, []
    with make_progress(console) as progress:
        task = progress.add_task("predict", total=len(paths))
        for path in paths:
            label_path = label_dir / f"{path.stem}.png"
            labels = _read_labels(label_path, trained) if label_path.exists() else None
            # As in a dataset: the label's size may overrule the EXIF orientation.
            hw = None if labels is None else labels.shape
            image = _read(path, functools.partial(read_image, label_hw=hw))
            tilings.append(trained.tiling(image.shape[:2]))
            predicted = trained.predict(image)
            to_palette_png(predicted).save(directory / "indices" / f"{path.stem}.png")
            blended = Image.fromarray(overlay(image, predicted))
            blended.save(directory / "overlays" / f"{path.stem}.png")
            if labels is not None:
                counts = _count(trained, predicted, labels, path)
                confusion += counts
                image_scores[path.stem] = float(metrics.mean_iou(counts))
            progress.advance(task)
    console.print(f"{len(paths)} predictions: {directory}", soft_wrap=True)
    large = describe_tiles(tilings, max_pixels=trained.inference.max_pixels)
    if large:
        console.print(large, soft_wrap=True)
    if not image_scores:
        return None
    scores = {
        "summary": metrics.summary(confusion),
        "num_images": len(image_scores),
        "mean_iou_per_image": image_scores,
    }
    write_json(directory / "scores.json", without_nan(scores))
    console.print(summary_table({name: scores}))
    return scores


def _find(images: Path) -> tuple[Sequence[Path], Path, str]:
    """Returns the image files, the folder of their labels, and NAME as in `predict`.

    `images` is the argument of `predict`. The folder of labels may be missing.
    """
    if images.is_file():
        return [images], images.parent.parent / "labels", images.stem
    folder = images / "images" if (images / "images").is_dir() else images
    found = folder.iterdir() if folder.is_dir() else ()
    paths = sorted(
        path
        for path in found
        if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")
    )
    if not paths:
        raise MissingFileError(
            f"--input={images}: no image found; known are {', '.join(_SUFFIXES)}."
        )
    stems = collections.Counter(p.stem for p in paths)
    if twice := sorted(stem for stem, count in stems.items() if count > 1):
        raise SeglossError(
            f"--input={images}: several images are named {', '.join(twice)}; their "
            "predictions would overwrite each other."
        )
    name = folder.parent.name if folder.name == "images" else folder.name
    return paths, folder.parent / "labels", name


def _read(path: Path, read: Callable[[bytes], tuple[Image.Image, bool]]) -> np.ndarray:
    """Returns the pixels of a file; `read` decodes its bytes and returns them first."""
    try:
        return np.asarray(read(path.read_bytes())[0])
    # Decoders raise many kinds of errors on damaged files.
    except Exception as error:
        raise SeglossError(f"{path}: cannot be used ({error}).") from error


def _read_labels(path: Path, trained: TrainedModel) -> UInt8[np.ndarray, "h w"]:
    labels = _read(path, read_labels)
    num_classes = len(trained.class_names)
    stray = sorted({*np.unique(labels).tolist()} - {trained.ignore_label})
    if stray and stray[-1] >= num_classes:
        raise SeglossError(
            f"{path}: label {stray[-1]} is neither a class (0 to {num_classes - 1}) "
            f"nor ignore_label ({trained.ignore_label})."
        )
    return labels


def _count(
    trained: TrainedModel,
    predicted: UInt8[np.ndarray, "h w"],
    labels: UInt8[np.ndarray, "_ _"],
    path: Path,
) -> Int64[np.ndarray, "c columns"]:
    if labels.shape != predicted.shape:
        raise SeglossError(
            f"{path}: the image is {predicted.shape} and its labels are {labels.shape} "
            "(height, width); these sizes must be equal."
        )
    counts = metrics.confusion_matrix(
        predicted,
        labels,
        labels != trained.ignore_label,
        num_classes=len(trained.class_names),
    )
    return np.asarray(counts, np.int64)
