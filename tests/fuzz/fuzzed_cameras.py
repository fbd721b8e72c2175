"""Cameras of scenes: transforms.json, scene_meta.json, COLMAP as text and binary, BlendedMVS."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path
from typing import Any

import scene_folders
from kind import Kind, Make

from pixio_heads.depth.layouts import read_intrinsics
from pixio_heads.reconstruction.views.layouts import open_scenes

_CAMERAS = ("sparse/0/cameras", "sparse/0/images")


def scene(write: Any, files: list[str], **options: Any) -> Make:
    """Return what writes a scene, and the files with its cameras."""

    def make(folder: Path) -> list[str]:
        write(folder, scene_folders.rendered(), **options)
        return files

    return make


def _nerfstudio_of_angle(folder: Path) -> list[str]:
    content = scene_folders.nerfstudio(folder, scene_folders.rendered())
    for frame in content["frames"]:
        for name in ("fl_x", "fl_y", "cx", "cy"):
            del frame[name]
    shutil.rmtree(folder / "images")
    shutil.rmtree(folder / "depth")
    scene_folders.nerfstudio(
        folder,
        scene_folders.rendered(),
        camera_angle_x=1.0,
        depth_unit_scale_factor=1e-3,
        frames=content["frames"],
    )
    return ["transforms.json"]


def _binary(folder: Path) -> list[str]:
    """Write COLMAP's text as its binary files."""
    scene_folders.colmap(folder, scene_folders.rendered())
    cameras, images = (
        [line.split() for line in (folder / f"{name}.txt").read_text().splitlines()[1:]]
        for name in _CAMERAS
    )
    data = struct.pack("<Q", len(cameras))
    for number, _, *rest in cameras:
        width, height, *numbers = rest
        data += struct.pack("<IiQQ", int(number), 1, int(width), int(height))
        data += struct.pack("<4d", *map(float, numbers))
    (folder / f"{_CAMERAS[0]}.bin").write_bytes(data)
    data = struct.pack("<Q", len(images[::2]))
    for number, *pose, camera, name in images[::2]:
        data += struct.pack("<I7dI", int(number), *map(float, pose), int(camera))
        data += name.encode() + b"\0" + struct.pack("<Q", 1) + struct.pack("<2dq", 3.5, 4.5, -1)
    (folder / f"{_CAMERAS[1]}.bin").write_bytes(data)
    for name in _CAMERAS:
        (folder / f"{name}.txt").unlink()
    return [f"{name}.bin" for name in _CAMERAS]


def _shots(source: str) -> Any:
    def read(folder: Path) -> None:
        for found in open_scenes(folder, source, max_megapixels=64.0):
            found.load(0)

    return read


def _matrices(folder: Path) -> list[str]:
    text = '{"default": [[500, 0, 320], [0, 500, 240], [0, 0, 1]], "a.png": [1, 2, 3, 4, 5, 6, 7]}'
    (folder / "intrinsics.json").write_text(text.replace(", 6, 7]", ", 6, 7, 8, 9]"))
    return ["intrinsics.json"]


KINDS = {
    "transforms": Kind(
        [scene(scene_folders.nerfstudio, ["transforms.json"]), _nerfstudio_of_angle],
        _shots("folder"),
    ),
    "scene_meta": Kind([scene(scene_folders.wai, ["scene_meta.json"])], _shots("wai")),
    "colmap_text": Kind(
        [
            scene(scene_folders.colmap, [f"{name}.txt" for name in _CAMERAS], model=model)
            for model in ("PINHOLE", "SIMPLE_PINHOLE")
        ],
        _shots("folder"),
    ),
    "colmap_binary": Kind([_binary], _shots("folder")),
    "blendedmvs": Kind(
        [scene(scene_folders.blendedmvs, ["cams/00000000_cam.txt", "cams/00000001_cam.txt"])],
        _shots("blendedmvs"),
    ),
    "intrinsics": Kind([_matrices], read_intrinsics),
}
