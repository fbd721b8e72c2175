"""Episodes to evaluate a policy in, as samples without an image: a seed, and what others reach."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pixio_heads.policy.rollout.play import Outcome
from pixio_lightning.data import BadImage, Sample, digest_of


class Start(NamedTuple):
    """Where an episode begins.

    Attributes:
        seed: What the environment draws it from.
        of_demonstration: Whether a demonstration began there.
        expert: What the scripted expert reaches from there.
        random: What random actions reach from there.
    """

    seed: int
    of_demonstration: bool
    expert: Outcome
    random: Outcome


class EpisodeSamples:
    """One sample for each start: `seed`, `of_demonstration`, and outcomes as numbers, see `row`."""

    def __init__(self, starts: Sequence[Start], digest: str) -> None:
        self.starts, self._digest = starts, digest

    def __len__(self) -> int:
        return len(self.starts)

    def name(self, index: int) -> str:
        start = self.starts[index]
        return f"{'demonstration' if start.of_demonstration else 'fresh'}/{start.seed:08d}"

    def frames(self, index: int) -> list[str]:
        return []

    def frame(self, name: str) -> NDArray[np.uint8]:
        raise BadImage("an episode to come has no frames")

    def load(self, index: int) -> Sample:
        start = self.starts[index]
        return {
            "seed": np.asarray(start.seed),
            "of_demonstration": np.asarray(start.of_demonstration),
            "expert": row(start.expert),
            "random": row(start.random),
        }

    def digest(self) -> str:
        return digest_of(self._digest, [start[:2] for start in self.starts])


def row(outcome: Outcome) -> NDArray[np.float32]:
    """Return an outcome as numbers: success at the last step, at any, return, steps, broken."""
    broken = bool(outcome.error)
    values = (outcome.success, outcome.success_any, outcome.total, outcome.steps, broken)
    return np.array(values, np.float32)
