"""Reads images and labels for prediction, as the training data were read."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer, Shaped

from segloss.config import RunConfig
from segloss.data import MAX_IMAGE_PIXELS, Choice
from segloss.data.datasets.classes_file import NAME, read_classes
from segloss.data.datasets.pairs import Pair
from segloss.data.datasets.rules import Rules, fill_nodata, parse_nodata, read_pair
from segloss.data.decoding.label_values import LabelValues
from segloss.data.decoding.labels import DecodedLabels, read_labels
from segloss.data.decoding.opening import read_file
from segloss.errors import SeglossError
from segloss.trained.classes import describe_changed_classes
from segloss.trained.inputs import InputImage, LabelNames

# Datasets whose label files may write classes as other values than their ids.
_WITH_OWN_VALUES = ("folder", "tfds")


class Reader:
    """Reads images and labels as `config.data` says.

    Args:
        config: the run's config.
        class_names: the classes of the run's model.
        ignore_label: label of pixels that do not count.
        choice: how these classes were chosen of those of the labels; None has all.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        class_names: tuple[str, ...],
        ignore_label: int,
        choice: Choice | None = None,
    ):
        fields = config.data.dataset.hyperparameters

        def field(name: str, default: Any) -> Any:
            return fields.get(name, default)

        self.label_names = LabelNames(
            field("image_suffix", ""), field("label_suffix", "")
        )
        self._rules = Rules(
            root=Path("/"),
            class_names=class_names,
            ignore_label=ignore_label,
            alpha=field("alpha", "drop"),
            nodata=parse_nodata(field("nodata", None)),
            max_pixels=field("max_image_pixels", MAX_IMAGE_PIXELS),
        )
        self._choice = choice
        root = field("root", None)
        self._training_root = [] if root is None else [Path(root).expanduser()]
        self._has_own_values = config.data.dataset.name in _WITH_OWN_VALUES
        self._values_of = functools.lru_cache(maxsize=1)(self._find_values)

    def read(
        self, image: InputImage
    ) -> tuple[Shaped[np.ndarray, "h w n"], Integer[np.ndarray, "h w"] | None, str]:
        """Reads an image and its labels, if it has labels.

        Returns:
            The pixels; the class ids, None if there are no labels that fit; and why
            labels do not fit, or "".

        Raises:
            SeglossError: if the image cannot be used; says why, without its name.
        """
        labels, misfit = None, ""
        if image.labels is not None:
            try:
                labels = self._read_labels(image.labels)
            except SeglossError as error:
                misfit = str(error)
        data = _read_bytes(image.path, self._rules.max_pixels)
        try:
            if labels is None:
                pixels = self._rules.read_image(data).pixels
                if self._rules.nodata is not None:
                    pixels = fill_nodata(pixels, self._rules.nodata)
            else:
                pair = Pair("", image.path, image.labels, lambda _: labels)
                labels, decoded = read_pair(self._rules, pair, b"", data)
                pixels = decoded.pixels
        except SeglossError:
            raise
        # Decoders raise many kinds of errors on damaged files.
        except Exception as error:
            raise SeglossError(f"is damaged: {error}") from error
        if labels is not None and labels.ids.shape != pixels.shape[:2]:
            misfit = "{}x{} labels of an image of {}x{} pixels, height x width".format(
                *labels.ids.shape, *pixels.shape[:2]
            )
        return pixels, None if labels is None or misfit else labels.ids, misfit

    def _read_labels(self, path: Path) -> DecodedLabels:
        values = self._values_of(path.parent)
        most = self._rules.max_pixels
        labels = read_labels(_read_bytes(path, most), values, max_pixels=most)
        if self._choice is None:
            return labels
        return labels._replace(ids=self._choice.relabel(labels.ids))

    def _find_values(self, folder: Path) -> LabelValues:
        """Returns what values mean in a folder of labels.

        The first `classes.txt` in the folders above says it, or else that of the
        training data. Labels of datasets with fixed classes are class ids.

        Raises:
            SeglossError: if there is no such file, or it has other classes than the
                model.
        """
        names, ignore_label = self._rules.class_names, self._rules.ignore_label
        if self._choice is not None:
            names = self._choice.stored
        places = [*folder.parents, *self._training_root]
        above = next((path for path in places if (path / NAME).is_file()), None)
        if above is None:
            if self._has_own_values:
                raise SeglossError(
                    f"no {NAME} says what their values mean; copy that of the training "
                    "data to a folder above the labels"
                )
            return LabelValues.plain(len(names), ignore_label)
        found = read_classes(above, ignore_label)
        if changes := describe_changed_classes(names, found.names):
            raise SeglossError(
                f"{above / NAME} has other classes than the model: {changes}"
            )
        return found.values


def _read_bytes(path: Path, max_pixels: int) -> bytes:
    """Returns the content of a file.

    Raises:
        SeglossError: if it cannot be read; says why, without its name.
    """
    try:
        return read_file(path, max_pixels)
    except OSError as error:
        raise SeglossError(error.strerror or str(error)) from error
