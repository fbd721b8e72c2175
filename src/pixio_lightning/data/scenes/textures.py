"""Procedural surface patterns that never alias.

A pattern maps surface coordinates to a mix of two colours. Every pattern is band-limited: it is
told how large the pixel is on the surface and returns the mean over that pixel (square waves, in
closed form) or drops the octaves that the pixel cannot resolve (noise). Far surfaces fade to
their mean colour, so texture needs no supersampling.

Coordinates are metres divided by `Material.scale`; arrays have one entry per ray, `(N,)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Pattern = Callable[[Array, Array, Array, Array], Array]

# One fixed lattice of values in [-1, 1) for all noise; a material's `shift` picks its place in it.
_LATTICE = np.random.Generator(np.random.PCG64(0)).random((256, 256)) * 2 - 1


def square_wave(x: Array, width: Array) -> Array:
    """Return the mean over ``[x - width/2, x + width/2]`` of a +-1 square wave of period 1."""

    def integral(at: Array) -> Array:
        return 0.5 - np.abs(at - np.floor(at) - 0.5)

    width = np.maximum(width, 1e-6)
    return (integral(x + width / 2) - integral(x - width / 2)) / width


def pulse_train(x: Array, width: Array, duty: float) -> Array:
    """Return the share of ``[x - width/2, x + width/2]`` where ``frac(x) < duty``."""

    def integral(at: Array) -> Array:
        whole = np.floor(at)
        return whole * duty + np.minimum(at - whole, duty)

    width = np.maximum(width, 1e-6)
    return (integral(x + width / 2) - integral(x - width / 2)) / width


def lattice(column: Array, row: Array) -> Array:
    """Return a fixed random value in [-1, 1) for each integer cell."""
    return _LATTICE[row.astype(np.int64) & 255, column.astype(np.int64) & 255]


def value_noise(x: Array, y: Array) -> Array:
    """Return smooth noise in [-1, 1] with features of unit size."""
    column, row = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    a, b = x - column, y - row
    a, b = a * a * (3 - 2 * a), b * b * (3 - 2 * b)
    left, right, top, bottom = column & 255, (column + 1) & 255, row & 255, (row + 1) & 255
    upper = _LATTICE[top, left] * (1 - a) + _LATTICE[top, right] * a
    lower = _LATTICE[bottom, left] * (1 - a) + _LATTICE[bottom, right] * a
    return upper * (1 - b) + lower * b


def fractal_noise(x: Array, y: Array, width: Array, *, octaves: int = 4) -> Array:
    """Sum octaves of value noise; those with features below two pixels fade out."""
    total = np.zeros_like(x)
    for octave in range(octaves):
        frequency = 2.0**octave
        fade = np.clip(1.5 - 2 * width * frequency, 0, 1)
        # Unequal shifts, so that the octaves' lattices never line up.
        total += 0.6**octave * fade * value_noise(x * frequency + 17 * octave, y * frequency)
    return total


def cells(
    u: Array, v: Array, du: Array, dv: Array, *, height: float, gap: float, offset: float
) -> Array:
    """Return a grid of cells 1 wide and `height` high: 0 in the joints, 0.6 to 1 in the cells.

    Args:
        u, v: Surface coordinates.
        du, dv: The pixel's extent along them.
        height: Height of a row.
        gap: Width of the joints.
        offset: Shift of each row against the one below, in cells (0.5 for bricks).
    """
    row = v / height
    column = u + offset * np.floor(row)
    inside = pulse_train(column, du, 1 - gap) * pulse_train(row, dv / height, 1 - gap / height)
    fade = np.clip(1 - np.maximum(du, dv / height), 0, 1)
    return inside * (0.8 + 0.2 * fade * lattice(np.floor(column), np.floor(row)))


def _plain(u: Array, v: Array, du: Array, dv: Array) -> Array:
    return np.zeros_like(u)


def _checker(u: Array, v: Array, du: Array, dv: Array) -> Array:
    return 0.5 + 0.5 * square_wave(u / 2, du / 2) * square_wave(v / 2, dv / 2)


def _tiles(u: Array, v: Array, du: Array, dv: Array) -> Array:
    return cells(u, v, du, dv, height=1.0, gap=0.05, offset=0.0)


def _bricks(u: Array, v: Array, du: Array, dv: Array) -> Array:
    return cells(u, v, du, dv, height=0.34, gap=0.05, offset=0.5)


def _windows(u: Array, v: Array, du: Array, dv: Array) -> Array:
    return cells(u, v, du, dv, height=1.0, gap=0.45, offset=0.0)


def _stripes(u: Array, v: Array, du: Array, dv: Array) -> Array:
    return 0.5 + 0.5 * square_wave(u, du)


def _wood(u: Array, v: Array, du: Array, dv: Array) -> Array:
    planks = cells(u, v, du, dv, height=0.14, gap=0.006, offset=0.37)
    grain = fractal_noise(u * 2, v * 24, np.maximum(du * 2, dv * 24), octaves=3)
    return planks * (0.75 + 0.25 * grain)


def _noise(u: Array, v: Array, du: Array, dv: Array) -> Array:
    return 0.5 + 0.5 * fractal_noise(u, v, np.maximum(du, dv))


PATTERNS: dict[str, tuple[Pattern, float, float]] = {
    # name: (function, least and greatest scale in metres). Tiles, checkers, bricks, planks and
    # storeys have one size everywhere: they are what tells a model how large a scene is.
    "plain": (_plain, 1.0, 1.0),
    "checker": (_checker, 0.5, 0.5),
    "tiles": (_tiles, 0.5, 0.5),
    "bricks": (_bricks, 0.24, 0.24),
    "wood": (_wood, 1.2, 1.2),
    "windows": (_windows, 3.0, 3.0),
    "stripes": (_stripes, 0.1, 0.6),
    "noise": (_noise, 0.15, 0.8),
}


class Shape(Enum):
    """The unit shapes: ``|x|, |y|, |z| <= 1``, ``|p| <= 1``, and ``x^2 + y^2 <= 1, |z| <= 1``."""

    BOX = "box"
    SPHERE = "sphere"
    CYLINDER = "cylinder"


@dataclass(frozen=True, eq=False)
class Material:
    """How a surface looks.

    Attributes:
        colours: Two albedos, float64 `(2, 3)`, linear light.
        pattern: Name in `PATTERNS`; it mixes the two colours.
        scale: Size of the pattern's unit, metres.
        shift: Where the pattern starts, in its units.
        turned: Whether the pattern's axes are swapped.
        specular: Strength of the highlight.
        glow: Light given off, in units of the scene's radiance.
        mirror: Whether the surface reflects the scene.
    """

    colours: Array
    pattern: str = "plain"
    scale: float = 1.0
    shift: Array = field(default_factory=lambda: np.zeros(2))
    turned: bool = False
    specular: float = 0.0
    glow: float = 0.0
    mirror: bool = False

    def albedo(self, u: Array, v: Array, du: Array, dv: Array) -> Array:
        """Return the albedo `(3, N)` at surface coordinates and pixel extents in metres."""
        if self.turned:
            u, v, du, dv = v, u, dv, du
        s = self.scale
        mix = PATTERNS[self.pattern][0](
            u / s + self.shift[0], v / s + self.shift[1], du / s, dv / s
        )
        first, second = self.colours[0, :, None], self.colours[1, :, None]
        return np.clip(first + (second - first) * mix, 0, 1)


def unwrap(shape: Shape, half: Array, point: Array, direction: Array) -> tuple[Array, ...]:
    """Lay a texture around a shape.

    Boxes carry it on each face, spheres and cylinders around their axis. On a surface of normal
    n, a pixel seen along d grows along a unit axis e by the norm of e - n (d.e) / (d.n), the
    gradient of the coordinate e.p under a move across the ray.

    Args:
        shape: What the points lie on.
        half: Its half extents `(3,)`, metres.
        point: Points on it, relative to its centre, `(3, N)`.
        direction: Directions they are seen along, `(3, N)`.

    Returns:
        The unit normal `(3, N)`, u and v in metres, and the growth of a pixel along u and v.
    """
    ray = np.arange(point.shape[1])
    scaled = point / half[:, None]
    if shape is Shape.BOX:
        axis = np.abs(scaled).argmax(axis=0)
        normal = np.zeros_like(point)
        normal[axis, ray] = np.sign(scaled[axis, ray])
        first, second = np.where(axis == 0, 1, 0), np.where(axis == 2, 1, 2)
        slope = direction / direction[axis, ray]
        u, v, slope_u, slope_v = (a[i, ray] for a in (point, slope) for i in (first, second))
        return normal, u, v, np.hypot(1, slope_u), np.hypot(1, slope_v)
    normal = scaled / half[:, None]
    radius = np.maximum(np.hypot(scaled[0], scaled[1]), 1e-6)
    if shape is Shape.CYLINDER:
        cap = np.abs(scaled[2]) > radius
        normal *= np.where(cap, [[0.0], [0.0], [1.0]], [[1.0], [1.0], [0.0]])
    normal /= np.sqrt((normal * normal).sum(axis=0))
    slope = direction / (normal * direction).sum(axis=0)
    around = (scaled[0] * slope[1] - scaled[1] * slope[0]) / radius
    grow_v = np.sqrt(np.maximum(1 - 2 * normal[2] * slope[2] + slope[2] ** 2, 0))
    u = np.arctan2(scaled[1], scaled[0]) * half[0]
    return normal, u, point[2], np.hypot(1, around) / radius, grow_v


class Sky(NamedTuple):
    """A clear or clouded sky.

    Attributes:
        zenith: Radiance overhead, `(3,)`.
        horizon: Radiance at the horizon and of the haze, `(3,)`.
        clouds: Cover, 0 to 1.
        shift: Where the clouds start.
        haze: Distance at which the air hides 63 % of what is behind it, metres.
    """

    zenith: Array
    horizon: Array
    clouds: float
    shift: float
    haze: float

    def radiance(self, direction: Array) -> Array:
        """Return the radiance `(3, N)` along directions `(3, N)`, with clouds on a plane above."""
        up = np.maximum(direction[2] / np.sqrt((direction * direction).sum(axis=0)), 0)
        colour = self.horizon[:, None] + (self.zenith - self.horizon)[:, None] * np.sqrt(up)
        reach = 2 / (up + 0.15)
        x, y = direction[:2] / np.maximum(np.hypot(direction[0], direction[1]), 1e-9) * reach
        cover = fractal_noise(x + self.shift, y, 0.05 * reach)
        white = np.clip(2 * self.clouds * (cover + 0.2), 0, 1) * np.minimum(4 * up, 1)
        return colour * (1 - white) + 1.1 * self.horizon.max() * white


def random_colour(
    rng: np.random.Generator,
    *,
    hue: tuple[float, float] = (0, 6),
    saturation: tuple[float, float] = (0.1, 0.95),
    value: tuple[float, float] = (0.1, 0.9),
) -> Array:
    """Draw an albedo `(3,)` by hue (0 red, 2 green, 4 blue), saturation and value."""
    wheel = np.abs((rng.uniform(*hue) + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1
    return rng.uniform(*value) * (1 - rng.uniform(*saturation) * (1 - np.clip(wheel, 0, 1)))


def random_material(
    rng: np.random.Generator,
    patterns: str = "checker tiles wood stripes noise",
    *,
    plain: float = 0.6,
    **tint: tuple[float, float],
) -> Material:
    """Draw a material: plain with probability `plain`, else one of `patterns`.

    `tint` limits the colours, see `random_colour`.
    """
    first = random_colour(rng, **tint)
    # Most patterns use a darker shade of their colour, the others a second colour.
    second = first * rng.uniform(0.5, 0.85) if rng.random() < 0.7 else random_colour(rng, **tint)
    name = "plain" if rng.random() < plain else str(rng.choice(patterns.split()))
    return Material(
        np.stack([first, second]),
        pattern=name,
        scale=rng.uniform(*PATTERNS[name][1:]),
        shift=rng.uniform(0, 100, 2),
        turned=name in ("stripes", "wood") and rng.random() < 0.5,
        specular=rng.uniform(0.1, 0.6) if rng.random() < 0.4 else 0.0,
    )
