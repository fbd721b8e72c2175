"""Pictures to try the page with, rendered once: no data is needed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pixio_lightning.data.clips.video import video_writer
from pixio_lightning.data.scenes.clips import render_clip
from pixio_lightning.data.scenes.render import render_scene
from pixio_lightning.data.scenes.store import VERSION, scene_seed
from pixio_lightning.files import default_cache, written_aside

_SIDE = 320  # what the curation rule asks of a picture
_PLACES = ("studio", "office", "den", "corridor")  # of the demos, and others


def render_pictures(folder: Path) -> list[Path]:
    """Put a view of a few scenes that no run was trained on into a folder."""
    names = [f"{place}.png" for place in _PLACES]
    return _once(folder, names, lambda: [_view(i, place) for i, place in enumerate(_PLACES)])


def render_views(folder: Path) -> list[Path]:
    """Put two views of one scene into a folder."""

    def render() -> list[NDArray[np.uint8]]:
        scene = render_scene(scene_seed("test", 100), views=2, size=_SIDE, places=["den"])
        return [view.image for view in scene.views]

    return _once(folder, ["view-1.png", "view-2.png"], render)


def render_video(folder: Path) -> list[Path]:
    """Write a clip of a moving camera; none without PyAV."""
    if find_spec("av") is None:
        return []
    clip = render_clip(scene_seed("test", 200), frames=10, size=64, places=["studio"])
    path, fps = folder / "clip.mp4", (len(clip.time) - 1) / float(clip.time[-1] - clip.time[0])
    with video_writer(path, fps=fps, height=64, width=64, options={"crf": "12"}) as add:
        for frame in clip.image:
            add(frame.transpose(1, 2, 0).copy())
    return [path]


def _view(number: int, place: str) -> NDArray[np.uint8]:
    scene = render_scene(scene_seed("test", number), views=1, size=_SIDE, places=[place])
    return scene.views[0].image


def _once(
    folder: Path, names: Sequence[str], render: Callable[[], list[NDArray[np.uint8]]]
) -> list[Path]:
    """Copy pictures from the cache, where they are rendered if they are not there yet."""
    kept = default_cache() / "examples" / f"{VERSION}-{_SIDE}"
    paths = [kept / name for name in names]
    if not all(path.exists() for path in paths):
        for path, pixels in zip(paths, render(), strict=True):
            with written_aside(path) as aside:
                Image.fromarray(pixels).save(aside, "PNG")
    return [Path(shutil.copy(path, folder)) for path in paths]
