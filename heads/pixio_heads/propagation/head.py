"""Propagation: how well frozen features follow objects, classes and joints through a clip.

Shapes: B clips, V frames, M frames encoded at once, h x w grid of N patches, C width of a feature,
H x W pixels of the frames as they are seen, Ho x Wo as they are stored, J joints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MetricCollection

from pixio_heads.propagation import label_propagation, picture
from pixio_heads.propagation.label_propagation import Search
from pixio_heads.propagation.metrics import UNKNOWN, metrics_of, protocol_of
from pixio_lightning.errors import UserError, at_least, at_least_1
from pixio_lightning.models import Backbone, Features, Reads
from pixio_lightning.training import Batch, Head

# Turns uint8 frames (M, 3, H, W) into features (M, N, C).
_MOST = 1000  # frames of a context, whose features are held
_Encode = Callable[[Tensor], Tensor]


class Propagation(Head):
    """What is known of the first frame is carried to all others; nothing is trained.

    Patches are compared by the cosine of their normed tokens after the last tapped block. Beside
    the backbone stand the same with the colours of the pixels as features (`colour`), with a random
    backbone of the same architecture (`random_init`), the labels of the first frame left as they
    are (`still`), and the true ones through the grid of patches and back (`grid`), which no
    features exceed by much.

    Args:
        backbone: The encoder, frozen.
        k: Patches of the context that a patch takes its label from.
        context: Last frames that are searched beside the first one.
        radius: In those, patches less than so many patches away are compared.
        temperature: Neighbours weigh ``exp(cosine / temperature)``.
        frames_per_chunk: Frames that are encoded at once, which bounds memory and changes nothing
            else.
        seed: Recorded with the results; nothing is random.
    """

    evaluation_attributes = ("labels", "num_labels")
    baseline_names = ("still", "colour", "random_init", "grid")

    def __init__(
        self,
        backbone: Backbone,
        *,
        k: int = 7,
        context: int = 20,
        radius: float = 20.0,
        temperature: float = 0.7,
        frames_per_chunk: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__(backbone, seed=seed)
        at_least_1(**{"model.k": k, "model.frames_per_chunk": frames_per_chunk})
        at_least(0, **{"model.context": context})
        if context > _MOST:
            raise UserError(f"model.context is {context}; expected at most {_MOST} frames")
        for name, number in (("radius", radius), ("temperature", temperature)):
            if not number > 0:
                raise UserError(f"model.{name} is {number}; expected more than 0")
        self.search = Search(k, context, radius, temperature)
        self.images_per_chunk = frames_per_chunk

    def build(self, backbone: Backbone) -> None:
        """Return nothing to train."""

    @property
    def reads(self) -> Reads:
        """The patches."""
        return "patches"

    @property
    def _kind(self) -> str:
        return self.evaluation_info.get("labels", "objects")

    @property
    def _count(self) -> int:
        return self.evaluation_info.get("num_labels", 0)

    def metrics(self) -> MetricCollection:
        """Return J&F of objects, mean IoU of classes, or PCK of joints."""
        return metrics_of(self._kind, self._count)

    @property
    def protocol(self) -> str:
        """Where labels come from, and what is scored."""
        search = self.search
        return (
            f"{search.k} nearest by cosine of normed patches, first frame and last "
            f"{search.context}, radius {search.radius:g} patches but in the first, T "
            f"{search.temperature:g}; {protocol_of(self._kind, self._count)}"
        )

    def scored(self, prediction: Tensor, batch: Batch) -> tuple[Tensor, ...]:
        """Return labels, the true ones, and the size of the frames that joints are in."""
        sizes = (batch["stored"],) if self._kind == "joints" else ()
        return (prediction, batch["target"], *sizes)

    # --- the way of a clip --------------------------------------------------------------------

    def forward(self, features: Features, batch: Batch) -> Tensor:
        """Return masks uint8 `(B, V, Ho, Wo)`, or joints float32 `(B, V, J, 2)`.

        Args:
            features: Of all `B * V` frames.
            batch: With `image`, and the labels of the first frame at least.
        """
        tokens = features.layers[-1].tokens
        clips = tokens.split(batch["image"].shape[1])
        return torch.stack(
            [self._carried(clip, self._clip(batch, i)) for i, clip in enumerate(clips)]
        )

    def predicted(self, batch: Batch) -> Tensor:
        """Return the same, with the features of no more than a chunk of frames at a time."""
        return self._followed(batch, self._tokens)

    def _tokens(self, frames: Tensor) -> Tensor:
        return self.encode_images(frames).layers[-1].tokens

    def _followed(self, batch: Batch, encode: _Encode) -> Tensor:
        """Return labels of all frames of each clip, by features of any kind.

        Raises:
            UserError: Nothing is known of the first frame.
        """
        if "target" not in batch:
            raise UserError(
                "Propagation needs what it is to follow: give a batch with image (1, V, 3, H, W) "
                "and target (1, 1, H, W), the mask of the first frame, uint8 both"
            )
        clips = [self._clip(batch, i) for i in range(len(batch["image"]))]
        return torch.stack([self._carried(self._each(clip, encode), clip) for clip in clips])

    def _each(self, clip: Batch, encode: _Encode) -> Iterator[Tensor]:
        """Yield features `(N, C)` frame by frame."""
        for frames in clip["image"].split(self.images_per_chunk):
            yield from encode(frames)

    def _carried(self, features: Iterable[Tensor], clip: Batch) -> Tensor:
        grid, labels = self._grid(clip), _Labels(clip, self._kind)
        shares = label_propagation.propagate(
            features, labels.to_grid(labels.first, grid), grid, self.search
        )
        # What is given is not found.
        return torch.stack(
            [labels.from_grid(own, grid) if i else labels.first for i, own in enumerate(shares)]
        )

    def _clip(self, batch: Batch, index: int) -> Batch:
        """Return one clip of a batch; of Python's, labels are of the frames as they are seen."""
        clip = {name: batch[name][index] for name in ("image", "target", "stored") if name in batch}
        labelled = clip["image"] if self._kind == "joints" else clip["target"]
        seen = torch.tensor(labelled.shape[-2:], device=labelled.device)
        return {"stored": seen} | clip

    def _grid(self, clip: Batch) -> tuple[int, int]:
        height, width = clip["image"].shape[-2:]
        return height // self.backbone.stride, width // self.backbone.stride

    # --- what stands beside it ----------------------------------------------------------------

    def baselines(self, batch: Batch) -> dict[str, Tensor]:
        """Return labels as `forward` does, of what has not learned to look."""
        target = batch["target"]
        clips = [self._clip(batch, i) for i in range(len(target))]
        still = [_Labels(clip, self._kind).first.expand_as(clip["target"]) for clip in clips]
        return {
            "still": torch.stack(still),
            "colour": self._followed(batch, self._colours),
            "random_init": self._followed(batch, self._random_tokens),
            "grid": torch.stack([self._through_grid(clip) for clip in clips]),
        }

    def _colours(self, frames: Tensor) -> Tensor:
        """Return the pixels of each patch, `(M, N, 3 * stride^2)`."""
        pixels = F.pixel_unshuffle(frames.float() / 255, self.backbone.stride)
        return pixels.flatten(2).transpose(1, 2)

    def _random_tokens(self, frames: Tensor) -> Tensor:
        return self.encode_untrained(frames).layers[-1].tokens

    def _through_grid(self, clip: Batch) -> Tensor:
        grid, labels = self._grid(clip), _Labels(clip, self._kind)
        found = [labels.from_grid(labels.to_grid(one, grid), grid) for one in clip["target"][1:]]
        return torch.stack([labels.first, *found])

    # --- files --------------------------------------------------------------------------------

    def on_predict_start(self) -> None:
        """Say that there will be no videos where nothing writes them."""
        super().on_predict_start()
        if not picture.WRITES_VIDEOS:
            self.note("no videos are written: pip install 'pixio-lightning[video]'")

    def write(self, prediction: Tensor, batch: Batch, folder: Path) -> None:
        """Write NAME/00000.png and so on, or NAME.csv of joints; a video, and a strip of frames.

        Where all of the clip is labelled, both show the truth beside what was found.
        """
        joints = self._kind == "joints"
        for i, name in enumerate(batch["name"]):
            clip, found = self._clip(batch, i), prediction[i].cpu()
            (picture.write_joints if joints else picture.write_masks)(folder, name, found)
            frames, stored = clip["image"].cpu(), clip["stored"].tolist()
            rows = [picture.drawn(frames, found, stored, joints=joints)]
            if len(truth := clip["target"].cpu()) == len(found):
                rows.insert(0, picture.drawn(frames, truth, stored, joints=joints))
            if picture.WRITES_VIDEOS:
                picture.film(folder, name, torch.cat(rows, dim=3))
            self.show(folder, name, picture.strip(rows))


class _Labels:
    """What is known of a clip's first frame, on the grid of patches and back.

    Args:
        clip: `image` `(V, 3, H, W)`, `target` and `stored`.
        kind: `objects`, `classes` or `joints`.

    Attributes:
        first: The first frame's, in which what is unknown is background.
    """

    def __init__(self, clip: Batch, kind: str) -> None:
        self.joints = kind == "joints"
        self.size, self.stored = tuple(clip["image"].shape[-2:]), clip["stored"]
        self.first = clip["target"][0]
        if not self.joints:
            self.first = torch.where(self.first == UNKNOWN, 0, self.first)
            numbers = self.first.unique().long()
            # 0 also where the first frame has none of it: what is unknown later has to be of it.
            self.ids = torch.cat([numbers.new_zeros(1), numbers[numbers > 0]])

    def to_grid(self, labels: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return labels of patches `(N, L)`."""
        if self.joints:
            return label_propagation.joints_to_grid(labels, self.stored.float(), grid)
        return label_propagation.mask_to_grid(labels, self.ids, self.size, grid)

    def from_grid(self, shares: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return a mask `(Ho, Wo)` or joints `(J, 2)`."""
        if self.joints:
            return label_propagation.grid_to_joints(shares, self.stored.float(), grid)
        stored = self.stored.tolist()
        return label_propagation.grid_to_mask(shares, self.ids, grid, self.size, stored)
