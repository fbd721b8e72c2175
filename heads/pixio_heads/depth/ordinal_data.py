"""OrdinalData: images with pairs of points of which one is nearer, of DA-2K or of the scenes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixio_lightning.data import (
    Archive,
    BadImage,
    RandomKey,
    Sample,
    SampleData,
    Samples,
    Scenes,
    SceneSamples,
    decode_pixels,
    digest_of,
    known_places,
)
from pixio_lightning.errors import UserError, at_least_1, nearest
from pixio_lightning.files import parse_json
from pixio_lightning.keyed import Purpose, key_of

# The scene types of DA-2K (arXiv 2406.09414), and the folders of its images.
KINDS = (
    *("indoor", "outdoor", "non_real", "transparent_reflective"),
    *("adverse_style", "aerial", "underwater", "object"),
)
# One depth of a pair drawn from the scenes is at least so many times the other.
_RATIO = 1.1
_TRIES = 64  # pairs drawn for each one that is wanted


class OrdinalData(SampleData):
    """Images with `points` int64 `(N, 2, 2)` and `kind`, the index of the scene type.

    A pair is the nearer point and the farther one, each (row, column).

    Args:
        source: `scenes`, whose pairs are drawn from their depth, or `da2k`.
        path: DA-2K's zip as it is, or its unpacked folder.
        pairs: Pairs of each view of the scenes.
        batch_size: Images per process and step.
        val_batch_size: Images per process and evaluation step; those of DA-2K differ in size.

    Raises:
        UserError: A key does not fit the source.
    """

    sources = ("scenes", "da2k")
    incidental = ("seed",)

    def __init__(
        self,
        source: str = "scenes",
        path: str | None = None,
        *,
        pairs: int = 4,
        batch_size: int = 4,
        val_batch_size: int = 1,
        **loading: Any,
    ) -> None:
        super().__init__(
            source, path, batch_size=batch_size, val_batch_size=val_batch_size, **loading
        )
        self.read_by("scenes", pairs=pairs)
        at_least_1(**{"data.pairs": pairs})
        self.pairs = pairs
        self.kinds = KINDS if source == "da2k" else tuple(known_places(self.scenes.places))

    def open(self, split: str) -> Samples:
        """Return the samples of a split."""
        if self.source == "scenes":
            return OrdinalScenes(split, self.scenes, pairs=self.pairs, kinds=self.kinds)
        if split == "train":
            raise UserError(
                "data.source da2k is there to be tested on, but training images are asked for: "
                "use `pixio test`"
            )
        return Da2kSamples(self.path or "", max_megapixels=self.max_megapixels)


class OrdinalScenes(SceneSamples):
    """Views of rendered scenes with pairs of points, the same ones every time.

    Args:
        split: As of `SceneSamples`.
        scenes: How many scenes and views.
        pairs: Pairs of each view.
        kinds: The places that scenes may be.
    """

    def __init__(self, split: str, scenes: Scenes, *, pairs: int, kinds: tuple[str, ...]) -> None:
        super().__init__(split, scenes, ("image", "depth", "valid", "room_type"))
        self.pairs, self.kinds = pairs, kinds

    def load(self, index: int) -> Sample:
        view = super().load(index)
        random_key = RandomKey(key_of(self.name(index)), seed=0, step=0)
        points = drawn_pairs(view["depth"], view["valid"], self.pairs, random_key)
        kind = self.kinds.index(str(view["room_type"]))
        return {"image": view["image"], "points": points, "kind": np.asarray(kind)}

    def digest(self) -> str:
        return digest_of("ordinal", super().digest(), self.pairs)


def drawn_pairs(
    depth: NDArray[np.float32], valid: NDArray[np.bool_], count: int, random_key: RandomKey
) -> NDArray[np.int64]:
    """Draw pairs of valid pixels whose depths differ by a tenth: `(count, 2, 2)`, nearer first.

    Raises:
        BadImage: There are too few such pairs.
    """
    size = np.asarray(depth.shape)
    shares = np.reshape(random_key.uniform(4 * count * _TRIES, Purpose.CROP), (-1, 2, 2))
    points = (shares * size).astype(np.int64)
    known = valid[points[..., 0], points[..., 1]].all(1)
    first, second = depth[points[..., 0], points[..., 1]].T
    apart = np.maximum(first, second) > _RATIO * np.minimum(first, second)
    nearer_first = np.where((first < second)[:, None, None], points, points[:, ::-1])
    found = nearer_first[known & apart][:count]
    if len(found) < count:
        raise BadImage("too few pairs of points that differ in depth")
    return found


class Da2kSamples:
    """Images of DA-2K with their annotated pairs.

    Args:
        path: The zip or its unpacked folder, with `annotations.json` in it.
        max_megapixels: Larger images are bad.

    Raises:
        UserError: The annotations are missing or of another form, or an image is of no scene type.
    """

    def __init__(self, path: str, *, max_megapixels: float) -> None:
        self.archive, self.max_megapixels = Archive(path, "data.path"), max_megapixels
        tables = [name for name in self.archive.names if name.endswith("annotations.json")]
        if not tables:
            raise UserError(
                f"data.path '{path}' holds no annotations.json; give DA-2K's zip or its folder"
            )
        self.base = tables[0].removesuffix("annotations.json")
        try:
            annotations = parse_json(self.archive.read(tables[0]).decode())
            self.images = {name: _pairs(found) for name, found in annotations.items()}
            if not self.images:
                raise ValueError("no image")
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError, BadImage):
            raise UserError(
                f"{tables[0]} of '{path}' is not DA-2K's: expected, by image, a list of point1, "
                "point2 and closer_point, which names one of them"
            ) from None
        self.names = sorted(self.images)
        for name in self.names:
            folder = name.split("/")[-2] if "/" in name else ""
            if folder not in KINDS:
                raise UserError(
                    f"{tables[0]}: the image {name} lies in the folder '{folder}', which is no "
                    f"scene type{nearest(folder, KINDS) or '; '}expected {', '.join(KINDS)}"
                )

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return self.names[index]

    def load(self, index: int) -> Sample:
        name = self.names[index]
        data = self.archive.read(self.base + name)
        image = decode_pixels(data, max_megapixels=self.max_megapixels)
        points = self.images[name]
        if not len(points) or (points < 0).any() or (points >= image.shape[:2]).any():
            raise BadImage("no pair of points, or one outside of the image")
        kind = KINDS.index(name.split("/")[-2])
        return {"image": image, "points": points, "kind": np.asarray(kind)}

    def digest(self) -> str:
        return digest_of("da2k", self.archive.digest())


def _pairs(annotations: list[dict[str, Any]]) -> NDArray[np.int64]:
    """Return `(N, 2, 2)`, the nearer point of each pair first."""
    pairs = []
    for found in annotations:
        points = {name: found[name] for name in ("point1", "point2")}
        nearer = points.pop(found["closer_point"])
        pairs.append([nearer, *points.values()])
    return np.reshape(np.asarray(pairs, dtype=np.int64), (-1, 2, 2))
