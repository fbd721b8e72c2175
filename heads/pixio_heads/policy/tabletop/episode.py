"""What a seed draws: the things on the table, the goal, the camera, the light and the colours.

Everything that belongs to the goal has one colour: the body that is asked for, the rail along the
table's back edge, and the mark or platform where the body goes. No other body has it.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from pixio_heads.policy.tabletop.physics import OPENING, TABLE, Bench, Block, separation
from pixio_lightning.keyed import fold, key_of

Task = Literal["reach", "push", "pick_place"]
TASKS: tuple[str, ...] = get_args(Task)
Array = NDArray[np.float64]
Rng = np.random.Generator

# Albedos that stay apart under every light that is drawn.
COLOURS = np.array(
    [
        (0.72, 0.04, 0.03),  # red
        (0.05, 0.42, 0.09),  # green
        (0.04, 0.13, 0.70),  # blue
        (0.85, 0.58, 0.02),  # yellow
        (0.40, 0.05, 0.50),  # purple
        (0.03, 0.50, 0.55),  # cyan
    ]
)
MARK = 0.034  # radius of the mark and the platform, metres
PLATFORM = 0.02  # height of the platform, metres
_APART = 0.036  # metres between footprints: a finger of an open gripper fits


class Thing(NamedTuple):
    """A body as drawn: its form, `(3,)` half extents in metres, its albedo `(3,)`, its place."""

    form: str  # box, sphere, cylinder or platform
    half: Array
    colour: Array
    x: float
    y: float

    def block(self) -> Block:
        """Return what the kinematics move; a sphere counts as the cylinder around it."""
        wide, deep, high = (float(half) for half in self.half)
        core, radius = ((wide, deep), 0.0) if self.form == "box" else ((0.0, 0.0), wide)
        fixed = self.form == "platform"
        return Block(float(self.x), float(self.y), 0.0, core, radius, 2 * high, fixed)


class Look(NamedTuple):
    """The camera, the light and the surroundings of an episode."""

    azimuth: float  # radians that the camera stands right of the middle
    elevation: float  # radians above the table
    distance: float  # metres to the middle of the table
    lamp: Array  # (3,), metres
    brightness: float
    warmth: float  # -1 bluish to 1 reddish
    table: Array  # (2, 3), albedos
    wooden: bool
    floor: Array  # (3,), albedo


class Episode(NamedTuple):
    """All that is fixed while an episode lasts. The body asked for is the first thing."""

    things: tuple[Thing, ...]
    goal: tuple[float, float]  # where it goes, metres; for `reach` where it stands
    tolerance: float  # metres
    tip: tuple[float, float, float]  # where the fingertips start
    opening: float  # how far apart the fingers start
    look: Look

    def bench(self) -> Bench:
        """Return the table at the start."""
        return Bench([thing.block() for thing in self.things], list(self.tip), self.opening)


def draw_episode(task: Task, seed: int, difficulty: float) -> Episode:
    """Draw an episode: equal arguments give equal episodes, on every machine.

    Args:
        task: What is to be done.
        seed: Any integer.
        difficulty: 0 to 1: the number of distractors, how far starts, goals, camera and light
            vary, and how exact the goal is.
    """
    rng = np.random.Generator(np.random.Philox(fold(seed, key_of(task))))
    colours = COLOURS[rng.permutation(len(COLOURS))] * (1 - 0.25 * difficulty * rng.random())
    spread = np.array([0.14, 0.10]) * (0.75 + 0.25 * difficulty)
    others = round(4 * difficulty) if task == "reach" else round(3 * difficulty)
    while (placed := _place(rng, task, spread, others)) is None:
        pass
    forms, at, goal = placed
    things = [
        Thing(form, half, colour, *xy)
        for (form, half), colour, xy in zip(forms, colours, at, strict=False)
    ]
    if task == "pick_place":
        half = np.array([MARK, MARK, PLATFORM / 2])
        things.append(Thing("platform", half, things[0].colour, *goal))
    x, y = (rng.uniform(-1, 1, 2) * spread).tolist()
    return Episode(
        things=tuple(things),
        goal=goal,
        tolerance=0.028 - 0.01 * difficulty,
        tip=(x, y, rng.uniform(0.12, 0.16)),
        opening=OPENING if task == "pick_place" else 0.0,
        look=_look(rng, difficulty),
    )


def _form(rng: Rng, forms: str) -> tuple[str, Array]:
    form = str(rng.choice(forms.split()))
    wide, deep, high = rng.uniform(0.022, 0.028, 3)
    halves = {"box": (wide, deep, high), "sphere": (wide,) * 3, "cylinder": (wide, wide, high)}
    return form, np.array(halves[form])


def _place(rng: Rng, task: Task, spread: Array, others: int) -> tuple | None:
    """Draw the bodies' forms and places `(2,)`, and the goal; None if something had no room."""
    forms = [_form(rng, "box cylinder" if task == "push" else "box sphere cylinder")]
    at = [rng.uniform(-1, 1, 2) * spread]
    half, goal = forms[0][1], at[0]
    x, y = at[0]
    taken = [Block(x, y, 0, (half[0], half[1]), 0.0, 1.0)]
    if task != "reach":
        goal = rng.uniform(-1, 1, 2) * spread
        a, b = goal
        taken.append(Block(a, b, 0, (0.0, 0.0), MARK, 1.0))
        if separation(*taken)[0] < (0.01 if task == "push" else _APART):
            return None
        if task == "push":  # along x, then along y, with room for the gripper behind
            wide, deep = half[0], half[1]
            taken.append(Block((x + a) / 2, y, 0, (abs(x - a) / 2 + wide + 0.03, deep), 0.0, 1.0))
            taken.append(Block(a, (y + b) / 2, 0, (wide, abs(y - b) / 2 + deep + 0.03), 0.0, 1.0))
    for _ in range(others):
        form, size = _form(rng, "box sphere cylinder")
        for _ in range(40):
            x, y = rng.uniform(-1, 1, 2) * (np.array(TABLE) - size[:2] - 0.005)
            block = Thing(form, size, COLOURS[0], x, y).block()
            if all(separation(block, other)[0] > _APART for other in taken):
                break
        else:
            return None
        taken.append(block)
        forms.append((form, size))
        at.append(np.array([x, y]))
    return forms, at, (float(goal[0]), float(goal[1]))


def _look(rng: Rng, difficulty: float) -> Look:
    vary = rng.uniform(-1, 1, 8) * difficulty
    grey = rng.uniform(0.45, 0.65)
    tint = 1 + 0.1 * difficulty * rng.uniform(-1, 1, (3, 3))
    wood = np.array([[0.62, 0.44, 0.28], [0.38, 0.25, 0.15]])
    wooden = bool(rng.random() < 0.5)
    return Look(
        azimuth=np.radians(14 * vary[0]),
        elevation=np.radians(50 + 5 * vary[1]),
        distance=0.78 * (1 + 0.05 * vary[2]),
        # To the left or to the right, so that shadows fall aside; above at difficulty 0.
        lamp=np.array([0.35 * np.sign(vary[3]) + 0.2 * vary[4], -0.25 + 0.2 * vary[5], 0.9]),
        brightness=1 + 0.2 * vary[6],
        warmth=vary[7],
        table=wood * tint[:2] if wooden else np.full((2, 3), grey) * tint[:1],
        wooden=wooden,
        floor=np.array([0.28, 0.30, 0.34]) * tint[2],
    )
