"""Pictures to try the page with, rendered when it starts: no data is needed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from pixio_lightning.data.scenes.clips import render_clip
from pixio_lightning.data.scenes.render import render_scene
from pixio_lightning.data.scenes.store import scene_seed
from pixio_lightning.data.video import video_writer

_SIDE = 160
_PLACES = ("studio", "office", "den", "corridor")  # of the demos, and others


def render_pictures(folder: Path) -> list[Path]:
    """Write a view of a few scenes that no run was trained on."""
    found = []
    for number, place in enumerate(_PLACES):
        scene = render_scene(scene_seed("test", number), views=1, size=_SIDE, places=[place])
        found.append(folder / f"{place}.png")
        Image.fromarray(scene.views[0].image).save(found[-1])
    return found


def render_views(folder: Path) -> list[Path]:
    """Write two views of one scene."""
    scene = render_scene(scene_seed("test", 100), views=2, size=_SIDE, places=["den"])
    found = [folder / f"view-{number}.png" for number in range(len(scene.views))]
    for path, view in zip(found, scene.views, strict=True):
        Image.fromarray(view.image).save(path)
    return found


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
