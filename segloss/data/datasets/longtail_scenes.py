"""The embedded dataset: synthetic scenes that segloss draws itself.

Their class statistics are those of PASCAL VOC 2012.
"""

import dataclasses
import functools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from segloss.data.datasets.builder import (
    Sample,
    SegmentationBuilder,
    SegmentationConfig,
    Shard,
    encode_png,
)
from segloss.data.datasets.scenes import VOID, Look, Part, draw_scene
from segloss.errors import SeglossError

# Same order as the statistics below.
LOOKS = (
    Look("striped star", (5, 2, 7, 7), 1.0, "stripes", 7, ("#3d9bf2", "#e1ebfa")),
    Look("ringed wheel", (0, 1, 1, 1), 1.0, "rings", 8, ("#262424", "#e62e2e")),
    Look("veined leaf", (2, 1, 1.2, 1.2), 0.8, "diagonals", 6, ("#2b990f", "#b2e645")),
    Look("checked kite", (4, 1.2, 1.2, 1.2), 1.0, "checks", 7, ("#1c3b8c", "#fad13e")),
    Look("banded jar", (4, 9, 9, 9), 0.55, "bands", 8, ("#0b7360", "#95e6cd")),
    Look("brick block", (4, 30, 30, 30), 1.6, "bricks", 9, ("#d99b8d", "#b22d1b")),
    Look("dotted gem", (6, 60, 55, 55), 1.3, "dots", 8, ("#0f7099", "#ffdc26")),
    Look("netted clover", (4, 2, 4.5, 4.5), 1.0, "net", 9, ("#4f2459", "#d177d9")),
    Look("plaid shield", (3, 6, 7, 7), 1.0, "plaid", 11, ("#bf1d3a", "#f2dab6")),
    Look("spotted egg", (0, 1, 1, 1), 1.3, "dots", 11, ("#f2dfce", "#4c2a17")),
    Look("rayed coin", (12, 12, 8, 8), 1.0, "rays", 8, ("#a67c11", "#ffed4d")),
    Look("chevron arrow", (3, 5, 14, 14), 1.0, "chevrons", 9, ("#f2880c", "#592b09")),
    Look("rippled pond", (0, 1, 1, 1), 1.7, "ripples", 8, ("#61d8f2", "#1b2ab2")),
    Look("cross-cut gear", (10, 3, 6, 6), 1.0, "checks", 11, ("#595959", "#cccccc")),
    Look("glowing pillar", (4, 7, 6, 6), 0.6, "glow", 1, ("#d93698", "#ffd480")),
    Look("spiral flower", (7, 2, 4, 4), 1.0, "spiral", 10, ("#198024", "#ff80b5")),
    Look("woolly cloud", (9, 2, 3, 3), 1.4, "ripples", 5, ("#faf8eb", "#b2a898")),
    Look("quilted cushion", (4, 1, 3, 3), 1.2, "net", 13, ("#71732e", "#d9d68d")),
    Look("striped beam", (4, 40, 40, 40), 2.4, "diagonals", 10, ("#fad40c", "#262626")),
    Look("glowing tile", (4, 40, 40, 40), 1.2, "glow", 1, ("#053333", "#4dffa9")),
)

# Statistics of the 10,582 images of VOC 2012 train_aug (Hariharan et al. 2011), counted
# from all labels of SegmentationClassAug: the number of images with each class, and the
# class's percentage of the labelled pixels; aeroplane, bicycle, ... in VOC's order.
VOC_IMAGES = 10_582
VOC_IMAGES_WITH_CLASS = (
    *(586, 486, 698, 461, 654, 385, 1086, 1000, 1081, 264),
    *(528, 1177, 444, 482, 3898, 487, 299, 491, 500, 548),
)
VOC_PIXEL_PERCENT = (
    *(0.921, 0.831, 0.890, 0.672, 0.522, 1.227, 1.996, 3.265, 1.316, 0.557),
    *(1.059, 2.913, 0.913, 1.185, 7.777, 0.629, 0.614, 1.210, 1.327, 0.784),
)

CLASS_NAMES = ("background", *(look.name for look in LOOKS))

_SPLITS = ("train", "val")  # the position is part of the seed
_MIN_SIDE_PX = 32
# Objects hide each other and lose pixels to void borders. They are drawn larger by this
# factor, so that their visible pixels match VOC's shares.
_AREA_GAIN = 1.14
_MAX_AREA_FRACTION = 0.62  # of one object
_MAX_FILL = 0.8  # of all objects of one image


@dataclasses.dataclass(eq=False, kw_only=True)
class LongtailScenesConfig(SegmentationConfig):
    """Configuration of `longtail_scenes`; `name` contains all values below.

    Attributes:
        split_sizes: number of images of each split.
        image_hw: height and width of every image in pixels.
        seed: seed of all random draws.
    """

    split_sizes: Mapping[str, int]
    image_hw: tuple[int, int]
    seed: int


class LongtailScenes(SegmentationBuilder, skip_registration=True):
    """TFDS builder of synthetic scenes; sample `i` depends on config, split and i."""

    VERSION = tfds.core.Version("1.0.0")  # increase it if any pixel changes

    def shards(self) -> dict[str, list[Shard]]:
        config = self.builder_config
        return {
            split: [Shard(size, functools.partial(draw_split, config, split))]
            for split, size in config.split_sizes.items()
        }


def longtail_scenes(
    *,
    train: int = 600,
    val: int = 100,
    image_hw: Sequence[int] = (96, 96),
    seed: int = 0,
    data_dir: str | PathLike[str] | None = None,
) -> LongtailScenes:
    """Makes the TFDS builder of synthetic scenes with 20 classes of objects.

    Each class is as frequent as one of the 20 classes of VOC 2012. If that class is in
    the fraction `share` of VOC's train_aug images, it is in `round(share * n)` of the
    `n` images of a split, but in at least 1 image of train and 2 of val. The shares of
    pixels follow VOC's as well.

    Args:
        train: number of training images.
        val: number of validation images.
        image_hw: height and width of all images in pixels, each at least 32.
        seed: seed of all random draws, at least 0.
        data_dir: folder where prepared datasets are stored; None is TFDS's default.

    Raises:
        ValueError: if a size or the seed is out of range.
    """
    if len(image_hw) != 2:
        raise SeglossError(
            f"longtail_scenes: image_hw must be (height, width), got {image_hw}."
        )
    checks = [("train", train, 1), ("val", val, 1), ("seed", seed, 0)]
    checks += [("image_hw", side, _MIN_SIDE_PX) for side in image_hw]
    for argument, value, least in checks:
        if value < least:
            raise SeglossError(
                f"longtail_scenes: {argument} must be >= {least}, got {value}."
            )
    height, width = image_hw
    return LongtailScenes(
        data_dir=data_dir,
        config=LongtailScenesConfig(
            name=f"{train}_{val}_{height}x{width}_seed{seed}",
            class_names=CLASS_NAMES,
            ignore_label=VOID,
            split_sizes={"train": train, "val": val},
            image_hw=(height, width),
            seed=seed,
        ),
    )


def draw_split(config: LongtailScenesConfig, split: str) -> Iterator[Sample]:
    """Draws the samples of one split, one after the other, and encodes them as PNG."""
    split_seed = (config.seed, _SPLITS.index(split))
    # 0 seeds the plan; the images start at 1. NumPy ignores a trailing 0 in a seed.
    plan = plan_split(
        np.random.default_rng((*split_seed, 0)),
        config.split_sizes[split],
        min_images=1 if split == "train" else 2,
    )
    for i, parts in enumerate(plan):
        rng = np.random.default_rng((*split_seed, i + 1))
        image, labels = draw_scene(rng, parts, LOOKS, config.image_hw)
        yield Sample(
            stem=f"{split}_{i:05d}",
            image=encode_png(Image.fromarray(image)),
            labels=encode_png(Image.fromarray(labels)),
            hw=config.image_hw,
        )


def plan_split(
    rng: np.random.Generator, num_images: int, *, min_images: int
) -> list[list[Part]]:
    """Chooses the classes of each image and the area of each class.

    The number of images with a class is VOC's share, but at least `min_images`.

    Args:
        rng: source of randomness.
        num_images: number of images; each gets at least one class.
        min_images: smallest number of images with each class.

    Returns:
        For each image, its classes with their areas; a class occurs at most once.
    """
    dealt = []
    for class_id, (images, percent) in enumerate(
        zip(VOC_IMAGES_WITH_CLASS, VOC_PIXEL_PERCENT, strict=True), start=1
    ):
        share = images / VOC_IMAGES
        slots = min(max(round(share * num_images), min_images), num_images)
        areas = percent / 100 / share * _AREA_GAIN * _area_factors(rng, slots)
        dealt += [Part(class_id, min(area, _MAX_AREA_FRACTION)) for area in areas]
    plan: list[list[Part]] = [[] for _ in range(num_images)]
    for turn, k in enumerate(rng.permutation(len(dealt))):
        i = turn if turn < num_images else _choose_image(rng, plan, dealt[k])
        plan[i].append(dealt[k])
    return [_fit(parts) for parts in plan]


def _area_factors(rng: np.random.Generator, count: int) -> np.ndarray:
    """Returns `count` quantiles of a clipped log-normal, shuffled, with a mean of 1."""
    normal = statistics.NormalDist(sigma=0.45)
    quantiles = [normal.inv_cdf((k + 0.5) / count) for k in range(count)]
    factors = np.clip(np.exp(quantiles), 0.35, 1.9)
    return rng.permutation(factors / factors.mean())


def _choose_image(
    rng: np.random.Generator, plan: Sequence[Sequence[Part]], part: Part
) -> int:
    """Returns the index of the image in `plan` to which `part` is added.

    It is a random one without the class and with room; else the emptiest without it.
    """

    def holds(parts: Sequence[Part]) -> bool:
        return any(p.class_id == part.class_id for p in parts)

    lacking = [i for i, parts in enumerate(plan) if not holds(parts)]
    fill = {i: sum(p.area_fraction for p in plan[i]) for i in lacking}
    roomy = [i for i in lacking if fill[i] + part.area_fraction <= _MAX_FILL]
    return int(rng.choice(roomy)) if roomy else min(lacking, key=fill.__getitem__)


def _fit(parts: Sequence[Part]) -> list[Part]:
    """Scales the areas of an image down if their sum exceeds `_MAX_FILL`."""
    shrink = min(1.0, _MAX_FILL / sum(part.area_fraction for part in parts))
    return [Part(p.class_id, p.area_fraction * shrink) for p in parts]
