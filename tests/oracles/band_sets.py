"""Small datasets of images of any bands and of any number of classes."""

import dataclasses
import functools

import numpy as np
from PIL import Image

from segloss.data.bands import label_dtype
from segloss.data.datasets import dataset
from segloss.data.datasets.builder import (
    Sample,
    SegmentationBuilder,
    SegmentationConfig,
    Shard,
    encode_png,
)

SIZES = {"train": 6, "val": 3}


def draw(num_bands, dtype, num_classes, ignore_label, split, i, repeats=1):
    """One image and its labels: squares of 8 pixels, one class each, the first void.

    Each class has a value in each band, far from 0 and with little noise. In floats,
    one value is NaN, and the last band is constant. The image and its labels are
    repeated downwards.
    """
    rng = np.random.default_rng([i, split == "train"])
    rows, columns = (4, 6) if i % 2 else (5, 5)
    classes = 2 * (np.arange(rows * columns) + rows * columns * i) % num_classes
    labels = np.kron(classes.reshape(rows, columns), np.ones((8, 8), int))
    levels = np.random.default_rng(0).permuted(
        np.tile(np.arange(num_classes), (num_bands, 1)), axis=1
    )
    scale = 200 / num_classes if dtype == "uint8" else 300
    image = scale * levels.T[labels] + 0.1 * scale * rng.normal(
        size=(*labels.shape, num_bands)
    )
    if dtype == "float32":
        image = image / 1e4 - 0.5
        image[..., -1] = 0.1
        image[0, 0, 0] = np.nan
    elif dtype != "uint8":
        image += 20_000
    else:
        image = image.clip(0, 255)
    labels[:8, :8] = ignore_label
    labels = labels.astype(label_dtype(num_classes, ignore_label))
    return tuple(
        np.tile(x, (repeats, 1, 1)[: x.ndim]) for x in (image.astype(dtype), labels)
    )


@dataclasses.dataclass(eq=False, kw_only=True)
class BandSetConfig(SegmentationConfig):
    repeats: int


class BandSet(SegmentationBuilder, skip_registration=True):
    def shards(self):
        return {
            split: [Shard(size, functools.partial(self.read, split, size))]
            for split, size in SIZES.items()
        }

    def read(self, split, size):
        config = self.builder_config
        chosen = config.num_bands, config.image_dtype, len(config.class_names)
        for i in range(size):
            image, labels = draw(*chosen, config.ignore_label, split, i, config.repeats)
            stored = encode_png(Image.fromarray(image)) if config.is_rgb else image
            png = encode_png(Image.fromarray(labels))
            yield Sample(f"{split}_{i}", stored, png, labels.shape)


def band_set(
    *,
    num_bands=3,
    dtype="uint8",
    num_classes=3,
    ignore_label=255,
    repeats=1,
    data_dir=None,
):
    config = BandSetConfig(
        name=f"{num_bands}_{dtype}_{num_classes}_{ignore_label}_{repeats}",
        repeats=repeats,
        class_names=tuple(f"class{c}" for c in range(num_classes)),
        ignore_label=ignore_label,
        num_bands=num_bands,
        image_dtype=dtype,
    )
    return BandSet(data_dir=data_dir, config=config)


def register(monkeypatch):
    """Makes "bands" the name of `band_set` for as long as the test runs."""
    monkeypatch.setitem(dataset.DATASETS, "bands", band_set)
