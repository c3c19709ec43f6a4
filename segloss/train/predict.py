"""Prediction for any images: class ids, overlays, and scores where labels lie."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict
from PIL import Image, ImageOps, UnidentifiedImageError
from rich.console import Console

from segloss import metrics
from segloss.report import overlay, summary_table, to_palette_png
from segloss.train.evaluation import write_json
from segloss.train.log import make_progress
from segloss.train.trained import TrainedModel, load_trained

_SUFFIXES = (".jpg", ".jpeg", ".png")


def predict(
    config: ConfigDict, workdir: str | Path, images: str | Path
) -> dict[str, Any] | None:
    """Predicts every image of a folder with a run's checkpoint.

    Writes `predictions/NAME/indices/STEM.png` (palette PNGs whose values are class ids)
    and `predictions/NAME/overlays/STEM.png`. Where labels lie beside the images, as in
    the `folder` format (`NAME/images`, `NAME/labels`), also `scores.json`.

    Args:
        config: the run's config.
        workdir: the run.
        images: an image, a folder of images, or a folder that holds `images/`.

    Returns:
        The scores, None where no labels lie.

    Raises:
        FileNotFoundError: if there is no image, or no checkpoint.
        ValueError: if a file cannot be read; it names the file.
    """
    images = Path(images)
    console = Console()
    paths, label_dir, name = _find(images)
    trained = load_trained(config, Path(workdir))
    directory = Path(workdir) / "predictions" / name
    for kind in ("indices", "overlays"):
        (directory / kind).mkdir(parents=True, exist_ok=True)
    confusions = {}
    with make_progress(console) as progress:
        for path in progress.track(paths, description="predict"):
            image = _read_image(path)
            predicted = trained.predict(image)
            to_palette_png(predicted).save(directory / "indices" / f"{path.stem}.png")
            blended = Image.fromarray(overlay(image, predicted))
            blended.save(directory / "overlays" / f"{path.stem}.png")
            label_path = label_dir / f"{path.stem}.png"
            if label_path.exists():
                confusions[path.stem] = _count(trained, predicted, label_path)
    console.print(f"{len(paths)} predictions: {directory}", soft_wrap=True)
    if not confusions:
        return None
    scores = _score(confusions)
    write_json(directory / "scores.json", scores)
    console.print(summary_table({name: scores}))
    return scores


def _find(images: Path) -> tuple[Sequence[Path], Path, str]:
    """The images, the folder where their labels would lie, and a name for the set."""
    if images.is_file():
        return [images], images.parent.parent / "labels", images.stem
    folder = images / "images" if (images / "images").is_dir() else images
    found = folder.iterdir() if folder.is_dir() else ()
    paths = sorted(p for p in found if p.suffix.lower() in _SUFFIXES)
    if not paths:
        raise FileNotFoundError(
            f"--input={images}: no image ({', '.join(_SUFFIXES)}) lies there."
        )
    stems = [p.stem for p in paths]
    if twice := sorted({s for s in stems if stems.count(s) > 1}):
        raise ValueError(
            f"--input={images}: several images are named {', '.join(twice)}; their "
            "predictions would overwrite each other."
        )
    name = folder.parent.name if folder.name == "images" else folder.name
    return paths, folder.parent / "labels", name


def _read_image(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    try:
        with Image.open(path) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, SyntaxError, UnidentifiedImageError) as error:
        raise ValueError(f"{path}: cannot be read as an image ({error}).") from error


def _count(
    trained: TrainedModel, predicted: UInt8[np.ndarray, "h w"], label_path: Path
) -> np.ndarray:
    with Image.open(label_path) as image:
        labels = np.asarray(image)
    if labels.shape != predicted.shape:
        raise ValueError(
            f"{label_path}: labels are {labels.shape}, the image {predicted.shape}; "
            "labels are one 8-bit value per pixel of the image."
        )
    num_classes = len(trained.class_names)
    valid = labels != trained.ignore_label
    if valid.any() and (highest := labels[valid].max()) >= num_classes:
        raise ValueError(
            f"{label_path}: label {highest} is neither a class (0 to "
            f"{num_classes - 1}) "
            f"nor ignore_label ({trained.ignore_label})."
        )
    counts = metrics.confusion_matrix(
        predicted[None], labels[None], valid[None], num_classes=num_classes
    )
    return np.asarray(counts, np.int64)


def _score(confusions: dict[str, np.ndarray]) -> dict[str, Any]:
    """Scores of the whole set, and each image's own mean IoU."""
    total = sum(confusions.values())
    per_image = {stem: float(metrics.mean_iou(c)) for stem, c in confusions.items()}
    return {
        "summary": metrics.summary(total),
        "num_images": len(confusions),
        "mean_iou_per_image": per_image,
    }
