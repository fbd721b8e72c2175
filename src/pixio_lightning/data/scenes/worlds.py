"""Places: rooms and open grounds, furnished at random from a seed.

The world is z up with the floor at z = 0, in metres. `PLACES` says what kinds there are;
`build_world` furnishes one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from pixio_lightning.data.scenes.raycast import Body, Light, Part, World
from pixio_lightning.data.scenes.textures import Array, Material, Shape, Sky, random_material
from pixio_lightning.errors import UserError, nearest

Rng = np.random.Generator
Range = tuple[float, float]


class Glance(NamedTuple):
    """Cameras that stand side by side and look at the middle of a room, each turned a little.

    Views differ in a way that a small model learns in minutes, and their floor and walls bear a
    pattern of one size, from which it can tell the scale.
    """

    distance: Range = (1.25, 1.75)  # metres from the middle
    elevation: Range = (5.0, 25.0)  # degrees above it
    yaw: Range = (0.0, 36.0)  # degrees between the first view and the last, to either side
    baseline: Range = (0.15, 0.5)  # metres between them, to either side
    focal: float = 0.8  # widths of the image
    reach: float = 0.65  # metres from the middle within which things stand


class Place(NamedTuple):
    """A kind of place: extents in metres, the size of its things, how many of each, how plain."""

    width: Range
    length: Range
    height: Range
    scale: float
    contents: str
    plain: float = 0.6  # share of the things' surfaces that bear no pattern
    glance: Glance | None = None  # None lets cameras roam; places with one are drawn if asked for


# What stands along the walls comes first: it needs the room most.
PLACES: dict[str, Place] = {
    "bedroom": Place(
        *((3.0, 4.5), (3.4, 5.0), (2.4, 2.8), 0.8),
        "bed 1-1 shelf 0-2 mirror 0-1 picture 1-2 table 0-1 box 0-2 sphere 0-1 cylinder 0-1",
    ),
    "office": Place(
        *((4.0, 7.0), (4.5, 7.0), (2.5, 3.0), 0.8),
        "shelf 1-2 mirror 0-1 picture 1-2 table 1-3 box 1-2 sphere 0-1 cylinder 0-2",
    ),
    "corridor": Place(
        *((1.9, 2.6), (8.0, 13.0), (2.4, 3.0), 0.6),
        "shelf 0-1 mirror 0-1 picture 2-5 box 1-2 sphere 0-1 cylinder 1-2",
    ),
    "warehouse": Place(
        *((7.0, 11.0), (8.0, 13.0), (4.0, 5.5), 1.4),
        "shelf 3-4 box 5-10 table 0-2 cylinder 2-4",
    ),
    "gallery": Place(
        *((5.0, 8.0), (5.5, 9.0), (3.0, 4.2), 1.1),
        "mirror 0-2 picture 3-6 sphere 1-3 cylinder 1-3 box 1-3",
    ),
    # Calm: what a small model understands in minutes.
    "studio": Place(
        *((3.5, 6.5), (3.5, 6.5), (2.4, 3.2), 1.6),
        "table 0-1 box 1-3 sphere 0-2 cylinder 0-2",
        plain=0.9,
    ),
    # Narrow: where a small model learns to compare two views in minutes.
    "den": Place(
        *((3.8, 6.5), (3.8, 6.5), (2.0, 3.0), 0.75),
        "box 0-2 sphere 0-1 cylinder 0-1 box 1-1",
        plain=1.0,
        glance=Glance(),
    ),
    "street": Place(
        *((9.0, 13.0), (60.0, 60.0), (0.0, 0.0), 2.0),
        "building 6-9 box 1-4 tree 1-4 cylinder 1-3 sphere 0-1",
    ),
    "plaza": Place(
        *((34.0, 50.0), (34.0, 50.0), (0.0, 0.0), 2.5),
        "building 3-4 sphere 2-4 cylinder 2-4 box 2-4 tree 0-2",
    ),
    "park": Place(
        *((24.0, 36.0), (24.0, 36.0), (0.0, 0.0), 1.5),
        "building 0-2 tree 5-8 sphere 1-3 box 1-3 cylinder 1-2",
    ),
}


def _part(shape: Shape, centre: tuple, half: tuple, material: Material) -> Part:
    return Part(shape, np.array(centre, dtype=float), np.array(half, dtype=float), material)


def _parts(rng: Rng, name: str, place: Place) -> list[Part]:
    """Build one thing standing on z = 0 (around it, on a wall), its back towards -y."""
    box, sphere, cylinder = Shape
    scale, plain = place.scale, place.plain
    main, other = random_material(rng, plain=plain), random_material(rng, plain=plain)
    if name in ("box", "sphere", "cylinder"):
        x, y, z = rng.uniform(0.15, 0.45, 3) * scale
        halves = {"box": (x, y, z), "sphere": (x, x, x), "cylinder": (0.7 * x, 0.7 * x, 1.5 * z)}
        return [_part(Shape(name), (0, 0, halves[name][2]), halves[name], main)]
    if name == "table":
        (x, y, z), leg = rng.uniform((0.4, 0.3, 0.6), (0.9, 0.5, 0.8)), rng.uniform(0.02, 0.05)
        corners = [(i * (x - leg), j * (y - leg)) for i in (-1, 1) for j in (-1, 1)]
        legs = [_part(box, (*at, z / 2 - 0.02), (leg, leg, z / 2 - 0.02), other) for at in corners]
        return [_part(box, (0, 0, z - 0.02), (x, y, 0.02), main), *legs]
    if name == "shelf":
        x, y, z = rng.uniform((0.4, 0.15, 0.6), (0.8, 0.2, 1.2)) * (scale, 1, scale)
        boards = int(rng.integers(2, 5))
        pitch = (2 * z - 0.03) / boards
        parts = [_part(box, (i * x, 0, z), (0.02, y, z), main) for i in (-1, 1)]
        parts += [_part(box, (0, 0.01 - y, z), (x, 0.01, z), other)]
        for i in range(boards + 1):
            parts += [_part(box, (0, 0, 0.015 + i * pitch), (x, y - 0.01, 0.015), main)]
        for i in range(boards):
            wide, tall = rng.uniform(0.3, 0.9) * (x - 0.03), rng.uniform(0.2, 0.42) * pitch
            at = (rng.uniform(-1, 1) * (x - 0.03 - wide), 0.02, 0.03 + i * pitch + tall)
            parts += [_part(box, at, (wide, 0.7 * y, tall), random_material(rng, plain=plain))]
        return parts
    if name == "bed":
        x, y, z = rng.uniform((0.45, 0.95, 0.2), (0.9, 1.05, 0.3))
        linen = random_material(rng, "stripes", saturation=(0, 0.2), value=(0.6, 0.9))
        return [
            _part(box, (0, 0, z / 2), (x, y, z / 2), other),
            _part(box, (0, 0.02, z + 0.1), (0.97 * x, 0.97 * y, 0.1), main),
            _part(box, (0, -y, z + 0.2), (x, 0.04, z + 0.2), other),
            _part(sphere, (0, 0.35 - y, z + 0.24), (0.7 * x, 0.2, 0.1), linen),
        ]
    if name in ("picture", "mirror"):
        x, z = rng.uniform(0.25, 0.6, 2) * max(scale, 0.8)
        pane = random_material(rng, "noise stripes checker")
        if name == "mirror":
            x, z, pane = 1.3 * x, 1.3 * z, Material(np.full((2, 3), 0.6), mirror=True)
        frame = _part(box, (0, 0, 0), (x, 0.015, z), main)
        return [frame, _part(box, (0, 0.01, 0), (x - 0.04, 0.01, z - 0.04), pane)]
    if name == "building":
        x, y, z = rng.uniform((2.5, 2.5, 2), (5, 5, 8))
        walls = random_material(rng, "windows windows bricks", plain=0.5, saturation=(0, 0.6))
        roof = _part(box, (0, 0, 2 * z + 0.15), (x + 0.2, y + 0.2, 0.15), other)
        return [_part(box, (0, 0, z), (x, y, z), walls), roof]
    assert name == "tree", name
    trunk, r, z = rng.uniform((0.7, 0.8, 0.9), (1.5, 2.2, 2.2))
    bark = random_material(rng, "noise", hue=(0.3, 0.8), value=(0.15, 0.4))
    leaves = random_material(rng, "noise", hue=(1, 2.4), saturation=(0.3, 0.8), value=(0.2, 0.6))
    crown = _part(sphere, (0, 0, 2 * trunk + 0.8 * z), (r, r, z), leaves)
    return [_part(cylinder, (0, 0, trunk), (0.1 * r, 0.1 * r, trunk), bark), crown]


def _put(rng: Rng, name: str, place: Place, size: Array, bodies: list[Body]) -> None:
    """Add one thing where there is room for it; a crowded place goes without."""
    parts = tuple(_parts(rng, name, place))
    indoor = size[2] > 0
    tops = [body for body in bodies if body.name == "table" and indoor]
    for _ in range(12):
        yaw, position = rng.uniform(-np.pi, np.pi), np.zeros(3)
        centre, half = Body(name, position, yaw, parts).bounds
        room = size[:2] - 2 * np.hypot(half[0], half[1])
        if place.glance is not None:
            room = np.full(2, 2 * place.glance.reach)
        position[:2] = rng.uniform(-0.5, 0.5, 2) * room
        on_wall = name in ("picture", "mirror")
        if on_wall or name in ("shelf", "bed") or (name == "building" and size[1] > 3 * size[0]):
            # A wall's inward normal is the body's +y; a street has the two long walls only.
            side = int(rng.integers(4)) if indoor else 2 * int(rng.integers(2))
            yaw = (side - 1) * np.pi / 2
            axis, sign = side % 2, 1 - side // 2 * 2
            back = centre[1] - half[1] if indoor else half[1]
            position[axis] = -sign * (size[axis] / 2 + back - 0.005 * indoor)
            position[1 - axis] = rng.uniform(-1, 1) * max(size[1 - axis] / 2 - half[0], 0)
            position[2] = rng.uniform(1.2, max(size[2] - half[2] - 0.3, 1.3)) if on_wall else 0
        elif tops and max(half) < 0.35 and rng.random() < 0.6:
            top = tops[int(rng.integers(len(tops)))]
            position[:2] = top.position[:2] + rng.uniform(-0.2, 0.2, 2)
            position[2] = top.corners[1][2] + 1e-3
        body = Body(name, position, yaw, parts)
        low, high = body.corners
        if not any(np.all((low < o.corners[1]) & (o.corners[0] < high)) for o in bodies):
            bodies.append(body)
            return


def _side(name: str, axis: int, start: float, end: float, material: Material) -> Body:
    """Return a slab between two coordinates of one axis, endless along the others."""
    centre, half = np.zeros(3), np.full(3, np.inf)
    centre[axis], half[axis] = (start + end) / 2, (end - start) / 2
    return Body(name, np.zeros(3), 0.0, (Part(Shape.BOX, centre, half, material),), encloses=True)


def _room(rng: Rng, size: Array, place: Place) -> tuple[list[Body], list[Light], Array]:
    """Return the walls, the lamps at the ceiling (seen and shining) and the ambient light."""
    plain = place.plain
    walls = random_material(
        rng, "stripes bricks noise wood", plain=0.7, saturation=(0, 0.5), value=(0.4, 0.9)
    )
    accent = walls
    if rng.random() < 0.5:
        accent = random_material(rng, "stripes bricks tiles noise", plain=plain)
    floor = random_material(rng, "tiles tiles checker wood noise", plain=0.4, saturation=(0, 0.6))
    ceiling = random_material(
        rng, "tiles noise", plain=plain, saturation=(0, 0.15), value=(0.6, 0.9)
    )
    sides = [accent, walls, walls, walls]
    if place.glance is not None:
        floor = replace(floor, pattern="checker", scale=0.5, shift=np.zeros(2), turned=False)
        # Wide enough to be told apart in small images, and another colour on every side.
        sides = [
            replace(random_material(rng, plain=1.0), pattern="stripes", scale=1.0) for _ in sides
        ]
    x, y, z = size / (2, 2, 1)
    bodies = [_side("floor", 2, -1, 0, floor), _side("ceiling", 2, z, z + 1, ceiling)]
    bodies += [_side("wall", 0, -x - 1, -x, sides[0]), _side("wall", 0, x, x + 1, sides[1])]
    bodies += [_side("wall", 1, -y - 1, -y, sides[2]), _side("wall", 1, y, y + 1, sides[3])]
    lights = []
    glowing = Material(np.ones((2, 3)), glow=2.0)
    for _ in range(int(rng.integers(1, 4))):
        at = np.append(rng.uniform(-0.35, 0.35, 2) * size[:2], size[2])
        lamp = _part(Shape.CYLINDER, (0, 0, -0.03), (0.15, 0.15, 0.03), glowing)
        bodies.append(Body("lamp", at, 0.0, (lamp,)))
        colour = rng.uniform((1, 0.8, 0.6), (1, 1, 1)) * rng.uniform(0.5, 1.5)
        reach = rng.uniform(0.3, 0.6) * size.mean()
        lights.append(Light(at - [0, 0, 0.3], colour, reach, rng.uniform(0.01, 0.08)))
    total = np.sum([light.colour for light in lights], axis=0)
    return bodies, lights, rng.uniform(0.05, 0.2) * total


def _outside(rng: Rng) -> tuple[list[Body], list[Light], Array, Sky]:
    """Return the ground, the sun, the ambient light and the sky."""
    ground = random_material(
        rng, "noise tiles bricks", plain=0.3, hue=(0.3, 2.2), saturation=(0, 0.5)
    )
    bodies = [_side("ground", 2, -1, 0, ground)]
    azimuth, elevation = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(20, 65))
    flat = np.cos(elevation)
    toward = np.array([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)])
    sun = Light(1000 * toward, rng.uniform((1, 0.85, 0.6), (1.2, 1, 0.9)), np.inf, 8.0)
    horizon = rng.uniform((0.7, 0.75, 0.8), (0.95, 0.95, 1))
    zenith = horizon * rng.uniform((0.2, 0.4, 0.75), (0.5, 0.7, 1))
    sky = Sky(zenith, horizon, rng.uniform(0, 1), rng.uniform(0, 200), rng.uniform(200, 600))
    return bodies, [sun], rng.uniform(0.1, 0.25) * (zenith + horizon), sky


def build_world(rng: Rng, room_type: str) -> tuple[World, Array, Array]:
    """Furnish a place of the given type; return it and the corners `(3,)` cameras keep within."""
    place = PLACES[room_type]
    size = rng.uniform(*np.transpose([place.width, place.length, place.height]))
    indoor = size[2] > 0
    shell, lights, ambient, sky = (*_room(rng, size, place), None) if indoor else _outside(rng)
    things: list[Body] = []
    words = place.contents.split()
    for name, span in zip(words[::2], words[1::2], strict=True):
        least, most = map(int, span.split("-"))
        for _ in range(int(rng.integers(least, most + 1))):
            _put(rng, name, place, size, things)
    half = size / 2 if sky is None else np.minimum(0.4 * size, 12)
    low = np.array([-half[0], -half[1], 0.8 if sky is None else 1.2])
    high = np.array([half[0], half[1], min(size[2] - 0.6, 2.6) if sky is None else 3.5])
    return World([*shell, *things], lights, ambient, sky), low, high


def is_open(place: Place) -> bool:
    """Whether it has a sky instead of a ceiling."""
    return place.height[1] == 0


def known_places(places: Sequence[str] | None) -> Sequence[str]:
    """Return the places; for None all where cameras roam.

    Raises:
        UserError: The list is empty, or there is no such place.
    """
    if places is None:
        return tuple(name for name, place in PLACES.items() if place.glance is None)
    for name in places or [""]:
        if name not in PLACES:
            raise UserError(
                f"no place '{name}': expected some of {', '.join(PLACES)}{nearest(name, PLACES)}"
            )
    return places
