"""Point clouds as PLY, and as GLB with the cameras beside them; trimesh writes the bytes."""

from __future__ import annotations

import numpy as np
import trimesh
from numpy.typing import NDArray
from trimesh.path.entities import Line

from pixio_heads.reconstruction.drawing.frusta import frusta, frustum_length, view_colour
from pixio_heads.reconstruction.export.cloud import Cloud
from pixio_heads.reconstruction.reconstructed import CONVENTION, Reconstructed

# From OpenCV axes to those of glTF (y up, z towards the viewer), so that viewers show it upright.
_TO_GLTF = np.diag([1.0, -1, -1, 1])

_EMPTY_PLY = b"""ply
format binary_little_endian 1.0
element vertex 0
property float x
property float y
property float z
property uchar red
property uchar green
property uchar blue
property uchar alpha
end_header
"""


def ply(cloud: Cloud) -> bytes:
    """Return a binary PLY of points in the frame of view 0, metres, with sRGB colours."""
    data = _EMPTY_PLY
    if len(cloud.points):
        data = trimesh.PointCloud(cloud.points, colors=cloud.colours).export(file_type="ply")
    about = f"\ncomment points in metres; {CONVENTION}\nelement vertex".encode()
    return data.replace(b"\nelement vertex", about, 1)


def glb(found: Reconstructed, cloud: Cloud) -> bytes:
    """Return a GLB of points and cameras, turned to glTF's axes by the matrices of its nodes.

    Colours are linear there, as glTF 2.0 (section 3.9.2) wants those of vertices.
    """
    scene = trimesh.Scene()
    scene.metadata["camera_convention"] = CONVENTION
    if len(cloud.points):
        points = trimesh.PointCloud(cloud.points, colors=linear(cloud.colours))
        scene.add_geometry(points, node_name="points", geom_name="points", transform=_TO_GLTF)
    cameras = frusta(
        found.intrinsics,
        found.cam2world,
        size=found.depth.shape[1:],
        length=frustum_length(cloud.points, found.cam2world),
    )
    for view, lines in enumerate(cameras):
        entities = [Line([2 * i, 2 * i + 1]) for i in range(len(lines))]
        colours = np.tile([*linear(view_colour(view, len(found.names))), 255], (len(lines), 1))
        camera = trimesh.path.Path3D(
            entities, vertices=lines.reshape(-1, 3), colors=colours.astype(np.uint8), process=False
        )
        name = f"camera {view} {found.names[view]}"
        scene.add_geometry(camera, node_name=name, geom_name=name, transform=_TO_GLTF)
    return scene.export(file_type="glb")


def linear(colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return sRGB bytes as linear ones (IEC 61966-2-1)."""
    share = np.arange(256) / 255
    bent = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return np.round(255 * bent).astype(np.uint8)[colours]
