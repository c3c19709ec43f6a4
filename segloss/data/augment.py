"""Data augmentation on the device: one pure, vmapped and jitted function."""

import functools

import dm_pix as pix
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer, Key, Real

from segloss.data.bands import RGB, Bands
from segloss.data.colours import MEAN_RGB, STDDEV_RGB
from segloss.data.loading.window import SCALE_ONE, Window, nearest_source
from segloss.errors import SeglossError


def normalize(
    images: Real[Array, "*b h w n"], bands: Bands = RGB
) -> Float[Array, "*b h w n"]:
    """Normalises images: subtracts the mean of each band and divides by its deviation.

    Args:
        images: stored values, or what `augment` returns: for RGB, uint8 in [0, 255] or
            floats in [0, 1]; for other bands, numbers in units of the stored values.
        bands: mean and deviation; those of ImageNet for RGB.

    >>> import jax.numpy as jnp
    >>> white = normalize(jnp.full((1, 1, 3), 255, jnp.uint8))
    >>> [f"{channel:.3f}" for channel in white[0, 0]]
    ['2.249', '2.429', '2.640']
    """
    statistics = bands.mean, bands.deviation
    if bands.is_rgb:
        statistics = MEAN_RGB, STDDEV_RGB
        if images.dtype == jnp.uint8:
            images = images / jnp.float32(255)
    lead = (1,) * (images.ndim - 1)
    mean, stddev = (
        jnp.array(v, jnp.float32).reshape(*lead, bands.num_bands) for v in statistics
    )
    return (images - mean) / stddev


@functools.partial(
    jax.jit,
    static_argnames=(
        "crop_hw",
        "antialias",
        "flip_probability",
        "brightness",
        "contrast",
        "saturation",
        "bands",
    ),
)
def augment(
    keys: Key[Array, " b"],
    images: Real[Array, "b h w n"],
    labels: Integer[Array, "b h w"],
    valid: Bool[Array, "b h w"],
    window: Window | None = None,
    distances: Float[Array, "b h w c"] | None = None,
    *,
    crop_hw: tuple[int, int] | None = None,
    antialias: bool | int = True,
    flip_probability: float = 0.5,
    brightness: float = 0.1,
    contrast: float = 0.2,
    saturation: float = 0.2,
    bands: Bands = RGB,
) -> (
    tuple[Float[Array, "b ch cw n"], Integer[Array, "b ch cw"], Bool[Array, "b ch cw"]]
    | tuple[
        Float[Array, "b ch cw n"],
        Integer[Array, "b ch cw"],
        Bool[Array, "b ch cw"],
        Float[Array, "b ch cw c"],
    ]
):
    """Scales and crops images as `window` says, and flips and recolours them at random.

    Args:
        keys: one PRNG key per sample, so the result does not depend on how the batch is
            split among devices.
        images: stored values: RGB in [0, 255], or other bands.
        labels: class ids.
        valid: True where a pixel counts.
        window: the scale and crop of each sample, and the part of its image that the
            arrays hold, as drawn by `Windows`; `scale` is `[b]`, the other fields are
            `[b, 2]`. What a crop shows beyond the image is padded and not valid. None
            neither scales nor crops.
        distances: signed distances to class boundaries in pixels (see
            `signed_distances`), or None. They are multiplied by the scale; boundaries
            outside the crop still count.
        crop_hw: height and width of the crop, in pixels after scaling; needed with
            `window`.
        antialias: True smooths an image before it is reduced. False interpolates
            bilinearly between the nearest pixels, as OpenCV's `INTER_LINEAR` does.
        flip_probability: probability of a horizontal flip.
        brightness: largest shift, in [0, 1): a fraction of the full range of RGB, or of
            the deviation of each other band.
        contrast: largest relative change around the image's mean, in [0, 1).
        saturation: largest relative change of the saturation, in [0, 1); only of RGB.
        bands: the bands of the images.

    Returns:
        Images (RGB in [0, 1], other bands in units of the stored values), labels, valid
        and, if given, distances. Their height and width are `crop_hw`, or those of the
        input without `window`.

    Raises:
        ValueError: if a hyperparameter is out of range, or `antialias` is neither True
            nor False.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from segloss.data import Window
    >>> keys = jax.random.split(jax.random.key(0), 2)
    >>> labels = jnp.zeros((2, 8, 8), jnp.uint8)
    >>> images = jnp.zeros((2, 8, 8, 3), jnp.uint8)
    >>> corner, hw = jnp.zeros((2, 2), jnp.int32), jnp.full((2, 2), 8)
    >>> window = Window(scale=jnp.full(2, 4096), offset=corner, start=corner, hw=hw)
    >>> batch = augment(keys, images, labels, labels < 9, window, crop_hw=(4, 4))
    >>> [array.shape for array in batch]  # images, labels, valid
    [(2, 4, 4, 3), (2, 4, 4), (2, 4, 4)]
    """
    if not isinstance(antialias, bool):
        raise SeglossError(
            f"augment: antialias must be True or False, got {antialias}."
        )
    if not 0 <= flip_probability <= 1:
        raise SeglossError(
            f"augment: flip_probability must be in [0, 1], got {flip_probability}."
        )
    for name, value in dict(
        brightness=brightness, contrast=contrast, saturation=saturation
    ).items():
        if not 0 <= value < 1:
            raise SeglossError(f"augment: {name} must be in [0, 1), got {value}.")

    def one(key, image, labels, valid, window, distances):
        # A single draw of four numbers, since XLA:CPU takes a second to compile a draw.
        mirror, bright, contr, satur = jax.random.uniform(key, (4,))
        maps = labels, valid, distances
        image = image.astype(jnp.float32)
        if window is not None:
            image, maps = _scale_and_crop(
                image,
                maps,
                window,
                crop_hw=crop_hw,
                antialias=antialias,
                pad=bands.pad,
            )
        image, *maps = jax.tree.map(
            lambda x: jnp.where(mirror < flip_probability, x[:, ::-1], x),
            (image / bands.unit, *maps),
        )
        if not bands.is_rgb:
            deviation = jnp.array(bands.deviation, jnp.float32).reshape(1, 1, -1)
            image += brightness * (2 * bright - 1) * deviation
            mean = image.mean(axis=(0, 1), keepdims=True)
            return mean + (1 + contrast * (2 * contr - 1)) * (image - mean), *maps
        image = pix.adjust_brightness(image, brightness * (2 * bright - 1))
        image = pix.adjust_contrast(image, 1 + contrast * (2 * contr - 1))
        image = pix.adjust_saturation(image, 1 + saturation * (2 * satur - 1))
        return jnp.clip(image, 0, 1), *maps

    image, *maps, distances = jax.vmap(one)(
        keys, images, labels, valid, window, distances
    )
    return image, *maps, *(() if distances is None else (distances,))


def _scale_and_crop(image, maps, window, *, crop_hw, antialias, pad):
    """Scales and crops one image, and its `maps`: labels, valid and distances.

    Pixels outside the image get the value `pad` of each band, and False in `valid`.
    """
    scale = window.scale / SCALE_ONE
    # The rows and columns of the arrays that the crop shows.
    row, col = (
        nearest_source(jnp.arange(n) + offset, window.scale) - start
        for n, offset, start in zip(crop_hw, window.offset, window.start, strict=True)
    )
    inside = ((row >= 0) & (row < window.hw[0]))[:, None]
    inside &= ((col >= 0) & (col < window.hw[1]))[None]
    nearest = functools.partial(jnp.take, mode="clip")
    labels, valid, distances = jax.tree.map(
        lambda x: nearest(nearest(x, row, axis=0), col, axis=1), maps
    )
    if distances is not None:
        distances = (distances * scale).astype(distances.dtype)
    image = jax.image.scale_and_translate(
        image,
        (*crop_hw, image.shape[-1]),
        spatial_dims=(0, 1),
        scale=jnp.stack([scale, scale]),
        translation=window.start * scale - window.offset,
        method="linear",
        antialias=antialias,
    )
    pad = jnp.array(pad, jnp.float32).reshape(1, 1, -1)
    image = jnp.where(inside[..., None], image, pad)
    return image, (labels, valid & inside, distances)
