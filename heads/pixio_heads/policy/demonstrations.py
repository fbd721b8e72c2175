"""Demonstrations: episodes to learn from, as samples of a history and the action that followed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pixio_heads.policy.rollout.pictures import square
from pixio_lightning.data import BadImage, Sample, decode_pixels, digest_of

_KEPT = 1 << 30  # bytes of decoded frames that are kept, per process


@dataclass
class Demonstration:
    """An episode of T steps.

    Attributes:
        name: Unique among those of a data set.
        proprio: float32 `(T, P)`, what the robot knows of itself before each action.
        actions: float32 `(T, A)`.
        frame: Returns the picture before the action of a step, uint8 `(H, W, 3)`; raises BadImage.
        seed: What a simulator draws the same start from; None where nobody knows.
        keeps: Whether `frame` keeps pictures itself, within bounds.
    """

    name: str
    proprio: NDArray[np.float32]
    actions: NDArray[np.float32]
    frame: Callable[[int], NDArray[np.uint8]]
    seed: int | None = None
    keeps: bool = False

    def __len__(self) -> int:
        return len(self.actions)


class DemonstrationSamples:
    """Every step of every demonstration: the last V frames, the robot's state, the action.

    Args:
        demonstrations: The episodes.
        history: Frames V of a sample; an episode's first frame stands for those before it.
        size: Side of the pictures; others are scaled to it, cut to a square in the middle.
        digest: Identifies the demonstrations.
    """

    def __init__(
        self, demonstrations: Sequence[Demonstration], *, history: int, size: int, digest: str
    ) -> None:
        self.demonstrations, self.history, self.size = demonstrations, history, size
        self._digest = digest
        self._number = {demo.name: i for i, demo in enumerate(demonstrations)}
        self._ends = np.cumsum([len(demo) for demo in demonstrations])
        self._frames: dict[str, NDArray[np.uint8]] = {}
        self._room = _KEPT

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def _locate(self, index: int) -> tuple[Demonstration, int]:
        which = int(np.searchsorted(self._ends, index, side="right"))
        demonstration = self.demonstrations[which]
        return demonstration, index - int(self._ends[which]) + len(demonstration)

    def name(self, index: int) -> str:
        demonstration, step = self._locate(index)
        return f"{demonstration.name}/{step:05d}"

    def frames(self, index: int) -> list[str]:
        demonstration, step = self._locate(index)
        steps = (max(step - back, 0) for back in range(self.history - 1, -1, -1))
        return [f"{demonstration.name}/{at:05d}" for at in steps]

    def frame(self, name: str) -> NDArray[np.uint8]:
        if name not in self._frames:
            episode, _, step = name.rpartition("/")
            demonstration = self.demonstrations[self._number[episode]]
            image = square(demonstration.frame(int(step)), self.size)
            if demonstration.keeps or image.nbytes > self._room:
                return image
            self._room -= image.nbytes
            self._frames[name] = image
        return self._frames[name]

    def load(self, index: int) -> Sample:
        demonstration, step = self._locate(index)
        found = {"proprio": demonstration.proprio[step], "action": demonstration.actions[step]}
        for name, values in found.items():
            if not np.isfinite(values).all():
                raise BadImage(f"{name} is not finite")
        return found

    def digest(self) -> str:
        return digest_of(self._digest, self.history, self.size)


def png_frame(files: Sequence[bytes]) -> Callable[[int], NDArray[np.uint8]]:
    """Return what decodes the picture of a step from encoded ones."""
    return lambda step: decode_pixels(files[step], max_megapixels=64.0)
