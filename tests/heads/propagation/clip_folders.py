"""Small clips in the layouts of DAVIS-2017, VIP and JHMDB."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

SIZE = (48, 80)


def frame(path: Path, number: int, *, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Write a frame in which a bright square of 16 px moves by 4 px to the right each time."""
    pixels = np.random.default_rng(number).integers(0, 40, (*size, 3), dtype=np.uint8)
    left = 8 + 4 * number
    pixels[16:32, left : left + 16] += np.array([200, 60, 120], np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95)
    return pixels


def mask(path: Path, number: int, *, label: int = 1, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Write its mask, indices with a palette; the lowest row is unknown."""
    labels = np.zeros(size, np.uint8)
    left = 8 + 4 * number
    labels[16:32, left : left + 16] = label
    labels[-1] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(labels)
    picture.putpalette(np.random.default_rng(0).integers(0, 255, 768).tolist())
    picture.save(path)
    return labels


def davis(root: Path, clips: dict[str, int]) -> Path:
    """Write clips of so many frames, by name."""
    for name, frames in clips.items():
        for i in range(frames):
            frame(root / f"JPEGImages/480p/{name}/{i:05d}.jpg", i)
            mask(root / f"Annotations/480p/{name}/{i:05d}.png", i, label=3)
    listed(root / "ImageSets/2017/val.txt", clips)
    return root


def vip(root: Path, clips: dict[str, int]) -> Path:
    """The same with numbers of frames that jump, as VIP's do."""
    for name, frames in clips.items():
        for i in range(frames):
            frame(root / f"Images/{name}/{i * 25 + 1:012d}.jpg", i)
            mask(root / f"Annotations/Category_ids/{name}/{i * 25 + 1:012d}.png", i, label=19)
    listed(root / "lists/val_videos.txt", clips)
    return root


def jhmdb(root: Path, clips: dict[str, int], *, joints: int = 15) -> Path:
    """Write `CLASS/VIDEO` clips whose joints lie on a circle in the square; one is for training."""
    values: dict[str, list[str]] = {}
    for name, frames in clips.items():
        kind, video = name.split("/")
        angles = 2 * np.pi * np.arange(joints) / joints
        circle = np.stack([16 + 6 * np.cos(angles), 24 + 6 * np.sin(angles)])
        for i in range(frames):
            frame(root / f"Rename_Images/{name}/{i + 1:05d}.png", i)
        places = np.stack([circle + [[4 * i], [0]] for i in range(frames)], axis=2)
        positions(root, name, places)
        values.setdefault(kind, ["other.avi 1"]).append(f"{video}.avi 2")
    for kind, lines in values.items():
        listed(root / f"splits/{kind}_test_split1.txt", lines)
    return root


def positions(root: Path, name: str, places: np.ndarray) -> None:
    """Write joints `(2, J, V)`, counted from 0; the file counts from 1."""
    path = root / f"joint_positions/{name}/joint_positions.mat"
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, {"pos_img": places + 1, "scale": np.ones(3)}, do_compression=True)


def listed(path: Path, lines) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
