"""Kinematics of a gripper and of bodies on a table: no forces, nothing overlaps, nothing falls off.

The table's top is z = 0, in metres; +x is right and +y away from the camera. Nothing turns, so a
footprint is a box along the axes, of half extents `core`, widened by `radius` (a disc has no core).
The gripper moves in small steps, one axis at a time. A step pushes what it meets along the contact
normal by the penetration; if room cannot be made for all, the step is undone. What did not overlap
before therefore never does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

TABLE = (0.20, 0.155)  # half extents of the area that footprints stay within
REACH = ((-0.20, 0.20), (-0.155, 0.155), (0.004, 0.19))  # where the fingertips go, per axis
SPEED = 0.015  # metres that the gripper moves in a step at most, per axis
OPENING = 0.09  # greatest distance between the fingers
RATE = 0.015  # its greatest change in a step
FINGER = (0.008, 0.012, 0.075)  # half width, half depth and length of a finger
PALM = (0.056, 0.014, 0.024)  # the same of the bar that holds them

_SUBSTEPS = 4  # less than 4 mm each: a quarter of the thinnest thing, so nothing is jumped over
_TOLERANCE = 1e-9  # metres of overlap that rounding may cause
_GRASP = 0.012  # metres along y that a body's middle may be away from the fingers'


@dataclass(slots=True)
class Block:
    """Something upright: where its bottom's middle is, its footprint and its height."""

    x: float
    y: float
    z: float
    core: tuple[float, float]
    radius: float
    height: float
    fixed: bool = False

    @property
    def half(self) -> tuple[float, float]:
        """Half extents of the footprint."""
        return self.core[0] + self.radius, self.core[1] + self.radius

    @property
    def top(self) -> float:
        return self.z + self.height


def separation(a: Block, b: Block) -> tuple[float, float, float]:
    """Return the distance of two footprints, negative if they overlap, and the normal to `b`."""
    dx, dy = b.x - a.x, b.y - a.y
    x = abs(dx) - a.core[0] - b.core[0]
    y = abs(dy) - a.core[1] - b.core[1]
    radius = a.radius + b.radius
    if x > 0 and y > 0:
        distance = math.hypot(x, y)
        return distance - radius, math.copysign(x, dx) / distance, math.copysign(y, dy) / distance
    if x > y:
        return x - radius, math.copysign(1.0, dx), 0.0
    return y - radius, 0.0, math.copysign(1.0, dy)


def overlap(a: Block, b: Block) -> bool:
    """Whether two blocks share space."""
    level = min(a.top, b.top) - max(a.z, b.z) > _TOLERANCE
    return level and separation(a, b)[0] < -_TOLERANCE


def on_table(block: Block) -> bool:
    """Whether a footprint is within the table's edge."""
    (x, y), slack = block.half, _TOLERANCE
    return abs(block.x) + x <= TABLE[0] + slack and abs(block.y) + y <= TABLE[1] + slack


@dataclass
class Bench:
    """The table's bodies and the gripper above them; `advance` moves them."""

    bodies: list[Block]
    tip: list[float]  # the point between the fingertips: x, y, z
    opening: float  # distance between the fingers, metres
    held: int = -1  # number of the body that is held, or -1

    def gripper(self) -> list[Block]:
        """Return the left finger, the right finger and the palm."""
        x, y, z = self.tip
        wide, deep, long = FINGER
        aside = self.opening / 2 + wide
        fingers = [Block(x + i * aside, y, z, (wide, deep), 0.0, long) for i in (-1, 1)]
        return [*fingers, Block(x, y, z + long, PALM[:2], 0.0, PALM[2])]

    def advance(self, move: Sequence[float], opening: float) -> None:
        """Move the fingertips by `move` metres (x, y, z) and the fingers apart by `opening`."""
        for _ in range(_SUBSTEPS):
            for axis in range(3):
                if move[axis]:
                    self._move(axis, move[axis] / _SUBSTEPS)
            if opening:
                self._open(opening / _SUBSTEPS)
        self._settle()

    def _move(self, axis: int, by: float) -> None:
        low, high = REACH[axis]
        to = min(max(self.tip[axis] + by, low), high)
        by, before = to - self.tip[axis], self._kept()
        self.tip[axis] = to
        if self.held >= 0:
            body = self.bodies[self.held]
            body.x, body.y, body.z = (
                at + by * (i == axis) for i, at in enumerate((body.x, body.y, body.z))
            )
            if not on_table(body) or body.z < 0:
                return self._undo(before)
        if not self._make_room(aside=axis < 2):
            self._undo(before)

    def _open(self, by: float) -> None:
        to, before = min(max(self.opening + by, 0.0), OPENING), self._kept()
        if by < 0:
            if self.held >= 0:
                return
            for number, body in enumerate(self.bodies):
                if self._between(body) and to <= 2 * body.half[0]:
                    # The fingers close on it and bring its middle to theirs.
                    self.opening, self.held, body.x = 2 * body.half[0], number, self.tip[0]
                    if not self._make_room(aside=False):
                        self._undo(before)
                    return
        else:
            self.held = -1
        self.opening = to
        if not self._make_room(aside=True):
            self._undo(before)

    def _between(self, body: Block) -> bool:
        x, y, z = self.tip
        level = body.z - _TOLERANCE <= z + FINGER[2] and z <= body.top - 0.008
        within = abs(body.x - x) + body.half[0] <= self.opening / 2 + _TOLERANCE
        return level and within and abs(body.y - y) <= _GRASP and not body.fixed

    def _make_room(self, *, aside: bool) -> bool:
        """Push bodies out of the gripper's way, if `aside`; return whether nothing overlaps."""
        held = [self.bodies[self.held]] if self.held >= 0 else []
        free = [body for i, body in enumerate(self.bodies) if i != self.held]
        queue = [*self.gripper(), *held]
        rigid = len(queue)
        for pusher in queue:
            for body in free:
                if body is pusher or not overlap(pusher, body):
                    continue
                if body.fixed or not aside or len(queue) > 40:
                    return False
                distance, x, y = separation(pusher, body)
                body.x, body.y = body.x - distance * x, body.y - distance * y
                if not on_table(body):
                    return False
                queue.append(body)
        if len(queue) == rigid:  # nothing was met
            return True
        pairs = [(a, b) for a in queue[:rigid] for b in free]
        pairs += [(a, b) for i, a in enumerate(free) for b in free[:i]]
        return not any(overlap(a, b) for a, b in pairs)

    def _settle(self) -> None:
        """Let what hangs in the air fall on what is below it."""
        free = [body for i, body in enumerate(self.bodies) if i != self.held and not body.fixed]
        for body in sorted(free, key=lambda body: body.z):
            if body.z > 0:
                below = [
                    other.top
                    for other in [*self.bodies, *self.gripper()]
                    if other is not body
                    and other.top <= body.z + _TOLERANCE
                    and separation(other, body)[0] < -_TOLERANCE
                ]
                body.z = max(below, default=0.0)

    def _kept(self) -> tuple[list[Block], list[float], float, int]:
        return [replace(body) for body in self.bodies], list(self.tip), self.opening, self.held

    def _undo(self, before: tuple[list[Block], list[float], float, int]) -> None:
        self.bodies, self.tip, self.opening, self.held = before
