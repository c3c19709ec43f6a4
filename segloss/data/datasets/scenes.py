"""Draws one scene: overlapping textured objects on a textured background.

All computations are float64 NumPy. Its random streams and rounding agree between the
supported NumPy versions, so scenes are bit-identical on all of them.
"""

import colorsys
import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8

VOID = 255
# Lengths below are in pixels for an image of this size, and scale with the image.
REFERENCE_SIDE_PX = 96

_PLACEMENTS = 12  # positions tried for an object; then the best of them is taken
_KEEP_VISIBLE = 0.6  # fraction of an object that must stay visible
_MAX_TILT = np.radians(35)

Number = float | int
Grid = Float[np.ndarray, "h w"]


@dataclasses.dataclass(frozen=True)
class Look:
    """Appearance of a class.

    Attributes:
        name: texture and shape in words.
        shape: `(m, n1, n2, n3)` of the superformula; see `_outline`.
        aspect: width divided by height.
        texture: key of `TEXTURES`.
        wavelength_px: period of the texture in pixels.
        colors: the two colours that the texture mixes, as `#rrggbb`.
    """

    name: str
    shape: tuple[Number, Number, Number, Number]
    aspect: float
    texture: str
    wavelength_px: Number
    colors: tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Part:
    """A class that a scene must show, and its share of the image's pixels."""

    class_id: int
    area_fraction: float


def draw_scene(
    rng: np.random.Generator,
    parts: Sequence[Part],
    looks: Sequence[Look],
    image_hw: tuple[int, int],
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
    """Draws one to three objects of each class in `parts`, large objects first.

    Args:
        rng: source of positions, angles, colours and light.
        parts: classes to show, with their areas.
        looks: appearance of class `k` is `looks[k - 1]`; 0 is the background.
        image_hw: height and width in pixels.

    Returns:
        The image and its labels; a border of 1 px around objects is labelled `VOID`.
    """
    unit = np.sqrt(image_hw[0] * image_hw[1]) / REFERENCE_SIDE_PX
    yx = np.mgrid[: image_hw[0], : image_hw[1]] + 0.5
    canvas = _draw_background(rng, yx, unit)
    owner = np.zeros(image_hw, np.int64)  # object visible at each pixel; 0 is none
    labels = np.zeros(image_hw, np.uint8)
    light = _direction(rng.uniform(0, 2 * np.pi))
    objects = [piece for part in parts for piece in _split(rng, part)]
    by_size = sorted(objects, key=lambda part: -part.area_fraction)
    for number, part in enumerate(by_size, start=1):
        look = looks[part.class_id - 1]
        body = _place(rng, look, part.area_fraction, yx, owner)
        _cast_shadow(canvas, body, unit)
        _paint(rng, canvas, body, look, light, unit)
        owner[body.depth > 0] = number
        labels[body.depth > 0] = part.class_id
    labels[_edges(owner)] = VOID
    return _develop(rng, canvas, yx), labels


# --- shapes ---------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Body:
    """A placed object: coordinates of all pixels relative to it."""

    u: Grid  # px along the object's axes, from its centre
    v: Grid
    depth: Grid  # distance inside the outline in px, negative outside
    angle: Grid
    radius_px: float


@functools.cache
def _outline(
    m: Number, n1: Number, n2: Number, n3: Number
) -> tuple[Float[np.ndarray, " t"], ...]:
    """Returns the angles, radii and slopes of points on a superformula outline.

    r = (|cos(m t / 4)|^n2 + |sin(m t / 4)|^n3)^(-1 / n1), Gielis 2003, eq. 3, scaled to
    the area of the unit circle. A slope is the norm of the gradient of `d - r(angle)`
    on the outline, where d is the distance from the centre.
    """
    angle = np.linspace(-np.pi, np.pi, 1441)
    turn = (angle - np.pi / 2) * m / 4  # points a symmetry axis upwards
    r = (np.abs(np.cos(turn)) ** n2 + np.abs(np.sin(turn)) ** n3) ** (-1 / n1)
    r /= np.sqrt(np.mean(r[1:] ** 2))
    return angle, r, np.hypot(1, np.gradient(r, angle) / r)


def _body(
    look: Look, center_yx: np.ndarray, radius_px: float, tilt: float, yx: np.ndarray
) -> _Body:
    dy, dx = yx - center_yx[:, None, None]
    u = dx * np.cos(tilt) + dy * np.sin(tilt)
    v = dy * np.cos(tilt) - dx * np.sin(tilt)
    stretch = np.sqrt(look.aspect)
    across, along = u / stretch, v * stretch
    angle = np.arctan2(along, across)
    angles, radii, slopes = _outline(*look.shape)
    depth = radius_px * np.interp(angle, angles, radii) - np.hypot(across, along)
    return _Body(u, v, depth / np.interp(angle, angles, slopes), angle, radius_px)


def _place(
    rng: np.random.Generator,
    look: Look,
    area_fraction: float,
    yx: np.ndarray,
    owner: np.ndarray,
) -> _Body:
    """Places an object at random, so that earlier objects stay visible.

    Takes the best of up to 12 positions. `yx` are the coordinates of all pixels, and
    `owner` the number of the object that is visible at each pixel, 0 for none.
    """
    hw = np.array(owner.shape, np.float64)
    target = area_fraction * hw.prod()
    before = np.bincount(owner.ravel())
    best, best_kept = None, -1.0
    for _ in range(_PLACEMENTS):
        radius = np.sqrt(target / np.pi)
        tilt = rng.uniform(-_MAX_TILT, _MAX_TILT)
        margin = np.minimum(0.8 * radius, hw / 2)
        center = rng.uniform(margin, hw - margin)
        body = _body(look, center, radius, tilt, yx)
        clipped = np.count_nonzero(body.depth > 0) / target
        if clipped < 0.97:  # cut by the frame: grow it to reach the requested area
            body = _body(look, center, radius / np.sqrt(clipped), tilt, yx)
        left = np.bincount(owner[body.depth <= 0], minlength=len(before))
        kept = np.min(left[1:] / before[1:], initial=1.0)
        if kept > best_kept:
            best, best_kept = body, kept
        if kept >= _KEEP_VISIBLE:
            break
    return best


def _split(rng: np.random.Generator, part: Part) -> list[Part]:
    """Splits the area of `part` among one to three objects of its class."""
    count = rng.choice((1, 2, 3), p=(0.65, 0.23, 0.12))
    sizes = rng.uniform(0.5, 1, count)
    areas = part.area_fraction * sizes / sizes.sum()
    return [Part(part.class_id, float(area)) for area in areas]


def _edges(owner: np.ndarray) -> Bool[np.ndarray, "h w"]:
    """Returns True on a 1 px line along one side of every boundary of an object.

    `owner` holds the number of the object at each pixel.
    """
    edge = np.zeros(owner.shape, bool)
    edge[:, :-1] |= owner[:, :-1] != owner[:, 1:]
    edge[:-1] |= owner[:-1] != owner[1:]
    return edge


# --- textures -------------------------------------------------------------------


def _wave(phase: Grid, sharpness: float = 1.5) -> Grid:
    """Returns bands in [0, 1] with soft edges; one period per unit of `phase`."""
    return np.clip(0.5 + sharpness * np.sin(2 * np.pi * phase), 0, 1)


def _bricks(u: Grid, v: Grid) -> Grid:
    row = np.floor(v + 0.5)
    mortar = np.minimum(np.abs((u / 2 + row / 2) % 1 - 0.5) * 2, np.abs(v % 1 - 0.5))
    return np.clip(6 * (mortar - 0.08), 0, 1)


# Each function maps the coordinates u, v on the object, in wavelengths, and the angle
# to a mixing ratio in [0, 1].
TEXTURES: dict[str, Callable[[Grid, Grid, Grid], Grid]] = {
    "bands": lambda u, v, a: _wave(v),
    "bricks": lambda u, v, a: _bricks(u, v),
    "checks": lambda u, v, a: np.clip(
        0.5 + 2 * np.sin(np.pi * u) * np.sin(np.pi * v), 0, 1
    ),
    "chevrons": lambda u, v, a: _wave(v + np.abs(u % 2 - 1)),
    "diagonals": lambda u, v, a: _wave((u + v) / np.sqrt(2)),
    "dots": lambda u, v, a: np.clip(
        1.2 * (np.cos(2 * np.pi * u) + np.cos(2 * np.pi * v)) - 0.4, 0, 1
    ),
    "glow": lambda u, v, a: np.clip(1.1 - np.hypot(u, v), 0, 1),
    "net": lambda u, v, a: np.clip(
        4 * np.minimum(np.abs((u + v) % 1 - 0.5), np.abs((u - v) % 1 - 0.5)) - 0.3,
        0,
        1,
    ),
    "plaid": lambda u, v, a: (_wave(u) + _wave(v)) / 2,
    "rays": lambda u, v, a: _wave(a * 8 / (2 * np.pi)),
    "rings": lambda u, v, a: _wave(np.hypot(u, v)),
    "ripples": lambda u, v, a: _wave(v + 0.3 * np.sin(2 * np.pi * u / 1.6)),
    "spiral": lambda u, v, a: _wave(np.hypot(u, v) + a * 2 / (2 * np.pi)),
    "stripes": lambda u, v, a: _wave(u),
}


def _value_noise(
    rng: np.random.Generator, yx: np.ndarray, wavelength_yx: tuple[float, float]
) -> Grid:
    """Returns a smooth random field in [0, 1].

    Features have about `wavelength_yx` px. `yx` holds the coordinates of all pixels.
    """
    y, x = (c / w for c, w in zip(yx, wavelength_yx, strict=True))
    knots = rng.random((int(y.max()) + 2, int(x.max()) + 2))
    j, i = y.astype(int), x.astype(int)
    fy, fx = (f * f * (3 - 2 * f) for f in (y - j, x - i))
    top = knots[j, i] * (1 - fx) + knots[j, i + 1] * fx
    bottom = knots[j + 1, i] * (1 - fx) + knots[j + 1, i + 1] * fx
    return top * (1 - fy) + bottom * fy


def _clouds(rng: np.random.Generator, yx: np.ndarray, unit: float) -> Grid:
    octaves = [_value_noise(rng, yx, (s * unit, s * unit)) for s in (48, 20, 8)]
    return np.tensordot((0.55, 0.3, 0.15), octaves, axes=1)


def _tiles(rng: np.random.Generator, yx: np.ndarray, unit: float) -> Grid:
    turn, size = rng.uniform(0, np.pi / 2), rng.uniform(14, 22) * unit
    y, x = yx / size
    u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    checks = np.clip(0.5 + 4 * np.sin(np.pi * u) * np.sin(np.pi * v), 0, 1)
    return 0.3 + 0.25 * checks + 0.3 * _clouds(rng, yx, unit)


def _grain(rng: np.random.Generator, yx: np.ndarray, unit: float) -> Grid:
    bend = _value_noise(rng, yx, (40 * unit, 40 * unit))
    y, x = yx / (rng.uniform(9, 13) * unit)
    fine = _value_noise(rng, yx, (1.6 * unit, 18 * unit))
    return 0.55 * (0.5 + 0.5 * np.sin(2 * np.pi * (y + 0.15 * x + 2.5 * bend))) + (
        0.45 * fine
    )


def _meadow(rng: np.random.Generator, yx: np.ndarray, unit: float) -> Grid:
    blades = _value_noise(rng, yx, (6 * unit, 1.8 * unit))
    return 0.55 * blades + 0.45 * _clouds(rng, yx, unit)


def _ramp(rng: np.random.Generator, yx: np.ndarray, unit: float) -> Grid:
    way = _direction(rng.uniform(0, 2 * np.pi))
    along = np.tensordot(way, yx / yx.max() - 0.5, axes=1)
    return np.clip(0.5 + 0.7 * along, 0, 1) * 0.85 + 0.15 * _clouds(rng, yx, unit)


def _sand(rng: np.random.Generator, yx: np.ndarray, unit: float) -> Grid:
    grains = _value_noise(rng, yx, (2.2 * unit, 2.2 * unit))
    return 0.45 * grains + 0.55 * _value_noise(rng, yx, (30 * unit, 30 * unit))


BACKGROUNDS = (_clouds, _tiles, _grain, _meadow, _ramp, _sand)


# --- paint ----------------------------------------------------------------------


def _direction(angle: float) -> Float[np.ndarray, "2"]:
    return np.array([np.sin(angle), np.cos(angle)])


def _rgb(hsv: tuple[float, float, float]) -> Float[np.ndarray, "3"]:
    hue, saturation, value = hsv
    return np.array(
        colorsys.hsv_to_rgb(hue % 1, np.clip(saturation, 0, 1), np.clip(value, 0, 1))
    )


def _tint(color: str, hue: float, saturation: float, value: float) -> np.ndarray:
    """Returns the RGB of `#rrggbb`, its hue shifted, saturation and value scaled."""
    rgb = bytes.fromhex(color.removeprefix("#"))
    h, s, v = colorsys.rgb_to_hsv(*(channel / 255 for channel in rgb))
    return _rgb((h + hue, s * saturation, v * value))


def _mix(ratio: Grid, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return first + ratio[..., None] * (second - first)


def _draw_background(
    rng: np.random.Generator, yx: np.ndarray, unit: float
) -> Float[np.ndarray, "h w 3"]:
    kind = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    hue, value = rng.random(), rng.uniform(0.45, 0.8)
    dark = _rgb((hue, rng.uniform(0.08, 0.4), value * 0.72))
    bright = _rgb((hue + rng.uniform(-0.1, 0.1), rng.uniform(0.05, 0.35), value * 1.2))
    return _mix(kind(rng, yx, unit), dark, bright)


def _cast_shadow(canvas: np.ndarray, body: _Body, unit: float) -> None:
    """Darkens `canvas` in place, under the object and up to about 5 px around it."""
    reach = np.clip(1 + body.depth / (5 * unit), 0, 1)
    canvas *= 1 - 0.35 * (reach * reach)[..., None]


def _paint(
    rng: np.random.Generator,
    canvas: np.ndarray,
    body: _Body,
    look: Look,
    light: np.ndarray,
    unit: float,
) -> None:
    """Draws the textured, shaded object onto `canvas` in place; smooths its outline."""
    if look.texture == "glow":  # runs once from the centre to the outline
        wavelength = 1.3 * body.radius_px
    else:
        wavelength = look.wavelength_px * unit * rng.uniform(0.85, 1.2)
    shift = rng.random(2) if look.texture not in _CENTRED else np.zeros(2)
    ratio = TEXTURES[look.texture](
        body.u / wavelength + shift[0], body.v / wavelength + shift[1], body.angle
    )
    jitter = rng.uniform([-0.02, 0.88, 0.88], [0.02, 1.08, 1.06])
    first, second = (_tint(color, *jitter) for color in look.colors)
    color = _mix(ratio, first, second)
    across = (light[0] * body.v + light[1] * body.u) / body.radius_px
    rim = np.clip(body.depth / (2.5 * unit), 0, 1)
    shade = np.clip(1 + 0.16 * across, 0.75, 1.2) * (0.68 + 0.32 * rim)
    alpha = np.clip(0.5 + body.depth, 0, 1)[..., None]
    canvas += alpha * (color * shade[..., None] - canvas)


_CENTRED = {"glow", "rays", "rings", "spiral"}


def _develop(
    rng: np.random.Generator, canvas: np.ndarray, yx: np.ndarray
) -> UInt8[np.ndarray, "h w 3"]:
    """Applies scene lighting and sensor noise, and converts to 8 bits."""
    way = _direction(rng.uniform(0, 2 * np.pi))
    light = 1 + 0.12 * np.tensordot(way, yx / yx.max() - 0.5, axes=1)
    cast = rng.uniform(0.95, 1.05, 3) * rng.uniform(0.88, 1.1)
    noise = rng.normal(0, rng.uniform(0.006, 0.018), canvas.shape)
    exposed = canvas * light[..., None] * cast + noise
    return np.clip(np.floor(exposed * 255 + 0.5), 0, 255).astype(np.uint8)
