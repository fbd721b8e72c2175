"""Video: the past of a clip, its future, and what a run of future prediction makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from pixio_lightning.cli.app.loaded import Loaded, data_config
from pixio_lightning.cli.app.uploads import MOST_MEGAPIXELS, as_picture, one_line, show_picture
from pixio_lightning.data.clips.pairs import cut_out
from pixio_lightning.data.clips.video import video_frames
from pixio_lightning.data.decode import centre_crop
from pixio_lightning.errors import UserError
from pixio_lightning.keyed import key_of
from pixio_lightning.pretraining.future_frames import FuturePrediction
from pixio_lightning.training import visualize

_MOST_PAIRS = 4  # evenly spread over the frames
_MOST_FRAMES = 120  # of a video that are looked at


def add_video_tab(loaded: Loaded, tab: str, examples: Sequence[Path]) -> None:
    """Put the tab on the page."""
    model = loaded.module
    assert isinstance(model, FuturePrediction)
    known = (data_config(loaded) or {}).get("init_args", {})
    low, high = known.get("gap") or (0.1, 1.0)
    past = int(known.get("past_frames") or 1)
    titles = ["past", "visible future", "prediction" + "*" * model.norm_pix, "truth"]
    side = model.backbone.grid[0] * model.backbone.stride

    @one_line
    def predict(path: str | None, gap: float) -> tuple[Any, ...]:
        if not path:
            return *[None] * (len(titles) + 1), "Choose a video, or take the example."
        found = video_frames(Path(path), every=gap, limit=None, max_megapixels=MOST_MEGAPIXELS)
        # Cut one by one: a long film would not fit in memory.
        frames = [
            cut_out([frame], [centre_crop(frame.shape[1], frame.shape[0])], side)[0]
            for _, frame in islice(found, _MOST_FRAMES)
            if frame is not None
        ]
        ends = [*range(past, len(frames))]
        if not ends:
            raise UserError(f"the video is no longer than {past * gap:.2f} s")
        ends = ends[:: -(-len(ends) // _MOST_PAIRS)]
        clips = [torch.stack(frames[end - past : end + 1]) for end in ends]
        images = torch.stack(clips).to(model.device)
        gaps = torch.arange(past, 0, -1) * gap
        batch = {
            "past": images[:, :-1],
            "future": images[:, -1],
            "gap": gaps.expand(len(images), -1).to(model.device),
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
