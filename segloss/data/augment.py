"""Data augmentation on the device: one pure, vmapped and jitted function."""

import functools

import dm_pix as pix
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer, Key, UInt8

from segloss.data.colours import MEAN_RGB, PAD_RGB, STDDEV_RGB


def normalize(
    images: UInt8[Array, "*b h w 3"] | Float[Array, "*b h w 3"],
) -> Float[Array, "*b h w 3"]:
    """Normalises RGB images: subtracts ImageNet's mean and divides by its deviation.

    Args:
        images: uint8 in [0, 255], or floats in [0, 1].

    >>> import jax.numpy as jnp
    >>> white = normalize(jnp.full((1, 1, 3), 255, jnp.uint8))
    >>> [f"{channel:.3f}" for channel in white[0, 0]]
    ['2.249', '2.429', '2.640']
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
    """Applies random scaling, cropping, horizontal flips and colour changes.

    Args:
        keys: one PRNG key per sample, so the result does not depend on how the batch is
            split among devices.
        images: RGB in [0, 255]. Rows and columns after the last valid one are padding.
        labels: class ids.
        valid: True where a pixel counts.
        distances: signed distances to class boundaries in pixels, or None. They are
            scaled with the image, and still refer to boundaries outside the crop.
        crop_hw: height and width of the crop, in pixels after scaling. A scaled image
            that is smaller is placed at a random position in it.
        scale_range: smallest and largest scale factor; factors are drawn uniformly.
        scales: scale factors to choose from with equal probability, instead of
            `scale_range`.
        antialias: True smooths an image before it is reduced. False interpolates
            bilinearly between the nearest pixels, as OpenCV's `INTER_LINEAR` does.
        flip_probability: probability of a horizontal flip.
        brightness: largest shift, as a fraction of the full range, in [0, 1).
        contrast: largest relative change around the image's mean, in [0, 1).
        saturation: largest relative change of the saturation, in [0, 1).

    Returns:
        Images in [0, 1], labels, valid and, if given, distances, all cropped to
        `crop_hw`.

    Raises:
        ValueError: if a range is out of order or negative, `scales` is empty, or
            `antialias` is neither True nor False.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> keys = jax.random.split(jax.random.key(0), 2)
    >>> labels = jnp.zeros((2, 8, 8), jnp.uint8)
    >>> images = jnp.zeros((2, 8, 8, 3), jnp.uint8)
    >>> batch = augment(keys, images, labels, labels < 9, crop_hw=(4, 4))
    >>> [array.shape for array in batch]  # images, labels, valid
    [(2, 4, 4, 3), (2, 4, 4), (2, 4, 4)]
    """
    if not 0 < scale_range[0] <= scale_range[1]:
        raise ValueError(
            f"augment: scale_range must be 0 < low <= high, got {tuple(scale_range)}."
        )
    if scales is not None and not (scales and min(scales) > 0):
        raise ValueError(
            f"augment: scales must be one or more numbers > 0, or None, got {scales}."
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
        # A single draw, since XLA:CPU takes a second to compile each.
        scale, *place, mirror, bright, contr, satur = jax.random.uniform(key, (7,))
        if scales is None:
            scale = low + (high - low) * scale
        else:
            # Clipped: in float32 a draw just below 1 can round up to len(scales).
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
    """Scales and crops; `place` in [0, 1] moves the crop from top left to the end."""
    hw = jnp.array(valid.shape)
    # Scaled size minus crop size; negative if the crop is larger.
    slack = _extent(valid) * scale - jnp.array(crop_hw)
    offset = place * slack
    # Output pixel i has its centre at (i + 0.5 + offset) / scale in the source.
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
    """Number of rows and columns up to the last valid one, `[2]`, at least 1."""
    return jnp.stack(
        [
            jnp.max(jnp.where(valid.any(axis=1 - axis), jnp.arange(n) + 1, 1))
            for axis, n in enumerate(valid.shape)
        ]
    )
