"""Rendered scenes written in the layouts that are read, as other tools write them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pixio_heads.reconstruction.geometry import quaternion_of
from pixio_lightning.data.scenes.render import View, render_scene

SIDE = 48
PLACES = ["studio"]


@cache
def rendered(seed: int = 3, *, views: int = 3) -> list[View]:
    return render_scene(seed, views=views, size=SIDE, places=PLACES).views


def save_image(path: Path, view: View) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(view.image).save(path)


def save_millimetres(path: Path, depth: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.round(1000 * depth).astype(np.uint16)).save(path)


def save_npy(path: Path, depth: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, depth.astype(np.float32))


def save_pfm(path: Path, depth: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = f"Pf\n{depth.shape[1]} {depth.shape[0]}\n-1.0\n".encode()
    path.write_bytes(header + depth[::-1].astype("<f4").tobytes())


def save_exr(path: Path, depth: np.ndarray) -> None:
    import OpenEXR

    path.parent.mkdir(parents=True, exist_ok=True)
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, {"Y": depth.astype(np.float32)}).write(str(path))


def nerfstudio(root: Path, views: list[View], **changes: Any) -> dict[str, Any]:
    """Write transforms.json with OpenGL poses and pixels counted from the corner."""
    content: dict[str, Any] = {"camera_model": "OPENCV", "k1": 0.0, "w": SIDE, "h": SIDE}
    content["frames"] = []
    for i, view in enumerate(views):
        save_image(root / f"images/{i:03d}.png", view)
        save_millimetres(root / f"depth/{i:03d}.png", view.depth)
        k = view.intrinsics
        content["frames"].append(
            {
                "file_path": f"images/{i:03d}.png",
                "depth_file_path": f"depth/{i:03d}.png",
                "transform_matrix": (view.cam2world @ np.diag([1, -1, -1, 1])).tolist(),
                "fl_x": k[0, 0],
                "fl_y": k[1, 1],
                "cx": k[0, 2] + 0.5,
                "cy": k[1, 2] + 0.5,
            }
        )
    content |= changes
    (root / "transforms.json").write_text(json.dumps(content))
    return content


def colmap(root: Path, views: list[View], *, model: str = "PINHOLE", rest: str = "") -> None:
    """Write cameras.txt and images.txt, the second line of an image empty or with points."""
    import torch

    sparse = root / "sparse/0"
    sparse.mkdir(parents=True)
    cameras, images = ["# Camera list with one line of data per camera:"], ["# Image list"]
    for i, view in enumerate(views):
        save_image(root / f"images/room/{i:03d}.png", view)
        save_npy(root / f"depth/room/{i:03d}.npy", view.depth)
        k = view.intrinsics
        focals = k[[0, 1], [0, 1]] if model in ("PINHOLE", "OPENCV") else k[[0], [0]]
        numbers = " ".join(repr(float(x)) for x in (*focals, *(k[:2, 2] + 0.5)))
        cameras.append(f"{i + 1} {model} {SIDE} {SIDE} {numbers} {rest}")
        world2cam = np.linalg.inv(view.cam2world)
        quaternion = quaternion_of(torch.from_numpy(world2cam)[None])[0].tolist()
        numbers = " ".join(repr(float(x)) for x in (*quaternion, *world2cam[:3, 3]))
        images += [f"{i + 1} {numbers} {i + 1} room/{i:03d}.png", "" if i else "3.5 4.5 -1"]
    (sparse / "cameras.txt").write_text("\n".join(cameras) + "\n")
    (sparse / "images.txt").write_text("\n".join(images) + "\n")


def wai(
    root: Path,
    views: list[View],
    *,
    scores: np.ndarray | None = None,
    masks: dict[str, np.ndarray] | None = None,
    **changes: Any,
) -> None:
    """Write scene_meta.json with OpenCV poses, depth as EXR; masks of all views as PNG."""
    frames = []
    for i, view in enumerate(views):
        save_image(root / f"images/{i:03d}.png", view)
        save_exr(root / f"depth/{i:03d}.exr", np.where(view.class_id == 0, -1, view.depth))
        frames.append(
            {
                "frame_name": f"{i:03d}",
                "file_path": f"images/{i:03d}.png",
                "image": f"images/{i:03d}.png",
                "depth": f"depth/{i:03d}.exr",
                "transform_matrix": view.cam2world.tolist(),
            }
        )
    k = views[0].intrinsics
    about = {"scene_name": root.name, "camera_model": "PINHOLE", "camera_convention": "opencv"}
    about |= {"scale_type": "metric", "shared_intrinsics": True, "w": SIDE, "h": SIDE}
    about |= {"fl_x": k[0, 0], "fl_y": k[1, 1], "cx": k[0, 2], "cy": k[1, 2]}
    content = about | {"frames": frames} | changes
    for modality, mask in (masks or {}).items():
        *outer, name = modality.split("/")
        found = content.setdefault("frame_modalities", {})
        for part in outer:
            found = found.setdefault(part, {})
        found[name] = {"frame_key": f"{name}_mask", "format": "binary"}
        for frame in frames:
            path = Path("masks") / name / f"{frame['frame_name']}.png"
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(root / path)
            frame[f"{name}_mask"] = path.as_posix()
    (root / "scene_meta.json").write_text(json.dumps(content))
    if scores is not None:
        n = len(scores)
        path = root / f"covisibility/v0/pairwise_covisibility--{n}x{n}.npy"
        path.parent.mkdir(parents=True)
        np.save(path, scores.astype(np.float32))


def blendedmvs(root: Path, views: list[View]) -> None:
    """Write cams/*_cam.txt with world-to-camera poses, depth as PFM."""
    (root / "cams").mkdir(parents=True)
    for i, view in enumerate(views):
        save_image(root / f"blended_images/{i:08d}.jpg", view)
        save_image(root / f"blended_images/{i:08d}_masked.jpg", view)
        save_pfm(root / f"rendered_depth_maps/{i:08d}.pfm", view.depth)
        pose, matrix = (
            "\n".join(" ".join(repr(float(x)) for x in row) for row in rows)
            for rows in (np.linalg.inv(view.cam2world), view.intrinsics)
        )
        text = f"extrinsic\n{pose}\n\nintrinsic\n{matrix}\n\n0.5 0.01 128 10.0\n"
        (root / f"cams/{i:08d}_cam.txt").write_text(text)
    (root / "cams/pair.txt").write_text("3\n0\n2 1 0.5 2 0.4\n")


WRITERS = {"folder": nerfstudio, "wai": wai, "blendedmvs": blendedmvs}
