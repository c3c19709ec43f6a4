"""Augmentation as one pure vmapped function of (key, images, labels, valid)."""

import functools

import dm_pix as pix
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer, Key, UInt8

# ImageNet's mean and deviation per channel, for images in [0, 1].
MEAN_RGB = (0.485, 0.456, 0.406)
STDDEV_RGB = (0.229, 0.224, 0.225)
# What lies beside an image: the mean colour, which normalises to (almost) nothing.
PAD_RGB = (124, 116, 104)


def normalize(
    images: UInt8[Array, "*b h w 3"] | Float[Array, "*b h w 3"],
) -> Float[Array, "*b h w 3"]:
    """Images as networks see them: ImageNet's mean taken off, over its deviation.

    Args:
        images: uint8 in [0, 255], or floats in [0, 1].
    """
    if images.dtype == jnp.uint8:
        images = images / jnp.float32(255)
    lead = (1,) * (images.ndim - 1)
    mean, stddev = (jnp.array(v).reshape(*lead, 3) for v in (MEAN_RGB, STDDEV_RGB))
    return (images - mean) / stddev


@functools.partial(
    jax.jit,
    static_argnames=(
        "crop_hw",
        "scale_range",
        "scales",
        "antialias",
        "flip_probability",
        "brightness",
        "contrast",
        "saturation",
    ),
)
def augment(
    keys: Key[Array, " b"],
    images: UInt8[Array, "b h w 3"],
    labels: Integer[Array, "b h w"],
    valid: Bool[Array, "b h w"],
    distances: Float[Array, "b h w c"] | None = None,
    *,
    crop_hw: tuple[int, int],
    scale_range: tuple[float, float] = (0.5, 1.5),
    scales: tuple[float | int, ...] | None = None,
    antialias: bool = True,
    flip_probability: float = 0.5,
    brightness: float = 0.1,
    contrast: float = 0.2,
    saturation: float = 0.2,
) -> (
    tuple[Float[Array, "b ch cw 3"], Integer[Array, "b ch cw"], Bool[Array, "b ch cw"]]
    | tuple[
        Float[Array, "b ch cw 3"],
        Integer[Array, "b ch cw"],
        Bool[Array, "b ch cw"],
        Float[Array, "b ch cw c"],
    ]
):
    """Random scale, crop, horizontal flip and colour, each sample by its own key.

    Args:
        keys: one key per sample, so that the result does not depend on how a batch is
            spread over devices.
        images: RGB in [0, 255]; only up to the last valid row and column is an image,
            what lies beyond is padding.
        labels: class ids.
        valid: True where a pixel counts.
        distances: signed distances to boundaries, in pixels, if there are any; they
            grow with the image, and what lies beyond the crop still counts.
        crop_hw: height and width of the crop, in pixels after scaling. A scaled image
            that is smaller lies at a random place in it.
        scale_range: smallest and largest factor of the size, drawn uniformly.
        scales: the only factors of the size, each as likely, in place of `scale_range`.
        antialias: whether an image is smoothed before it shrinks. False is bilinear
            interpolation of the nearest pixels alone, as OpenCV's `INTER_LINEAR` does.
        flip_probability: share of the samples that are mirrored.
        brightness: largest shift, in units of the full range.
        contrast: largest relative change around the image's mean.
        saturation: largest relative change of the colourfulness.

    Returns:
        Images in [0, 1], labels, valid and, where given, distances, each of `crop_hw`.

    Raises:
        ValueError: if a range is out of order or negative, there is no scale, or
            `antialias` is neither True nor False.
    """
    if not 0 < scale_range[0] <= scale_range[1]:
        raise ValueError(
            f"augment: scale_range must be 0 < low <= high, got {tuple(scale_range)}."
        )
    if scales is not None and not (scales and min(scales) > 0):
        raise ValueError(
            f"augment: scales must be > 0 and at least one, or None, got {scales}."
        )
    if not isinstance(antialias, bool):
        raise ValueError(f"augment: antialias must be True or False, got {antialias}.")
    if not 0 <= flip_probability <= 1:
        raise ValueError(
            f"augment: flip_probability must be in [0, 1], got {flip_probability}."
        )
    for name, value in dict(
        brightness=brightness, contrast=contrast, saturation=saturation
    ).items():
        if not 0 <= value < 1:
            raise ValueError(f"augment: {name} must be in [0, 1), got {value}.")

    low, high = scale_range

    def one(key, image, labels, valid, *distances):
        # One draw for all, because XLA takes a second to compile each on CPU.
        scale, *place, mirror, bright, contr, satur = jax.random.uniform(key, (7,))
        if scales is None:
            scale = low + (high - low) * scale
        else:
            # Clipped, because in float32 a draw just under 1 can reach the end.
            nth = jnp.floor(scale * len(scales)).astype(jnp.int32)
            scale = jnp.take(jnp.array(scales, jnp.float32), nth, mode="clip")
        image, labels, valid, *distances = _scale_and_crop(
            image,
            labels,
            valid,
            *distances,
            crop_hw=crop_hw,
            scale=scale,
            antialias=antialias,
            place=jnp.stack(place),
        )
        distances = [(x * scale).astype(x.dtype) for x in distances]
        image, *maps = (
            jnp.where(mirror < flip_probability, x[:, ::-1], x)
            for x in (image, labels, valid, *distances)
        )
        image = pix.adjust_brightness(image, brightness * (2 * bright - 1))
        image = pix.adjust_contrast(image, 1 + contrast * (2 * contr - 1))
        image = pix.adjust_saturation(image, 1 + saturation * (2 * satur - 1))
        return jnp.clip(image, 0, 1), *maps

    given = () if distances is None else (distances,)
    return jax.vmap(one)(keys, images, labels, valid, *given)


def _scale_and_crop(image, labels, valid, *distances, crop_hw, scale, antialias, place):
    """Crops a scaled image at `place`, 0 to 1 of the way from top left."""
    hw = jnp.array(valid.shape)
    # What the crop leaves out of the scaled image; negative where it shows more.
    slack = _extent(valid) * scale - jnp.array(crop_hw)
    offset = place * slack
    # The centre of output pixel i lies at (i + 0.5 + offset) / scale of the source.
    row, col = (
        jnp.floor((jnp.arange(n) + 0.5 + o) / scale).astype(jnp.int32)
        for n, o in zip(crop_hw, offset, strict=True)
    )
    inside = ((row >= 0) & (row < hw[0]))[:, None] & ((col >= 0) & (col < hw[1]))[None]
    nearest = functools.partial(jnp.take, mode="clip")
    labels, valid, *distances = (
        nearest(nearest(x, row, axis=0), col, axis=1)
        for x in (labels, valid, *distances)
    )
    image = jax.image.scale_and_translate(
        image.astype(jnp.float32),
        (*crop_hw, 3),
        spatial_dims=(0, 1),
        scale=jnp.stack([scale, scale]),
        translation=-offset,
        method="linear",
        antialias=antialias,
    )
    pad = jnp.array(PAD_RGB, jnp.float32).reshape(1, 1, 3)
    image = jnp.where(inside[..., None], image, pad) / 255
    return image, labels, valid & inside, *distances


def _extent(valid):
    """Rows and columns up to the last valid one, `[2]`; 1 where nothing is valid."""
    return jnp.stack(
        [
            jnp.max(jnp.where(valid.any(axis=1 - axis), jnp.arange(n) + 1, 1))
            for axis, n in enumerate(valid.shape)
        ]
    )
