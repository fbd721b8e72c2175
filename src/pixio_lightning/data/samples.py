"""Samples of a task: an image and what the task is told about it, decoded and augmented by key.

A sample is a dict of numpy arrays: `image`, uint8 `(H, W, 3)` or `(V, H, W, 3)`, and any others; it
may have no image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from pixio_lightning.data.batches import Bad, collate, none_usable
from pixio_lightning.data.decode import BadImage, Crop, centre, decode_crop, decode_pixels
from pixio_lightning.data.hub import HubRows
from pixio_lightning.data.sources import Source
from pixio_lightning.errors import UserError
from pixio_lightning.keyed import RandomKey, key_of, permuted

Sample = dict[str, NDArray[Any]]
# A sample as tensors, or its name and why it cannot be used.
View = dict[str, Any] | Bad

# Even where nine of ten samples are bad, a run of so many never occurs.
_LONGEST_RUN = 1000


class Loaded(Protocol):
    """A numbered list of decoded samples."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Return the sample's name: unique, stable, and a relative path where there are files."""
        ...

    def load(self, index: int) -> Sample:
        """Return the sample; raises BadImage or OSError where it cannot be used."""
        ...


class Samples(Loaded, Protocol):
    """A numbered list of decoded samples that can tell if it is another one."""

    def digest(self) -> str:
        """Return a short hash that changes when any sample does."""
        ...


def refuse_shared(
    train: Source | Loaded, held_out: Source | Loaded, path: str | None, *, ways: str
) -> None:
    """Refuse held-out samples that are trained on as well; their names mean the same in both.

    Args:
        train: What is trained on.
        held_out: What is held out.
        path: Of both, for the message.
        ways: What is to be done.

    Raises:
        UserError: There are such samples.
    """
    if isinstance(train, HubRows) and isinstance(held_out, HubRows):
        count, first = held_out.shared(train)
    else:
        trained_on = {train.name(i) for i in range(len(train))}
        names = (held_out.name(i) for i in range(len(held_out)))
        shared = [name for name in names if name in trained_on]
        count, first = len(shared), next(iter(shared), "")
    if count:
        raise UserError(
            f"{count:,} of {len(held_out):,} held-out samples of '{path}' are trained on as "
            f"well, '{first}' for one: {ways}"
        )


@dataclass(frozen=True)
class Images:
    """The images of a source, each a sample of its own.

    Args:
        source: Encoded images.
        max_megapixels: Larger images are bad.
    """

    source: Source
    max_megapixels: float

    def __len__(self) -> int:
        return len(self.source)

    def name(self, index: int) -> str:
        return self.source.name(index)

    def load(self, index: int) -> Sample:
        data = self.source.read(index)
        return {"image": decode_pixels(data, max_megapixels=self.max_megapixels)}


@runtime_checkable
class FrameSamples(Samples, Protocol):
    """Samples whose images are frames that several of them share, as histories of three do.

    `load` returns a sample without its image. A cache of features keeps each frame once.
    """

    def frames(self, index: int) -> list[str]:
        """Return the names of a sample's V images, in order; none for a sample without."""
        ...

    def frame(self, name: str) -> NDArray[np.uint8]:
        """Return a frame `(H, W, 3)` as the backbone is shown it; raises as `load`."""
        ...


def to_tensors(sample: Sample) -> dict[str, Any]:
    """Turn arrays into tensors; of an image, the channels first, with its `size` (H, W)."""
    tensors: dict[str, Any] = {
        name: torch.from_numpy(np.asarray(array, order="C"))
        for name, array in sample.items()
        if name != "image"
    }
    if "image" not in sample:
        return tensors
    array = sample["image"]
    axes = (*range(array.ndim - 3), -1, -3, -2)  # np.moveaxis takes as long as a small crop
    image = torch.from_numpy(np.ascontiguousarray(array.transpose(axes)))
    return {"image": image, "size": tuple(image.shape[-2:])} | tensors


def usable(make: Callable[[], dict[str, Any]], name: str) -> View:
    """Return the view that a function makes, or its name and why it cannot be used."""
    try:
        return make()
    except BadImage as error:
        return error.name or name, str(error)
    except OSError as error:
        return name, f"cannot be read ({error.strerror or type(error).__name__})"


class SampleViews(Dataset):
    """What both sets of samples share: how a view is made, or read from a store.

    Args:
        samples: What views are made of.
        store: Views that are read instead of made, by the names that `stored` lists.
    """

    def __init__(self, samples: Loaded, store: Mapping[str, View] | None) -> None:
        self.samples, self.store = samples, store
        self.frames = samples if isinstance(samples, FrameSamples) else None

    def load(self, index: int, epoch: int) -> Sample:
        """Return the sample that a view is made of; raises as that of samples."""
        sample = self.samples.load(index)
        frames = self.frames if self.store is None else None
        if frames is not None and (names := frames.frames(index)):
            sample["image"] = np.stack([frames.frame(name) for name in names])
        return sample

    def make(
        self, index: int, epoch: int, name_stored: str, prepare: Callable[[Sample], Sample]
    ) -> View:
        """Return a view, with its name and key; of frames in a store, their features."""
        name = self.samples.name(index)
        about: dict[str, Any] = {"key": key_of(name), "name": name}
        if self.store is not None and self.frames is None:
            return _about(self.store[name_stored], about)
        sample = usable(lambda: self.load(index, epoch), name)
        if isinstance(sample, tuple):
            return sample
        try:
            view = to_tensors(prepare(sample)) | about
        except BadImage as error:  # an OSError is none of the sample's: it was read
            return name, str(error)
        if self.store is None or self.frames is None:
            return view
        names = self.frames.frames(index)
        return _with_features(view, [self.store[name] for name in names])


def _with_features(view: dict[str, Any], frames: list[View]) -> View:
    """Add the features of V frames, `(V, L, n, C)`, to what they are images of."""
    features = []
    for frame in frames:
        if not isinstance(frame, dict):
            return view["name"], frame[1]
        features.append(frame["features"])
        view |= {"size": frame["size"], "grid": frame["grid"]}
    return view | {"features": torch.cat(features)} if features else view


class Frames:
    """The frames of samples, each once: what a cache stores of them.

    Args:
        samples: Whose frames they are.
        indices: Of which samples.
    """

    def __init__(self, samples: FrameSamples, indices: Iterable[int]) -> None:
        self.samples = samples
        self.names = list(dict.fromkeys(name for i in indices for name in samples.frames(i)))

    def fixed_views(self) -> list[tuple[str, tuple[str]]]:
        """Return all frames: their names, and what `view` takes."""
        return [(name, (name,)) for name in self.names]

    def view(self, name: str) -> View:
        """Return a frame as a sample of one view."""
        about = {"key": key_of(name), "name": name}
        return usable(lambda: to_tensors({"image": self.samples.frame(name)[None]}) | about, name)


class TrainingSamples(SampleViews):
    """Augmented samples by their position in the endless stream.

    Args:
        samples: What is trained on.
        augment: Makes a training view of a sample.
        seed: The run's seed.
        views: Number of fixed views of each sample; None makes a new one in every pass.
        store: Views that are read instead of made, by the names of `fixed_views`.
    """

    def __init__(
        self,
        samples: Loaded,
        augment: Callable[[Sample, RandomKey], Sample],
        *,
        seed: int,
        views: int | None = None,
        store: Mapping[str, View] | None = None,
    ) -> None:
        super().__init__(samples, store)
        self.augment, self.seed, self.views = augment, seed, views

    @property
    def stored(self) -> TrainingSamples | Frames:
        """What a cache stores: all fixed views, or the frames they share."""
        return Frames(self.frames, range(len(self.samples))) if self.frames else self

    def fixed_views(self) -> list[tuple[str, tuple[int, int]]]:
        """Return all fixed views: their names, and what `view` takes."""
        numbers = range(len(self.samples))
        turns = range(self.views or 1)
        return [(f"{self.samples.name(i)}#{t}", (i, t)) for i in numbers for t in turns]

    def locate(self, position: int) -> tuple[int, int]:
        """Return the sample's index and its view for a position in the stream."""
        n = len(self.samples)
        epoch, offset = divmod(position, n)
        index = permuted(offset, n, seed=self.seed, step=epoch)
        return index, epoch % self.views if self.views else epoch

    def view(self, index: int, epoch: int) -> View:
        """Return a view of a sample."""
        name = self.samples.name(index)
        random_key = RandomKey(key_of(name), self.seed, epoch)
        return self.make(
            index, epoch, f"{name}#{epoch}", lambda sample: self.augment(sample, random_key)
        )

    def __getitem__(self, position: int) -> dict[str, Any]:
        """Return the view at a position; a bad one is replaced by the next of the stream."""
        bad: list[Bad] = []
        for candidate in range(position, position + min(len(self.samples), _LONGEST_RUN)):
            found = self.view(*self.locate(candidate))
            if isinstance(found, dict):
                return found | {"bad": bad}
            bad.append(found)
        return {"bad": bad}


class Crops(TrainingSamples):
    """Crops with their keys alone: in pretraining nothing is asked of an image but its pixels.

    Args:
        images: What they are cut out of.
        draw: Returns a crop's box by width, height and `random_key`.
        size: Side of a crop in pixels.
        seed: The run's seed.
    """

    def __init__(self, images: Images, draw: Callable[..., Crop], size: int, *, seed: int) -> None:
        super().__init__(images, lambda crop, random_key: crop, seed=seed)
        self.images, self.draw, self.size = images, draw, size

    def load(self, index: int, epoch: int) -> Sample:
        """Return a crop as a sample: the box is drawn before the image is decoded."""
        random_key = RandomKey(key_of(self.images.name(index)), self.seed, epoch)
        draw = partial(self.draw, random_key=random_key)
        data, bound = self.images.source.read(index), self.images.max_megapixels
        return {"image": decode_crop(data, draw, self.size, max_megapixels=bound)}

    def view(self, index: int, epoch: int) -> View:
        found = super().view(index, epoch)
        return {k: found[k] for k in ("image", "key")} if isinstance(found, dict) else found


class HeldOutSamples(SampleViews):
    """Every sample once, as it is evaluated; index -1 pads a batch with weight 0.

    Args:
        samples: What is evaluated on.
        prepare: Makes the evaluation view of a sample.
        indices: Which of them; None takes all.
        store: Views that are read instead of made, by the names of `fixed_views`.
    """

    def __init__(
        self,
        samples: Loaded,
        prepare: Callable[[Sample], Sample],
        *,
        indices: list[int] | None = None,
        store: Mapping[str, View] | None = None,
    ) -> None:
        super().__init__(samples, store)
        self.prepare = prepare
        self.indices = list(range(len(samples))) if indices is None else indices

    @property
    def stored(self) -> HeldOutSamples | Frames:
        """What a cache stores: all of them, or the frames they share."""
        return Frames(self.frames, self.indices) if self.frames else self

    def __len__(self) -> int:
        return len(self.indices)

    def fixed_views(self) -> list[tuple[str, tuple[int]]]:
        """Return all views: their names, and what `view` takes."""
        return [(self.samples.name(index), (index,)) for index in self.indices]

    def view(self, index: int) -> View:
        """Return a sample as it is evaluated."""
        return self.make(index, 0, self.samples.name(index), self.prepare)

    def __getitem__(self, position: int) -> dict[str, Any]:
        """Return a sample; in place of a bad one the next that can be used, with weight 0."""
        bad: list[Bad] = []
        weight = float(position >= 0)
        for step in range(min(len(self), _LONGEST_RUN)):
            found = self.view(self.indices[(max(position, 0) + step) % len(self)])
            if isinstance(found, dict):
                return found | {"weight": weight, "bad": bad}
            if weight:
                bad, weight = [found], 0.0
        return {"bad": bad or [(self.samples.name(self.indices[0]), "no sample can be used")]}

    def batch(self) -> dict[str, Any]:
        """Return all of them as one batch.

        Raises:
            UserError: None can be used.
        """
        batch = collate([self[i] for i in range(len(self))])
        bad = batch.pop("bad")
        if not batch:
            raise none_usable(bad)
        return batch


def centre_cropped(
    source: Source, size: int, max_megapixels: float, indices: list[int] | None = None
) -> HeldOutSamples:
    """Return images of a source, or some of them, each once and centre-cropped.

    Args:
        source: Encoded images.
        size: Side of the crops in pixels.
        max_megapixels: Larger images are bad.
        indices: Which of them; None takes all.
    """

    def prepare(sample: Sample) -> Sample:
        return {"image": centre(sample["image"], size)}

    return HeldOutSamples(Images(source, max_megapixels), prepare, indices=indices)


def _about(view: View, about: dict[str, Any]) -> View:
    return view | about if isinstance(view, dict) else (about["name"], view[1])


def spread(total: int, limit: int | None) -> list[int]:
    """Return at most `limit` of `total` indices, evenly spread."""
    count = min(total, limit or total)
    return [i * total // count for i in range(count)]
