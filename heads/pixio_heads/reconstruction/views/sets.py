"""Sets of views: which views, how many and of what size, as a function of numbers alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset
from tqdm import tqdm

from pixio_heads.reconstruction.views.covisibility import Neighbours
from pixio_heads.reconstruction.views.frames import Scene
from pixio_heads.reconstruction.views.framing import framed
from pixio_heads.reconstruction.views.view_sampling import chosen
from pixio_lightning.data import (
    BadImage,
    Positions,
    RandomKey,
    Sample,
    TrainingSamples,
    digest_of,
    spread,
)
from pixio_lightning.errors import UserError
from pixio_lightning.keyed import Purpose, key_of, uniform

Size = tuple[int, int]
Item = TypeVar("Item")

_LOOKED_AT = 32  # scenes of many, and frames of a scene, that are counted
_MOST_ALONE = 0.75  # of more, every third walk of four attempts leads nowhere


@dataclass(frozen=True)
class Sets:
    """A numbered list of sets, so many of each scene.

    A sample is one set of V views: `image` uint8 `(V, H, W, 3)`; `depth` float32 `(V, H, W)`,
    z-depth in metres, 0 where it is not `valid`; `non_ambiguous`, false where nothing can be said
    of depth, as of the sky; `intrinsics` `(V, 3, 3)`; `cam2world` `(V, 4, 4)`, in the axes of the
    scene's world with its origin at the first camera; and whether it is `metric` and `synthetic`.

    Attributes:
        scenes: Where the views are from.
        views: Views of a set.
        size: Height and width of the views.
        starts: First number of each scene's sets, and their total `(N + 1,)`.
        covisibility: How much of a view its neighbour must see, see `covisibility.Neighbours`;
            what a scene says itself counts before it.
        seed: Seed of which views make a set.
        epoch: The pass; each draws other sets.
    """

    scenes: Sequence[Scene]
    views: int
    size: Size
    starts: NDArray[np.int64]
    covisibility: float
    seed: int
    epoch: int = 0

    def __len__(self) -> int:
        return int(self.starts[-1])

    def place(self, index: int) -> tuple[int, int]:
        """Return the scene of a set, and which of its sets it is."""
        scene = int(np.searchsorted(self.starts, index, side="right")) - 1
        return scene, index - int(self.starts[scene])

    def name(self, index: int) -> str:
        scene, number = self.place(index)
        return f"{self.scenes[scene].name}/{number:02d}"

    def of_scene(self, scene: int) -> range:
        """Return the numbers of the sets of a scene."""
        return range(int(self.starts[scene]), int(self.starts[scene + 1]))

    def by_data_set(self) -> list[list[int]]:
        """Return the numbers of the sets of each data set."""
        found: dict[str, list[int]] = {}
        for i, scene in enumerate(self.scenes):
            found.setdefault(scene.set_name, []).extend(self.of_scene(i))
        return [*found.values()]

    def of_data_sets(self) -> Counter[str]:
        """Return how many sets are of each data set."""
        counts: Counter[str] = Counter()
        for i, scene in enumerate(self.scenes):
            counts[scene.set_name] += len(self.of_scene(i))
        return counts

    def load(self, index: int) -> Sample:
        scene = self.scenes[self.place(index)[0]]
        random_key = RandomKey(key_of(self.name(index)), self.seed, self.epoch)
        near = Neighbours(scene.scores(), threshold=self._threshold(scene))
        shots = [framed(scene.load(i), self.size) for i in chosen(near, self.views, random_key)]
        depth = np.stack([shot.depth for shot in shots])
        valid = np.isfinite(depth) & (depth > 0)
        if not valid.any():
            raise BadImage("no valid depth")
        return {
            "image": np.stack([shot.image for shot in shots]),
            "depth": np.where(valid, depth, 0).astype(np.float32),
            "valid": valid,
            "non_ambiguous": ~(depth < 0),
            "intrinsics": np.stack([s.intrinsics for s in shots]).astype(np.float32),
            "cam2world": _near_origin(np.stack([s.cam2world for s in shots])),
            "metric": np.asarray(scene.metric),
            "synthetic": np.asarray(scene.synthetic),
        }

    def measure(
        self, indices: Iterable[int] | None = None, *, hidden: bool = False, judge: bool = True
    ) -> None:
        """Compute what sets are chosen by, where it is not on disk yet.

        It takes long for scenes of many frames, and a data worker has not the time.

        Args:
            indices: The sets that will be loaded; None for all.
            hidden: Whether to show no progress.
            judge: Whether these are sets enough to tell whether frames have neighbours.

        Raises:
            UserError: Most frames have no neighbour.
        """
        numbers = range(len(self)) if indices is None else indices
        scenes = [self.scenes[i] for i in sorted({self.place(n)[0] for n in numbers})]
        files = [file for scene in scenes if (file := scene.score_file()) and file.missing]
        if files:
            rows = sum(file.missing for file in files)
            with tqdm(
                total=rows, unit="frame", desc="covisibility", disable=hidden, leave=False
            ) as bar:
                for file in files:
                    file.complete(bar.update)
        if judge and (share := self._alone(scenes)) > _MOST_ALONE:
            raise UserError(
                f"{100 * share:.0f} % of the frames see too little of any other, in scene "
                f"'{scenes[0].name}' and on, so that sets would be one picture repeated: expected "
                "poses and depth in metres (data.depth_scale); of sparse depth, set "
                f"data.covisibility lower than {self._threshold(scenes[0]):g}"
            )

    @property
    def note(self) -> str:
        """How many of the frames are in no set with another, as far as it is known."""
        known = [s for s in _some(self.scenes) if not ((file := s.score_file()) and file.missing)]
        share = self._alone(known)
        return f"({100 * share:.2g} % of the frames see too little of any other)" if share else ""

    def _alone(self, scenes: Sequence[Scene]) -> float:
        """Return the share of frames with depth that have no neighbour, of some of the scenes."""
        alone = []
        for scene in _some(scenes):
            if len(scene) <= self.views:  # all of them make a set
                continue
            scores = scene.scores()
            near = Neighbours(scores, threshold=self._threshold(scene))
            views = _some(range(len(scene)))
            alone += [not near[view].any() for view in views if scores[view, view] > 0]
        return sum(alone) / max(1, len(alone))

    def _threshold(self, scene: Scene) -> float:
        return scene.covisibility or self.covisibility

    def shaped(self, views: int, size: Size) -> Sets:
        """Return the same list with sets of another shape."""
        return replace(self, views=views, size=size)

    def digest(self) -> str:
        return digest_of([scene.facts() for scene in self.scenes])


def _some(items: Sequence[Item]) -> list[Item]:
    """Return up to 32, evenly spread."""
    return [items[i] for i in spread(len(items), _LOOKED_AT)]


def _near_origin(cam2world: NDArray[np.float64]) -> NDArray[np.float32]:
    """Move the world's origin to the first camera: float32 has no millimetres at kilometres."""
    moved = cam2world.astype(np.float64)
    moved[:, :3, 3] -= moved[0, :3, 3]
    return moved.astype(np.float32)


@dataclass(frozen=True)
class Shapes:
    """How many views and what size the sets of each training step have.

    All positions of a global batch agree, however it is divided: they fit beside each other, and no
    process waits for one with more to do.

    Attributes:
        views: Least and greatest number of views.
        sizes: Heights and widths to draw from.
        batch_size: Sets per batch of a process of the least number of views.
        parts: Batches of a step: processes, times those that each of them accumulates.
        seed: The run's seed.
    """

    views: tuple[int, int]
    sizes: tuple[Size, ...]
    batch_size: int
    parts: int
    seed: int

    def of(self, step: int) -> tuple[int, Size]:
        """Return views and size of a step."""
        count, size = uniform(step, 2, seed=self.seed, step=0, purpose=Purpose.SHAPE)
        least, most = self.views
        return least + int(count * (most + 1 - least)), self.sizes[int(size * len(self.sizes))]

    def at(self, position: int) -> tuple[int, Size]:
        """Return views and size at a position of the stream."""
        return self.of(position // (self.batch_size * self.parts))

    def sets_of(self, views: int) -> int:
        """Return the sets of so many views in a batch of a process: fewer of more views."""
        return max(1, self.batch_size * self.views[0] // views)

    def sets_per_step(self) -> tuple[int, ...]:
        """Return the sets of a step, for each number of views that it may draw."""
        least, most = self.views
        return tuple(self.parts * self.sets_of(views) for views in range(least, most + 1))


class SetPositions(Positions):
    """Batches of positions; steps of more views use only the first of their global batch.

    Args:
        shapes: The shapes of the steps.
        rank: The process.
        world_size: How many there are.
    """

    def __init__(self, shapes: Shapes, *, rank: int, world_size: int) -> None:
        super().__init__(shapes.batch_size, rank=rank, world_size=world_size)
        self.shapes = shapes

    def __iter__(self) -> Iterator[list[int]]:
        batch, parts = self.start, self.shapes.parts
        while True:
            step, part = divmod(batch * self.world_size + self.rank, parts)
            views, _ = self.shapes.of(step)
            count = self.shapes.sets_of(views)
            first = step * parts * self.batch_size + part * count
            yield list(range(first, first + count))
            batch += 1


class SetsOfOneShape(TrainingSamples):
    """Training sets by their position in the stream, drawn anew in every pass or view."""

    samples: Sets

    def load(self, index: int, epoch: int) -> Sample:
        return replace(self.samples, epoch=epoch).load(index)


class TrainingSets(Dataset):
    """Training sets by their position in the stream, whose step decides on their shape.

    Args:
        sets: What is trained on; their own number of views and size do not matter.
        augment: Makes a training view of a set.
        shapes: The shapes of the steps.
        seed: The run's seed.
    """

    def __init__(
        self,
        sets: Sets,
        augment: Callable[[Sample, RandomKey], Sample],
        *,
        shapes: Shapes,
        seed: int,
    ) -> None:
        self.sets, self.augment, self.shapes, self.seed = sets, augment, shapes, seed

    def __getitem__(self, position: int) -> dict[str, Any]:
        """Return the set at a position; a bad one is replaced by the next, in the same shape."""
        views, size = self.shapes.at(position)
        return SetsOfOneShape(self.sets.shaped(views, size), self.augment, seed=self.seed)[position]
