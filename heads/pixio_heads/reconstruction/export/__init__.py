"""Export of a reconstruction: point clouds, cameras and arrays, as other programs read them.

| format     | files                                  | what is in them                            |
|------------|----------------------------------------|--------------------------------------------|
| ply        | points.ply                             | points with colours                        |
| glb        | scene.glb                              | points and cameras, upright                |
| colmap     | sparse/0/{cameras,images,points3D}.txt | cameras of the original pictures, points; .bin where a name has spaces |
| transforms | transforms.json                        | the same cameras in Nerfstudio's form      |
| npz        | reconstruction.npz                     | all arrays; `python -m pixio_heads.reconstruction.drawing.viewer` shows it |
| depth      | depth/NAME.npy, intrinsics.json        | metres and cameras at the original resolution |

Every file says in what axes its poses are.
"""  # noqa: E501  (the table is read across)

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from pixio_heads.reconstruction.export import points
from pixio_heads.reconstruction.export.cloud import select
from pixio_heads.reconstruction.export.colmap import colmap
from pixio_heads.reconstruction.export.transforms import depth_names, transforms
from pixio_heads.reconstruction.reconstructed import (
    CONVENTION,
    Reconstructed,
    original_depth,
    original_intrinsics,
)
from pixio_lightning.errors import UserError, one_of
from pixio_lightning.files import write_bytes

Format = Literal["ply", "glb", "colmap", "transforms", "npz", "depth"]


@dataclass(frozen=True)
class Export:
    """What to export.

    Attributes:
        formats: Any of `ply`, `glb`, `colmap`, `transforms`, `npz`, `depth`. Depth at the original
            resolution takes 4 bytes a pixel.
        max_points: Points at most, in every format but npz, which holds all; null for all.
        voxel_size: Side of cubes in metres of which each keeps one point; null for none.
        confidence_percentile: Percent of the least confident pixels to drop.
        edge_mask: Whether to drop pixels on the edges of objects.
    """

    formats: tuple[Format, ...] = ("ply", "glb", "colmap", "transforms", "npz")
    max_points: int | None = 1_000_000
    voxel_size: float | None = None
    confidence_percentile: float = 10.0
    edge_mask: bool = True

    def __post_init__(self) -> None:
        for form in self.formats:
            one_of("model.export.formats", form, get_args(Format))
        for name, limit in (("max_points", self.max_points), ("voxel_size", self.voxel_size)):
            if limit is not None and limit <= 0:
                raise UserError(
                    f"model.export.{name} is {limit}, but expected more than 0, or null"
                )
        if not 0 <= self.confidence_percentile < 100:
            raise UserError(
                f"model.export.confidence_percentile is {self.confidence_percentile:g}, but "
                "expected 0 to 100, the percent of pixels to drop"
            )


def export(
    found: Reconstructed,
    folder: Path,
    options: Export = Export(),  # noqa: B008 (frozen)
    *,
    pictures: Sequence[Path] | None = None,
) -> list[Path]:
    """Write a reconstruction to a folder, each file whole or not at all.

    Args:
        found: The reconstruction; it stays as it is.
        folder: Made where it is missing; files of the same names are replaced, and so is a model
            of COLMAP in its other form, text or binary.
        options: What to export.
        pictures: The original pictures, if they are files elsewhere than in `folder`.

    Returns:
        The files written.
    """
    formats = options.formats
    cloud = select(
        found,
        max_points=options.max_points,
        voxel_size=options.voxel_size,
        confidence_percentile=options.confidence_percentile,
        edge_mask=options.edge_mask,
    )
    depths = depth_names(found.names)
    # Made one after the other as they are written: the depth of all pictures may fill the memory.
    files: dict[str, Callable[[], bytes]] = {}
    if "ply" in formats:
        files["points.ply"] = lambda: points.ply(cloud)
    if "glb" in formats:
        files["scene.glb"] = lambda: points.glb(found, cloud)
    if "colmap" in formats:
        for name, data in colmap(found, cloud).items():
            files[f"sparse/0/{name}"] = lambda data=data: data  # type: ignore[misc]
            _remove_other_form(folder / "sparse" / "0" / name)
    if "npz" in formats:
        files["reconstruction.npz"] = lambda: _arrays(found)
    if "depth" in formats:
        for view, name in enumerate(depths):
            files[name] = lambda view=view: _depth(found, view)  # type: ignore[misc]
        files["intrinsics.json"] = lambda: _intrinsics(found)
    if "transforms" in formats:
        files["transforms.json"] = lambda: transforms(
            found,
            files=pictures,
            depths=depths if "depth" in formats else None,
            cloud="points.ply" if "ply" in formats else None,
        )
    for name, make in files.items():
        write_bytes(folder / name, make())
    return [folder / name for name in files]


def _remove_other_form(path: Path) -> None:
    """Remove what COLMAP would read in place of a file that is to be written: .bin before .txt."""
    path.with_suffix(".bin" if path.suffix == ".txt" else ".txt").unlink(missing_ok=True)


def _arrays(found: Reconstructed) -> bytes:
    arrays: dict[str, Any] = found._asdict() | {
        "names": np.array(found.names),
        "original_intrinsics": original_intrinsics(found),
        "camera_convention": np.array(CONVENTION),
    }
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _depth(found: Reconstructed, view: int) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, original_depth(found, view))
    return buffer.getvalue()


def _intrinsics(found: Reconstructed) -> bytes:
    matrices = zip(found.names, original_intrinsics(found).tolist(), strict=True)
    return (json.dumps(dict(matrices), indent=1) + "\n").encode()
