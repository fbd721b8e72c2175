"""ImagesToScore: every image of shards once, shard by shard, with what a score needs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from pixio_lightning.data.batches import collate
from pixio_lightning.data.decode import BadImage, centre_crop, decode_pixels, to_tensor
from pixio_lightning.data.pixels import Pixels
from pixio_lightning.data.shards.format import ShardIndex
from pixio_lightning.data.shards.score_files import check_shard, score_file
from pixio_lightning.data.shards.set import ShardSource
from pixio_lightning.data.stream import Loader
from pixio_lightning.errors import UserError
from pixio_lightning.keyed import key_of

ENTROPY = "256 bins a channel, mean of three, bits"  # kept with the scores
_PIXELS = 65_536  # an image is thinned to about so many before its colours are counted


def colour_entropy(pixels: NDArray[np.uint8]) -> float:
    """Return the entropy of an image's colour histograms, in bits.

    ``-sum p_i log2 p_i`` over the 256 levels of a channel, averaged over red, green and blue: 0 for
    one colour, 8 where all levels are equal. A page of black text lies far below a photograph.
    Pixio drops images at or below 4.5 but gives neither bins nor base; these are ours, for which
    4.5 keeps photographs.

    Args:
        pixels: `(H, W, 3)`; of large images every second, third, ... row and column is counted.
    """
    step = max(1, round((pixels.shape[0] * pixels.shape[1] / _PIXELS) ** 0.5))
    thin = pixels[::step, ::step]
    total = 0.0
    for channel in range(3):
        counts = np.bincount(thin[..., channel].ravel(), minlength=256)
        p = counts[counts > 0] / counts.sum()
        total -= float((p * np.log2(p)).sum())
    return total / 3


class ScoredImages(Dataset):
    """Images of shards, centre-cropped, with entropy and size; a bad one has weight 0.

    Args:
        index: The shards.
        groups: Groups to read.
        size: Side of the crop in pixels.
        max_megapixels: Larger images are not decoded.
    """

    def __init__(
        self, index: ShardIndex, groups: NDArray[np.int64], *, size: int, max_megapixels: float
    ) -> None:
        self.index, self.size, self.max_megapixels = index, size, max_megapixels
        self.source = ShardSource(index, groups, limit=index.rows)
        starts = [np.cumsum([0, *shard.group_rows[:-1]]) for shard in index.shards]
        self.starts = np.concatenate([*starts, [0]]).astype(np.int64)

    def __getitem__(self, position: int) -> dict[str, Any]:
        """Return an image with its place: number of the shard, and row."""
        image = self.source.encoded(position)
        group, row = self.source.place(position)
        shard, _ = self.index.locate(group)
        facts = self.describe(
            b"" if image.reason else image.data, size=self.size, max_megapixels=self.max_megapixels
        )
        reason = image.reason or facts.pop("reason")
        facts.pop("reason", None)
        name = f"{self.index.shards[shard].path}:{image.key}"
        return facts | {
            "key": key_of(image.key),
            "weight": 0.0 if reason else 1.0,
            "shard": shard,
            "row": int(self.starts[group]) + row,
            "bad": [(name, reason)] if reason else [],
        }

    @staticmethod
    def describe(data: bytes, *, size: int, max_megapixels: float) -> dict[str, Any]:
        """Decode an image: crop, entropy, width, height, and the reason if it cannot be used."""
        try:
            pixels = decode_pixels(data, max_megapixels=max_megapixels)
        except BadImage as error:
            empty = torch.zeros(3, size, size, dtype=torch.uint8)
            facts = {"image": empty, "entropy": 0.0, "width": 0, "height": 0}
            return facts | {"reason": str(error)}
        height, width = pixels.shape[:2]
        return {
            "image": to_tensor(pixels, centre_crop(width, height), size),
            "entropy": colour_entropy(pixels),
            "width": width,
            "height": height,
            "reason": "",
        }


class WholeGroups(Sampler[list[int]]):
    """Batches that never straddle two groups, in an order by which each worker reads its own.

    Workers take batches in turns: so many groups are taken together, and of each a batch in turn.
    A few are read by several where groups are of different lengths, and at the end.

    Args:
        index: Has the groups.
        groups: Those to read.
        batch_size: Rows of a batch, at most.
        workers: How many take them in turns.
    """

    def __init__(
        self, index: ShardIndex, groups: NDArray[np.int64], batch_size: int, *, workers: int
    ) -> None:
        split: list[list[range]] = []
        start = 0
        for group in groups:
            end = start + index.rows_of(int(group))
            # Even parts: 100 rows at 64 are 50 and 50, not 64 and 36.
            parts = -(-(end - start) // batch_size)
            bounds = [start + (end - start) * i // max(1, parts) for i in range(parts + 1)]
            split.append([range(a, b) for a, b in zip(bounds[:-1], bounds[1:], strict=True)])
            start = end
        together = max(1, workers)
        self.batches = [
            batch
            for first in range(0, len(split), together)
            for turn in zip_longest(*split[first : first + together])
            for batch in turn
            if batch is not None
        ]

    def __iter__(self) -> Iterator[list[int]]:
        return (list(batch) for batch in self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class ImagesToScore(Pixels):
    """The images of shards, or of the rendered scenes, each once; see `Pixels` for the keys.

    Shards are shared by the processes; those whose scores are there are left out. The size of the
    images is that of the model that scores them.
    """

    def setup(self, stage: str) -> None:
        """Open the index."""
        if stage != "predict":
            raise UserError("scores are written by `pixio predict -c curation/score`")
        self.index: ShardIndex = self.shard_index()
        self.count_bad(self.index.damaged, 0)

    def prepare_data(self) -> None:
        """Build the index once."""
        self.shard_index()

    @property
    def bad_file(self) -> Path:
        """Where bad images are listed: in the run folder, as what was scored is not read again."""
        return Path(self.trainer.default_root_dir) / "bad_files.txt"

    def training_size(self) -> int:
        """Return the number of images to score, by which bad ones are judged."""
        return self.index.rows

    def predict_dataloader(self) -> Loader:
        """Return the images of this process's shards that have no scores yet."""
        trainer: Any = self.trainer
        folder = f"{trainer.default_root_dir}/scores"
        shards = self.index.shards
        mine = range(trainer.global_rank, len(shards), trainer.world_size)
        left = []
        for n in mine:
            path = score_file(folder, shards[n].path)
            if path.exists():
                check_shard(shards[n], path)
            elif shards[n].rows:
                left.append(n)
        groups = np.array([g for n in left for g in self.index.groups_of(n)], np.int64)
        images = ScoredImages(
            self.index, groups, size=self.image_size, max_megapixels=self.max_megapixels
        )
        batches = WholeGroups(self.index, groups, self.batch_size, workers=self.num_workers)
        arguments = self.loader_arguments | {"collate_fn": collate}
        return Loader(DataLoader(images, batch_sampler=batches, **arguments), self.count_bad)
