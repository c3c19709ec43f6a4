"""Predicts images: writes class ids, overlays, probabilities and scores."""

import collections
import dataclasses
import errno
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, Integer, Shaped
from ml_collections import ConfigDict
from PIL import Image
from rich.console import Console

from segloss import metrics
from segloss.config import parse_config
from segloss.console import make_console, make_progress
from segloss.data.bands import to_rgb
from segloss.errors import SeglossError
from segloss.remote import check_absent, check_local, opened, shown
from segloss.report import overlay, summary_table
from segloss.trained.inputs import (
    MANIFEST,
    Input,
    InputImage,
    Tally,
    find_inputs,
    printable,
)
from segloss.trained.model import TrainedModel, load_trained
from segloss.trained.prediction_folder import PredictionFolder, choose_place
from segloss.trained.reading import Reader
from segloss.trained.tiles import describe_tiles
from segloss.writing import naming, without_nan, write_json

PROBABILITIES = ("png", "npy")
# A file that cannot have its name: too long, or that of a folder. Other errors of the
# disk stop the prediction.
_UNFIT_NAMES = (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST)


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The predictions of one input.

    Attributes:
        directory: the folder that holds them; a URL if it is in a remote `workdir`.
        num_images: number of images predicted.
        num_skipped: number of images that cannot be used.
        scores: the contents of `scores.json`; None if no image has labels that fit.
    """

    directory: Path | str
    num_images: int
    num_skipped: int
    scores: dict[str, Any] | None


class SkippedImagesError(SeglossError):
    """Some images could not be used; all others were predicted.

    Attributes:
        predictions: the predictions that were written.
    """

    def __init__(self, message: str, predictions: Sequence[Predictions]):
        super().__init__(message)
        self.predictions = tuple(predictions)


def predict(
    config: ConfigDict,
    workdir: str | Path,
    images: str | Path | Sequence[str | Path],
    *,
    output: str | Path | None = None,
    probabilities: str | None = None,
    threshold: float | None = None,
) -> tuple[Predictions, ...]:
    """Predicts images with a run's checkpoint.

    Writes into a folder per input, `workdir/predictions/NAME/`:

    - `indices/STEM.png`: the class id of each pixel, as a grey PNG of 8 bits, or of 16
      bits if there are more than 256 classes.
    - `overlays/STEM.png`: the image blended with the colours of its classes.
    - `probabilities/`, if asked for.
    - `scores.json`, if there are labels as in the `folder` format (`NAME/images`,
      `NAME/labels`). Labels that do not fit are counted and not scored.
    - `predictions.jsonl`: a line for the input and the model, and one for each image:
      its files, its mean IoU, and why it was skipped or not scored.

    NAME is that of the folder or the image, see `choose_place`; folders below the input
    are found again below `indices` and the others. Images of one folder with the same
    stem keep their suffix: `a.jpg.png`. Memory does not grow with the number of images.
    A folder of earlier predictions of the same input is replaced when the new one is
    complete. Nothing else is ever deleted.

    Args:
        config: the run's config.
        workdir: directory of the run, a path or a URL such as `gs://bucket/run`, where
            earlier predictions are never replaced.
        images: an image, a folder that is searched for images with all folders below
            it, or a sequence of these. A folder that contains `images/` stands for it.
        output: folder that replaces `workdir/predictions`.
        probabilities: "npy" writes `probabilities/STEM.npy`, float16 `[h, w, c]`; "png"
            writes `probabilities/INDEX_CLASS/STEM.png` for each class, of two classes
            only for class 1, as a grey PNG that holds 255 times the probability.
        threshold: of two classes, predicts class 1 where its probability is at least
            this number in (0, 1); None predicts the more probable class.

    Returns:
        The predictions of each input.

    Raises:
        MissingFileError: if there is no image or no checkpoint.
        SkippedImagesError: if an image cannot be used; all others were predicted.
        SeglossError: if an argument is out of range, or if a folder of predictions
            cannot be replaced.
    """
    _check_options(probabilities, threshold)
    if output is not None and not os.fspath(output):
        raise SeglossError("--output is empty; name a folder, or leave the flag out.")
    given = [images] if isinstance(images, str | os.PathLike) else list(images)
    for flag, paths in (("--input", given), ("--output", [output or "."])):
        for path in paths:
            check_local(flag, path)
    with opened(workdir) as local:
        return _predict(config, local, given, output, probabilities, threshold)


def _predict(
    config: ConfigDict,
    workdir: Path,
    images: Sequence[str | Path],
    output: str | Path | None,
    probabilities: str | None,
    threshold: float | None,
) -> tuple[Predictions, ...]:
    inputs = find_inputs(images, skipped=[workdir.resolve()])
    root = workdir / "predictions" if output is None else Path(output).expanduser()
    places: list[Path] = []
    for found, _, _ in inputs:
        places.append(choose_place(root, found.path, places))
        check_absent(places[-1])
    trained = load_trained(config, workdir)
    reader = Reader(
        parse_config(config),
        class_names=trained.class_names,
        ignore_label=trained.ignore_label,
        choice=trained.choice,
    )
    if threshold is not None and len(trained.class_names) != 2:
        raise SeglossError(
            f"--threshold={threshold} needs a model of two classes, this one has "
            f"{len(trained.class_names)}; remove the flag."
        )
    console, skipped = make_console(), Tally()
    done: list[Predictions] = []
    for (found, count, left_out), place in zip(inputs, places, strict=True):
        session = Session(trained, reader, probabilities, threshold, skipped)
        if left_out.count:
            console.print(
                f"{printable(str(found.start))}: {left_out.count:,} files and folders "
                f"are not predicted, as they are no images: {left_out}",
                soft_wrap=True,
            )
        if (predictions := session.predict(found, place, count, console)) is not None:
            done.append(predictions)
    if skipped.count:
        total = skipped.count + sum(each.num_images for each in done)
        others = f" The others are predicted; {MANIFEST} of each folder lists all."
        raise SkippedImagesError(
            f"{skipped.count:,} of {total:,} images cannot be used and were skipped: "
            f"{skipped}.{others if done else ''}",
            done,
        )
    return tuple(done)


def _check_options(probabilities: str | None, threshold: float | None) -> None:
    if probabilities not in (None, *PROBABILITIES):
        raise SeglossError(
            f"--probabilities must be one of {', '.join(PROBABILITIES)}, "
            f"got {probabilities!r}."
        )
    if threshold is not None and not 0 < threshold < 1:
        raise SeglossError(f"--threshold must be in (0, 1), got {threshold}.")


class _NoneUsableError(Exception):
    """No image of an input can be used."""


class Session:
    """Predicts the images of one input and counts what happens to them.

    `skipped` is shared by all inputs; it receives the images that cannot be used.
    """

    def __init__(
        self,
        trained: TrainedModel,
        reader: Reader,
        probabilities: str | None,
        threshold: float | None,
        skipped: Tally,
    ):
        self.trained, self.reader = trained, reader
        self.probabilities, self.threshold = probabilities, threshold
        self.skipped, self.misfits = skipped, Tally()
        num_classes = len(trained.class_names)
        self.confusion = np.zeros((num_classes, num_classes + 1), np.int64)
        self.num_images = self.num_scored = self.num_skipped = 0
        self.tiles: collections.Counter[tuple[int, int] | None] = collections.Counter()

    def predict(
        self, found: Input, place: Path, count: int, console: Console
    ) -> Predictions | None:
        """Writes the predictions of an input of `count` images to the folder `place`.

        If no image can be used, this writes nothing and returns None.
        """
        about = {
            "step": self.trained.step,
            "class_names": list(self.trained.class_names),
            "inference": dataclasses.asdict(self.trained.inference),
            "threshold": self.threshold,
        }
        folder = PredictionFolder(place, about, input=found.path)
        try:
            with naming(place), folder, make_progress(console) as progress:
                task = progress.add_task("predict", total=count)
                for image in found.images(label_names=self.reader.label_names):
                    self._predict_image(image, folder)
                    progress.advance(task)
                if not self.num_images:
                    raise _NoneUsableError
                scores = self._write_scores(folder)
        except _NoneUsableError:
            return None
        finally:
            if folder.kept is not None:
                console.print(
                    f"not finished; {self.num_images:,} predictions are kept in "
                    f"{printable(str(shown(folder.kept)))}",
                    soft_wrap=True,
                )
        self._print(console, place, scores)
        return Predictions(shown(place), self.num_images, self.num_skipped, scores)

    def _predict_image(self, image: InputImage, folder: PredictionFolder) -> None:
        try:
            pixels, labels, misfit = self.reader.read(image)
            ids, probs = self._run(pixels)
            files = self._write(image.name, pixels, ids, probs, folder)
        except SeglossError as error:
            self.num_skipped += 1
            self.skipped.add(image.path, str(error))
            folder.add(image=str(image.path), skipped=str(error))
            return
        self.num_images += 1
        self.tiles[self.trained.tiling(ids.shape).cut_hw] += 1
        about: dict[str, Any] = {"image": str(image.path)}
        if misfit:
            self.misfits.add(image.labels, misfit)
            about["not_scored"] = misfit
        elif labels is not None:
            counts = _count(self.trained, ids, labels)
            self.confusion += counts
            self.num_scored += 1
            about["mean_iou"] = _finite(float(metrics.mean_iou(counts)))
        folder.add(files, **about)

    def _run(
        self, pixels: Shaped[np.ndarray, "h w c"]
    ) -> tuple[Integer[np.ndarray, "h w"], Float32[np.ndarray, "h w n"] | None]:
        if self.probabilities is None and self.threshold is None:
            return self.trained.predict(pixels), None
        ids, probs = self.trained.predict_with_probs(pixels)
        if self.threshold is not None:
            ids = (probs[..., 1] >= np.float32(self.threshold)).astype(ids.dtype)
        return ids, probs

    def _write(
        self,
        name: str,
        pixels: Shaped[np.ndarray, "h w c"],
        ids: Integer[np.ndarray, "h w"],
        probs: Float32[np.ndarray, "h w n"] | None,
        folder: PredictionFolder,
    ) -> list[Path]:
        """Writes the files of one image and returns their paths.

        Raises:
            SeglossError: if a file cannot have its name; then none is left.
        """
        files: list[Path] = []

        def path(kind: str, suffix: str) -> Path:
            files.append(folder.path(kind, f"{name}{suffix}"))
            return files[-1]

        try:
            Image.fromarray(ids).save(path("indices", ".png"))
            picture = to_rgb(pixels, self.trained.bands)
            blended = overlay(picture, ids, ignore_label=-1)
            Image.fromarray(blended).save(path("overlays", ".png"))
            if self.probabilities == "npy":
                np.save(path("probabilities", ".npy"), probs.astype(np.float16))
            elif self.probabilities == "png":
                for k in range(probs.shape[-1] == 2, probs.shape[-1]):
                    kind = f"probabilities/{k}_{_safe(self.trained.class_names[k])}"
                    grey = np.rint(255 * probs[..., k]).astype(np.uint8)
                    Image.fromarray(grey).save(path(kind, ".png"))
        except OSError as error:
            if error.errno not in _UNFIT_NAMES:
                raise
            for written in files:
                if os.path.isfile(written):
                    written.unlink()
            raise SeglossError(
                f"its prediction cannot have this name ({error.strerror}); rename it"
            ) from error
        return files

    def _write_scores(self, folder: PredictionFolder) -> dict[str, Any] | None:
        if not self.num_scored:
            return None
        scores = {
            "summary": metrics.summary(self.confusion),
            "num_images": self.num_scored,
        }
        path = folder.path(".", "scores.json")
        write_json(path, without_nan(scores))
        folder.add([path])
        return scores

    def _print(
        self, console: Console, place: Path, scores: dict[str, Any] | None
    ) -> None:
        name = printable(str(shown(place)))
        lines = [f"{self.num_images:,} predictions: {name}"]
        max_pixels = self.trained.inference.max_pixels
        lines.append(describe_tiles(self.tiles, max_pixels=max_pixels))
        if self.misfits.count:
            lines.append(
                f"the labels of {self.misfits.count:,} images do not fit and are not "
                f"scored: {self.misfits}"
            )
        without = self.num_images - self.num_scored - self.misfits.count
        if scores is not None and without:
            lines.append(f"{without:,} images have no labels")
        for line in filter(None, lines):
            console.print(line, soft_wrap=True)
        if scores is not None:
            console.print(summary_table({printable(place.name): scores}))


def _count(
    trained: TrainedModel,
    predicted: Integer[np.ndarray, "h w"],
    labels: Integer[np.ndarray, "h w"],
) -> Int64[np.ndarray, "c columns"]:
    counts = metrics.confusion_matrix(
        predicted,
        labels,
        labels != trained.ignore_label,
        num_classes=len(trained.class_names),
    )
    return np.asarray(counts, np.int64)


def _finite(score: float) -> float | None:
    return None if math.isnan(score) else score


def _safe(class_name: str) -> str:
    """Returns a class name that can be part of a file name."""
    return re.sub(r"[^\w-]+", "_", class_name)[:50]
