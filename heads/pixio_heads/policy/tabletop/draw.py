"""Draws the table with the ray caster: one camera, one lamp, no noise of its own.

The picture is a function of the episode and of where things are; nothing else enters.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pixio_heads.policy.tabletop.episode import MARK, Array, Episode, Thing
from pixio_heads.policy.tabletop.physics import FINGER, PALM, TABLE, Bench
from pixio_lightning.data import raycast, textures

_SPAN = 0.62  # width of the image at unit depth
_EXPOSURE = 1.15
# Half depth and half height of the rail, and how far behind the bodies' area it is: a finger fits.
_RAIL = (0.009, 0.022, 0.022)
_GAMMA = 1.8


def _material(colour: Array, **keys: object) -> textures.Material:
    pair = colour if colour.ndim == 2 else np.stack([colour, colour])
    return textures.Material(pair, **keys)  # type: ignore[arg-type]


def _part(
    shape: textures.Shape, centre: tuple, half: tuple | Array, material: textures.Material
) -> raycast.Part:
    return raycast.Part(shape, np.array(centre, float), np.array(half, float), material)


class Picture:
    """The camera of an episode; `draw` takes a picture of what is on its table."""

    def __init__(self, episode: Episode, *, mark: bool, size: int) -> None:
        look, self._size = episode.look, size
        box, _, cylinder = textures.Shape
        wide, deep = TABLE
        thick, high, back = _RAIL
        behind = (back + thick) / 2
        self._rail = _material(episode.things[0].colour)
        top = _material(look.table, pattern="wood" if look.wooden else "plain", scale=0.5)
        parts = [
            _part(box, (0, behind, -0.02), (wide, deep + behind, 0.02), top),
            _part(box, (0, deep + back, high), (wide, thick, high), self._rail),
        ]
        # Endless: the camera looks down so steeply that it sees nothing else behind the table.
        floor = _part(box, (0, 0, -1), (np.inf, np.inf, 0.5), _material(look.floor))
        self._still = [
            raycast.Body("floor", np.zeros(3), 0.0, (floor,), encloses=True),
            *(raycast.Body("table", np.zeros(3), 0.0, (part,)) for part in parts),
        ]
        if mark:
            at = np.array([*episode.goal, 0.0])
            white = _material(np.full(3, 0.85))
            rings = [(MARK, 0.0004, white), (0.78 * MARK, 0.0008, self._rail)]
            disc = [_part(cylinder, (0, 0, h), (r, r, h), m) for r, h, m in rings]
            self._still.append(raycast.Body("mark", at, 0.0, tuple(disc)))
        self._things = [self._parts(thing) for thing in episode.things]
        away = np.array(
            [
                np.sin(look.azimuth) * np.cos(look.elevation),
                -np.cos(look.azimuth) * np.cos(look.elevation),
                np.sin(look.elevation),
            ]
        )
        middle = np.array([0.0, 0.0, 0.05])
        self._pose = raycast.look_at(middle + look.distance * away, middle, roll=0.0)
        colour = look.brightness * np.array([1 + 0.12 * look.warmth, 1, 1 - 0.12 * look.warmth])
        self._light = raycast.Light(look.lamp, 1.3 * colour, 1.5, 0.0)
        self._ambient = 0.45 * colour

    def _parts(self, thing: Thing) -> tuple[raycast.Part, ...]:
        box, sphere, cylinder = textures.Shape
        shape = {"box": box, "sphere": sphere}.get(thing.form, cylinder)
        x, y, z = thing.half
        if thing.form != "platform":
            return (_part(shape, (0, 0, z), thing.half, _material(thing.colour, specular=0.2)),)
        white = _material(np.full(3, 0.85))
        base = _part(cylinder, (0, 0, z - 0.001), (x, y, z - 0.001), white)
        return (base, _part(cylinder, (0, 0, z), (0.8 * x, 0.8 * y, z), self._rail))

    def _gripper(self, bench: Bench) -> raycast.Body:
        box, _, cylinder = textures.Shape
        wide, deep, long = FINGER
        steel, dark = _material(np.full(3, 0.78), specular=0.3), _material(np.full(3, 0.08))
        aside = bench.opening / 2 + wide
        high = long + PALM[2]
        parts = [
            *(_part(box, (i * aside, 0, long / 2), (wide, deep, long / 2), dark) for i in (-1, 1)),
            _part(box, (0, 0, long + PALM[2] / 2), (*PALM[:2], PALM[2] / 2), steel),
            _part(cylinder, (0, 0, high + 0.15), (0.013, 0.013, 0.15), steel),
        ]
        return raycast.Body("gripper", np.array(bench.tip), 0.0, tuple(parts))

    def draw(self, bench: Bench) -> NDArray[np.uint8]:
        """Return the picture, uint8 RGB `(size, size, 3)`, its top first."""
        bodies = [*self._still, self._gripper(bench)]
        for block, parts in zip(bench.bodies, self._things, strict=True):
            bodies.append(raycast.Body("thing", np.array([block.x, block.y, block.z]), 0.0, parts))
        world = raycast.World(bodies, [self._light], self._ambient)
        rng = np.random.Generator(np.random.Philox(0))  # picks points of the lamp, which is one
        radiance, _ = raycast.photograph(
            world, [self._pose], size=self._size, focal=self._size / _SPAN, rng=rng
        )
        display = (1 - np.exp(-_EXPOSURE * radiance)) ** (1 / _GAMMA)
        image = np.clip(255 * display + 0.5, 0, 255).astype(np.uint8)
        return np.ascontiguousarray(image.T).reshape(self._size, self._size, 3)
