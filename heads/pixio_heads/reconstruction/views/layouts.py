"""How scenes of posed images lie on disk: Nerfstudio, COLMAP text, WAI and BlendedMVS folders.

Every reader turns one folder into frames with OpenCV camera-to-world poses and intrinsics for
pixel centres at integer coordinates. Nerfstudio and COLMAP count from the corner of the image, so
their principal points are moved by half a pixel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from pixio_heads.reconstruction.views.colmap import colmap, undistort_first
from pixio_heads.reconstruction.views.frames import (
    FileScene,
    Found,
    Frame,
    Scene,
    camera_matrix,
    posed_frame,
)
from pixio_heads.reconstruction.views.known_sets import Flags, SetFacts
from pixio_heads.reconstruction.views.wai.depth_rules import MODALITIES, rule_of_files
from pixio_lightning.data import held_out, is_hidden, require_reader
from pixio_lightning.errors import UserError
from pixio_lightning.files import parse_json, read_text

_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])  # y up and z backward, as in Nerfstudio
_UNIT = "depth_unit_scale_factor"  # of Nerfstudio, which reads it of its own configuration
_HELD_OUT = 4  # frames of a single scene at least, but no more than half of it
_DISTORTION = ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2")
_PINHOLE = ("PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "PERSPECTIVE")


# --- transforms.json and scene_meta.json ------------------------------------------------------


def nerfstudio(root: Path) -> Found:
    """Read `transforms.json`: poses in OpenGL axes unless `camera_convention` is opencv."""
    path = root / "transforms.json"
    content = _read_json(path)
    keys = ("depth_file_path",)
    frames = _frames(path, content, depth_keys=keys, corner=0.5, convention="opengl")
    return Found(sorted(frames, key=lambda frame: frame.name))


def wai(root: Path) -> Found:
    """Read `scene_meta.json`: poses in OpenCV axes unless `camera_convention` is opengl.

    Depth is what the sensor or renderer of the data set gave, under `depth`, or what was rendered
    of a mesh, under `rendered_depth`; `frame_modalities` says under which key frames name a mask.
    """
    path = root / "scene_meta.json"
    content = _read_json(path)
    masks = {name: _frame_key(content, name) for name in MODALITIES}
    frames = _frames(
        path,
        content,
        depth_keys=("depth", "rendered_depth"),
        corner=0.0,
        convention="opencv",
        mask_keys={name: key for name, key in masks.items() if key is not None},
    )
    matrices = sorted((root / "covisibility" / "v0").glob("*.npy"))
    given = matrices[0] if matrices else None
    if given is not None:
        _check_matrix(given, len(frames))
    said = content.get("dataset_name")
    name = said if isinstance(said, str) else None
    return Found(frames, content.get("scale_type") == "metric", given, name)


def _frame_key(content: dict[str, Any], modality: str) -> str | None:
    """Return the key of a frame under which the file of a modality is named, if there is one."""
    found: Any = content.get("frame_modalities")
    for part in (*modality.split("/"), "frame_key"):
        found = found.get(part) if isinstance(found, dict) else None
    return found if isinstance(found, str) else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(read_text(path, limit=1 << 30))
    except (ValueError, OSError) as error:
        raise UserError(f"'{path}' is not valid JSON: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("frames"), list):
        raise UserError(f"'{path}' has no list of frames; expected \"frames\": [...]")
    return content


def _frames(
    path: Path,
    content: dict[str, Any],
    *,
    depth_keys: tuple[str, ...],
    corner: float,
    convention: str,
    mask_keys: Mapping[str, str] = MappingProxyType({}),
) -> list[Frame]:
    """Read the frames of a file, each with its own camera or that of all.

    Args:
        path: The file.
        content: What it holds.
        depth_keys: Where the depth's file is named; the first one there is counts.
        corner: Coordinate of the centre of the first pixel, as the file counts.
        convention: The axes, where the file does not say.
        mask_keys: Where the files of masks are named, by what these are.
    """
    frames = []
    for number, entry in enumerate(content["frames"]):
        where = f"'{path}', frame {number}"
        try:
            about = {k: v for k, v in content.items() if k != "frames"} | entry
            name = Path(about["file_path"]).as_posix()
            about = _of_angle(about) | about
            fx = float(about["fl_x"])
            matrix = camera_matrix(
                fx,
                float(about.get("fl_y", fx)),
                float(about["cx"]) - corner,
                float(about["cy"]) - corner,
            )
            size = int(about["h"]), int(about["w"])
            pose = np.asarray(about["transform_matrix"], dtype=np.float64)
            unit = float(about[_UNIT]) if _UNIT in about else None
            if unit is not None and not 0 < unit < math.inf:
                raise ValueError(f"{_UNIT} is {unit:g}; expected metres per unit of depth, over 0")
            named = [Path(about[key]) for key in depth_keys if about.get(key)]
            masks = tuple(
                (mask, path.parent / entry[key])
                for mask, key in mask_keys.items()
                if entry.get(key)
            )
        except KeyError as error:
            raise UserError(
                f"{where} has no {error}; expected file_path, transform_matrix, fl_x, cx, cy, w "
                "and h, of the frame or of all; of an ideal camera camera_angle_x, w and h do"
            ) from None
        except (TypeError, ValueError, ArithmeticError) as error:
            raise UserError(f"{where}: {error}") from None
        model = about.get("camera_model", "PINHOLE")
        if about.get("is_fisheye"):
            model = "a fisheye"
        if model not in _PINHOLE or any(about.get(key) for key in _DISTORTION):
            raise UserError(f"{where}: {undistort_first(model)}")
        axes = about.get("camera_convention", convention)
        if axes not in ("opengl", "opencv"):
            raise UserError(f"{where}: camera_convention '{axes}'; expected opengl or opencv")
        if axes == "opengl" and pose.shape == (4, 4):
            pose = pose @ _OPENGL
        depth = path.parent / named[0] if named else None
        files = path.parent / name, depth
        frame = posed_frame(where, name, files, matrix, pose, size)
        frames.append(frame._replace(unit=unit, masks=masks))
    return frames


def _of_angle(about: dict[str, Any]) -> dict[str, float]:
    """Return the intrinsics that follow from the field of view, as instant-ngp writes it."""
    if "camera_angle_x" not in about:
        return {}
    width, height = float(about["w"]), float(about["h"])
    focal = width / 2 / math.tan(float(about["camera_angle_x"]) / 2)
    return {"fl_x": focal, "fl_y": about.get("fl_x", focal), "cx": width / 2, "cy": height / 2}


def _check_matrix(path: Path, n: int) -> None:
    try:
        shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
    except (ValueError, OSError) as error:
        raise UserError(f"'{path}' is not an npy array of numbers: {error}") from None
    if shape != (n, n):
        raise UserError(f"'{path}' has the shape {shape}; expected ({n}, {n}), as many as frames")


# --- BlendedMVS -------------------------------------------------------------------------------


def blendedmvs(root: Path) -> Found:
    """Read `blended_images/`, `rendered_depth_maps/` and `cams/*_cam.txt`, which are world2cam."""
    frames = []
    for path in sorted((root / "cams").glob("*_cam.txt")):
        stem = path.name.removesuffix("_cam.txt")
        words = read_text(path).split()
        try:
            start = words.index("extrinsic") + 1
            world2cam = np.reshape([float(word) for word in words[start : start + 16]], (4, 4))
            start = words.index("intrinsic") + 1
            matrix = np.reshape([float(word) for word in words[start : start + 9]], (3, 3))
            pose = np.linalg.inv(world2cam)
        except (ValueError, np.linalg.LinAlgError):
            raise UserError(
                f"'{path}': expected 'extrinsic' with a 4x4 matrix and 'intrinsic' with a 3x3 one"
            ) from None
        image = root / "blended_images" / f"{stem}.jpg"
        depth = root / "rendered_depth_maps" / f"{stem}.pfm"
        name = image.relative_to(root).as_posix()
        files = (image, depth if depth.is_file() else None)
        frames.append(posed_frame(f"'{path}'", name, files, matrix, pose, None))
    return Found(frames)


# --- all scenes of a folder -------------------------------------------------------------------

Reader = Callable[[Path], Found]

# A file that shows a folder to be a scene, and what reads it.
_READERS: dict[str, tuple[tuple[tuple[str, Reader], ...], str]] = {
    "folder": (
        (
            ("transforms.json", nerfstudio),
            ("sparse/0/cameras.txt", colmap),
            ("sparse/cameras.txt", colmap),
            ("sparse/0/cameras.bin", colmap),
            ("sparse/cameras.bin", colmap),
        ),
        "transforms.json (Nerfstudio), or sparse/0/cameras.bin or .txt (COLMAP)",
    ),
    "wai": ((("scene_meta.json", wai),), "scene_meta.json"),
    "blendedmvs": ((("cams", blendedmvs),), "cams/, blended_images/ and rendered_depth_maps/"),
}


def is_scene(folder: Path, source: str) -> bool:
    """Whether a folder is a scene itself, in the layout of a source."""
    return any((folder / marker).exists() for marker, _ in _READERS[source][0])


def holds_one_scene(root: Path, source: str) -> bool:
    """Whether a folder is a scene or holds a single one: its frames are split, not scenes."""
    return len(_places(root, _READERS[source][0], sets=source == "wai")) == 1


def open_scenes(
    root: Path,
    source: str,
    *,
    scale: float | None = None,
    max_megapixels: float,
    flags: Flags = Flags(),  # noqa: B008 (frozen)
) -> list[FileScene]:
    """Open the scene that a folder is, or those in its sub-folders, or of WAI in those of its sets.

    Args:
        root: The folder.
        source: `folder`, `wai` or `blendedmvs`.
        scale: Metres per unit of an integer depth image; None takes what the layout says, or 0.001.
        max_megapixels: Larger images are bad.
        flags: Which lengths are metres and which images are rendered, and which depth counts.

    Raises:
        UserError: There is no scene, a scene has no depth or lacks a mask that its set needs, or
            its cameras cannot be read; a set is unknown; or a file says another unit of depth than
            `scale`.
    """
    readers, expected = _READERS[source]
    places = _places(root, readers, sets=source == "wai")
    if not places:
        where = (
            "in it, in sub-folders, or in those of its sets"
            if source == "wai"
            else ("in it or in sub-folders")
        )
        raise UserError(f"'{root}' holds no scene; expected {expected}, {where}")
    facts = _facts(root, places, flags) if source == "wai" else {}
    name = source if source == "blendedmvs" else ""
    scenes = []
    for folder, read, parent in places:
        found = read(folder)
        depths = [frame.depth for frame in found.frames if frame.depth is not None]
        if not depths:
            raise UserError(
                f"scene '{folder}' has {len(found.frames)} frames and no depth: training and "
                "evaluation need it for some of them at least"
            )
        units = {frame.unit for frame in found.frames if frame.unit is not None}
        if scale is not None and units - {scale}:
            raise UserError(
                f"scene '{folder}' says {_UNIT} {min(units - {scale}):g}, but data.depth_scale is "
                f"{scale:g}: leave data.depth_scale out"
            )
        for suffix in {path.suffix.lower() for path in depths}:
            require_reader(suffix)
        about = facts.get(parent, SetFacts(flags.metric, flags.synthetic, name=name))
        there = {mask for frame in found.frames for mask, _ in frame.masks}
        rule = rule_of_files(there) if about.rule is None else about.rule
        if lacking := [mask for mask in rule.masks if mask not in there]:
            raise UserError(
                f"scene '{folder}' of the set {about.name} has no {' and no '.join(lacking)} in "
                "frame_modalities, without which sky and outliers count as geometry: add what "
                "MapAnything's processing makes, or go without and say so, --data.masks false"
            )
        scenes.append(
            FileScene(
                folder.relative_to(root).as_posix() if folder != root else folder.resolve().name,
                found.frames,
                metric=found.metric if about.metric is None else about.metric,
                synthetic=bool(about.synthetic),
                rule=rule,
                set_name=about.name,
                weight=about.weight,
                covisibility=about.covisibility,
                scale=scale,
                max_megapixels=max_megapixels,
                given=found.given,
            )
        )
    return scenes


def _facts(
    root: Path, places: list[tuple[Path, Reader, Path | None]], flags: Flags
) -> dict[Path | None, SetFacts]:
    """Return what holds for the scenes of each folder of a set, and for those in none."""
    first: dict[Path | None, tuple[Path, Reader]] = {}
    for folder, read, parent in places:
        first.setdefault(parent, (folder, read))
    facts = {
        parent: flags.of(folder.parent, read(folder).set_name, needed=parent is not None)
        for parent, (folder, read) in first.items()
    }
    flags.refuse_others(root, (about.name for about in facts.values()))
    return facts


def _places(
    root: Path, readers: tuple[tuple[str, Reader], ...], *, sets: bool
) -> list[tuple[Path, Reader, Path | None]]:
    """Return the folders of scenes, each with what reads it and the set it is in, if any."""

    def reader(folder: Path) -> Reader | None:
        return next((read for marker, read in readers if (folder / marker).exists()), None)

    def below(folder: Path) -> list[Path]:
        return sorted(p for p in folder.iterdir() if p.is_dir() and not is_hidden(p.name))

    read = reader(root)
    if read is not None:
        return [(root, read, None)]
    found: list[tuple[Path, Reader, Path | None]] = []
    for folder in below(root):
        read = reader(folder)
        if read is not None:
            found.append((folder, read, None))
        elif sets:
            inner = ((scene, reader(scene)) for scene in below(folder))
            found += [(scene, read, folder) for scene, read in inner if read is not None]
    return found


def split_scenes(
    scenes: list[FileScene], *, share: float, views: tuple[int, int]
) -> tuple[list[Scene], list[Scene]]:
    """Split scenes into those to train on and those held out; of a single one its last frames.

    Which these are depends on the share alone, so that all that are judged by it are judged by the
    same.

    Args:
        scenes: At least one.
        share: Of the scenes, or of the frames of the only one, that is held out; 1 holds all out.
        views: Of a set that is trained on, and of one that is evaluated, at most.

    Raises:
        UserError: The only scene is too small to be split.
    """
    if share == 1:
        return [], list(scenes)
    if len(scenes) > 1:
        train, val = held_out(scenes, lambda scene: scene.name, share=share)
        return list(train), list(val)
    (scene,) = scenes
    apart = max(int(len(scene) * share), min(_HELD_OUT, len(scene) // 2))
    kept = len(scene) - apart
    if kept < views[0] or apart < views[1]:
        raise UserError(
            f"scene '{scene.name}' has {len(scene)} frames: {kept} to train on and {apart} held "
            f"out are too few for data.max_views {views[0]} and data.val_views {views[1]}; give "
            "more frames, set these or data.hold_out, or give train/ and val/ with scenes of "
            "their own"
        )
    # The end of a walk through the scene: what lies next to a frame would be no test.
    return [scene.part(range(kept))], [scene.part(range(kept, len(scene)))]
