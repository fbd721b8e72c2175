"""Scripted experts: they see the true state, and keep none of their own.

An action depends on where things are now and on nothing else, so an expert takes over from any
state, as data collection with perturbed actions needs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pixio_heads.policy.tabletop.env import Tabletop
from pixio_heads.policy.tabletop.physics import FINGER, OPENING, RATE, SPEED, Bench

_HOVER = 0.072  # height that clears every body, metres
_CLOSE = 0.004  # metres within which a place counts as reached


class Expert:
    """Solves each of the three tasks; `act` returns its action, float32 `(4,)`."""

    def act(self, env: Tabletop) -> NDArray[np.float32]:
        """Return the next action towards the goal of the environment's episode."""
        bench, goal = env.bench, env.episode.goal
        if env.task == "reach":
            to, opening = self._reach(bench), 0.0
        elif env.task == "push":
            to, opening = self._push(bench, goal), 0.0
        else:
            to, opening = self._pick_place(bench, goal)
        move = [(there - here) / SPEED for there, here in zip(to, bench.tip, strict=True)]
        action = [*move, (opening - bench.opening) / RATE]
        return np.clip(action, -1, 1).astype(np.float32)

    def _over(
        self, bench: Bench, x: float, y: float, z: float, *, hover: float = _HOVER
    ) -> tuple[float, float, float]:
        """Go to a place from above: up where something could be hit, across, then down."""
        here = bench.tip
        if max(abs(x - here[0]), abs(y - here[1])) <= _CLOSE:
            return x, y, z
        if here[2] < hover - 0.012:
            return here[0], here[1], hover
        return x, y, hover

    def _reach(self, bench: Bench) -> tuple[float, float, float]:
        body = bench.bodies[0]
        return self._over(bench, body.x, body.y, body.top)

    def _push(self, bench: Bench, goal: tuple[float, float]) -> tuple[float, float, float]:
        """Push along x until that is right, then along y, from behind each time."""
        body, tip = bench.bodies[0], bench.tip
        at = (body.x, body.y)
        axis = 0 if abs(goal[0] - at[0]) > _CLOSE else 1
        left = goal[axis] - at[axis]
        if abs(left) <= _CLOSE:
            return tip[0], tip[1], _HOVER
        sign = 1.0 if left > 0 else -1.0
        touching = body.half[axis] + (2 * FINGER[0], FINGER[1])[axis]
        gap = sign * (at[axis] - tip[axis]) - touching  # how far behind the body the gripper is
        aligned = abs(at[1 - axis] - tip[1 - axis]) <= 0.008
        to = list(at)
        if aligned and -_CLOSE / 4 <= gap <= 0.02 and tip[2] <= 0.02:
            to[axis] = goal[axis] - sign * touching
            return to[0], to[1], 0.01
        to[axis] -= sign * (touching + 0.01)
        return self._over(bench, to[0], to[1], 0.01)

    def _pick_place(
        self, bench: Bench, goal: tuple[float, float]
    ) -> tuple[tuple[float, float, float], float]:
        body, tip, platform = bench.bodies[0], bench.tip, bench.bodies[-1].top
        grip = body.z + max(body.height / 2 - 0.012, 0.006)
        if bench.held == 0:
            # It goes on squeezing: fingers that only stay where they are slip at the least push.
            below = tip[2] - body.z  # of the fingertips, where the body's bottom is
            x, y = goal[0] + tip[0] - body.x, goal[1] + tip[1] - body.y
            placed = max(abs(x - tip[0]), abs(y - tip[1])) <= _CLOSE
            if placed and body.z <= platform + 0.006:
                return (tip[0], tip[1], tip[2]), OPENING
            return self._over(bench, x, y, platform + below, hover=_HOVER + below), 0.0
        off = max(abs(body.x - goal[0]), abs(body.y - goal[1]))
        if abs(body.z - platform) < 1e-6 and off <= 0.01:  # there: let go and rise
            return (tip[0], tip[1], tip[2] if bench.opening < OPENING else 0.15), OPENING
        to = self._over(bench, body.x, body.y, grip, hover=max(_HOVER, body.top + 0.015))
        ready = max(abs(a - b) for a, b in zip(to, tip, strict=True)) <= _CLOSE
        return to, 0.0 if ready and abs(tip[2] - grip) <= _CLOSE else OPENING
