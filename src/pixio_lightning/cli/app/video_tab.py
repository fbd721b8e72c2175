"""Video: the past of a clip, its future, and what a run of future prediction makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
from torch import Tensor

from pixio_lightning.cli.app.loaded import Loaded, data_config
from pixio_lightning.cli.app.uploads import MOST_MEGAPIXELS, as_picture, one_line, show_picture
from pixio_lightning.data.clips.pairs import cut_out, gaps
from pixio_lightning.data.clips.source import frames_from
from pixio_lightning.data.clips.video import opened_video, packet_times, sought_frames
from pixio_lightning.data.decode import BadImage, centre_crop
from pixio_lightning.errors import UserError
from pixio_lightning.keyed import key_of
from pixio_lightning.pretraining.future_frames import FuturePrediction
from pixio_lightning.training import visualize

_MOST_PAIRS = 4  # evenly spread over the video


def read_pairs(
    path: Path, *, gap: float, past: int, step: float, side: int
) -> tuple[Tensor, Tensor]:
    """Read pairs of a video, spread over it, their frames chosen as in training.

    Args:
        path: The video.
        gap: Seconds from the last past frame to the future one.
        past: How many past frames.
        step: Seconds between them.
        side: Of the frames in pixels, cut from their middle.

    Returns:
        Frames uint8 `(B, past + 1, 3, side, side)`, the future one last, and the seconds from each
        past frame to it, as the video has them, float32 `(B, past)`.

    Raises:
        UserError: It is no video, too short, or its frames cannot be decoded.
    """
    with opened_video(path, max_megapixels=MOST_MEGAPIXELS) as container:
        times, keys = packet_times(container)
    length = (past - 1) * step + gap
    room = float(times[-1] - times[0]) - length if len(times) else 0.0
    if len(times) <= past or room < 0:
        raise UserError(
            f"the video is shorter than {length:.2f} s, or of fewer than {past + 1} frames: "
            "expected a longer one"
        )
    starts = times[0] + np.linspace(0, room, _MOST_PAIRS)
    chosen = [tuple(frames_from(times, at, gap=gap, past=past, step=step)) for at in starts]
    images, seconds = [], []
    for numbers in dict.fromkeys(chosen):  # of a short one they may be the same
        with suppress(BadImage):
            frames = sought_frames(path, numbers, times, keys)
            height, width, _ = frames[0].shape
            images.append(cut_out(frames, [centre_crop(width, height)], side))
            seconds.append(gaps(times, list(numbers)))
    if not images:
        raise UserError("the frames of the video cannot be decoded: it is damaged")
    return torch.stack(images), torch.stack(seconds)


def add_video_tab(loaded: Loaded, tab: str, examples: Sequence[Path]) -> None:
    """Put the tab on the page."""
    model = loaded.module
    assert isinstance(model, FuturePrediction)
    known = (data_config(loaded) or {}).get("init_args", {})
    low, high = known.get("gap") or (0.1, 1.0)
    past, step = int(known.get("past_frames") or 1), float(known.get("past_step") or 0.2)
    titles = ["past", "visible future", "prediction" + "*" * model.norm_pix, "truth"]
    side = model.backbone.grid[0] * model.backbone.stride

    @one_line
    def predict(path: str | None, gap: float) -> tuple[Any, ...]:
        if not path:
            return *[None] * (len(titles) + 1), "Choose a video, or take the example."
        frames, seconds = read_pairs(Path(path), gap=gap, past=past, step=step, side=side)
        images = frames.to(model.device)
        batch = {
            "past": images[:, :-1],
            "future": images[:, -1],
            "gap": seconds.to(model.device),
            "key": torch.tensor([key_of(f"{i}") for i in range(len(images))], device=model.device),
        }
        panel = model.pictures(batch)
        first = dict(zip(panel.titles, panel.rows[0], strict=True))
        pictures = [as_picture(first[title]) for title in titles]
        return *pictures, visualize.compose(panel), panel.caption

    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            upload = gr.File(label="A video", file_types=["video"], height=130)
            if examples:
                button = gr.Button("Take the example", size="sm")
                button.click(
                    lambda: str(examples[0]), None, upload, api_visibility="private", queue=False
                )
            gap = gr.Slider(
                low,
                max(high, low + 0.1),
                round((low + high) / 2, 2),
                step=0.01,
                label="Seconds ahead",
                info="those it was trained on",
            )
            text = gr.Markdown("Choose a video.")
        with gr.Column(scale=3, min_width=300):
            with gr.Row():
                shown = [show_picture(title.capitalize()) for title in titles]
            shown.append(show_picture("All pairs, beside copies of the past"))
    about: dict[str, Any] = {"concurrency_id": "model"}
    upload.change(predict, [upload, gap], [*shown, text], api_name=tab, **about)
    gap.release(predict, [upload, gap], [*shown, text], api_visibility="private", **about)
