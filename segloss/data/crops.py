"""Counts which classes of a batch remain after random scaling and cropping."""

import dataclasses
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Bool, Int64

from segloss.data.class_index import LabelSource
from segloss.data.loading.pipeline import OwingSampler
from segloss.data.loading.windows import Windows


@dataclasses.dataclass(frozen=True, eq=False)
class CropCounts:
    """The classes in the images and in the crops of k batches.

    "Enough" is at least `Windows.min_pixels` in one image or crop.

    Attributes:
        in_images: True where an image of a batch has enough pixels of a class.
        in_crops: True where a crop of a batch has enough pixels of a class.
        crop_pixels: number of pixels of each class in all crops.
        images: number of images in all batches.
        tries: mean number of windows drawn per image to find one that is accepted.
    """

    in_images: Bool[np.ndarray, "k c"]
    in_crops: Bool[np.ndarray, "k c"]
    crop_pixels: Int64[np.ndarray, " c"]
    images: int
    tries: float

    def share_with(self, batch_cl: int, *, first_class: int = 0) -> float:
        """Returns the share of the batches with enough distinct classes in the crops.

        Args:
            batch_cl: least number of distinct classes.
            first_class: 0 counts all classes; 1 leaves out class 0, the background.
        """
        classes = self.in_crops[:, first_class:].sum(axis=1)
        return float((classes >= batch_cl).mean())


def count_in_crops(
    source: LabelSource,
    sampler: OwingSampler,
    windows: Windows,
    batches: Iterable[int],
    *,
    num_classes: int,
    ignore_label: int,
) -> CropCounts:
    """Counts the classes in the images and crops that training would use.

    Only labels are decoded. A batch has a class if one of its images or crops has at
    least `windows.min_pixels` pixels of the class.

    Args:
        source: samples; only their labels are used.
        sampler: chooses the samples of a batch, and the classes that crops keep.
        windows: draws the crops, as in training.
        batches: indices of the batches to examine; at least one.
        num_classes: class ids are in `[0, num_classes)`.
        ignore_label: label of pixels that do not count.
    """

    def count(labels: np.ndarray) -> np.ndarray:
        counts = np.bincount(
            labels.ravel(), minlength=max(ignore_label + 1, num_classes)
        )
        counts[ignore_label] = 0
        return counts[:num_classes]

    def count_batch(k: int) -> tuple[list[np.ndarray], list[np.ndarray], list[int]]:
        images, crops, tries = [], [], []
        for row, (i, owed) in enumerate(zip(sampler[k], sampler.owed(k), strict=True)):
            labels = source[int(i)]["labels"]
            window, drawn = windows.draw(labels, owed, batch=k, row=row)
            images.append(count(labels))
            crops.append(count(windows.crop(labels, window)))
            tries.append(drawn)
        return images, crops, tries

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        images, crops, tries = zip(*pool.map(count_batch, batches), strict=True)

    def held(counts: Iterable[list[np.ndarray]]) -> Bool[np.ndarray, "k c"]:
        return np.stack([np.max(x, axis=0) >= windows.min_pixels for x in counts])

    drawn = np.concatenate(tries)
    return CropCounts(
        in_images=held(images),
        in_crops=held(crops),
        crop_pixels=np.concatenate(crops).sum(axis=0, dtype=np.int64),
        images=len(drawn),
        tries=float(drawn.mean()),
    )
