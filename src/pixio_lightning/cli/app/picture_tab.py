"""The tab of any head that looks at single pictures: what `predict` gives and `write` writes."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import numpy as np
import torch
from numpy.typing import NDArray

from pixio_lightning.cli.app.loaded import Loaded
from pixio_lightning.cli.app.uploads import (
    Folders,
    Photo,
    as_picture,
    choose_picture,
    one_line,
    open_photo,
    scale_of,
    show_picture,
)
from pixio_lightning.cli.app.written_files import Map, Written, pack, sort_files
from pixio_lightning.errors import UserError, out_of_memory, printable
from pixio_lightning.keyed import key_of
from pixio_lightning.training.head import Head
from pixio_lightning.training.precision import full_precision, to_float32

_MOST_CLASSES = 6  # whose scores are shown
_BLANK = 64  # side of the picture of the rehearsal


class Rehearsal(NamedTuple):
    """What a head does with a blank picture, from which its tab is made.

    Attributes:
        problem: Why it gives nothing; empty where it does.
        written: What `write` wrote.
        scores: Whether there are scores of classes.
    """

    problem: str
    written: Written | None = None
    scores: bool = False


def rehearse(head: Head, folder: Path) -> Rehearsal:
    """Let a head predict a blank picture, which also warms it up."""
    blank = Photo("blank", np.full((_BLANK, _BLANK, 3), 128, np.uint8), (_BLANK, _BLANK))
    try:
        prediction = write_prediction(head, blank, folder)
        scores = class_scores(head, prediction) is not None
        return Rehearsal("", sort_files(folder), scores)
    except UserError as error:
        return Rehearsal(str(error))
    except Exception as error:  # a head may need anything of its data
        return Rehearsal(out_of_memory(error) or printable(f"{type(error).__name__}: {error}"))
    finally:
        shutil.rmtree(folder)


@torch.no_grad()
def write_prediction(head: Head, photo: Photo, folder: Path) -> Any:
    """Predict a picture and write the files of it; returns the prediction, of one row."""
    prediction = to_float32(head.predict(photo.pixels))
    image = torch.from_numpy(head.prepared(photo.pixels).copy()).permute(2, 0, 1)[None]
    batch = {
        "image": image.to(head.device),
        "size": tuple(image.shape[-2:]),
        "name": [photo.name],
        "key": torch.tensor([key_of(photo.name)]),
    }
    folder.mkdir(parents=True, exist_ok=True)
    with full_precision(head.device):
        head.write(prediction, batch, folder)
    return prediction


def class_scores(head: Head, prediction: Any) -> dict[str, float] | None:
    """Return the probabilities of classes by name, where a head says them of an image."""
    probabilities: Any = getattr(head, "probabilities", None)
    names = head.data_info.get("class_names")
    if probabilities is None or names is None:
        return None
    found = probabilities(prediction)[0].flatten()
    return dict(zip(names, found.tolist(), strict=True)) if len(found) == len(names) else None


def add_picture_tab(
    loaded: Loaded, tab: str, rehearsal: Rehearsal, examples: Sequence[Path], folders: Folders
) -> None:
    """Put the tab of a head on the page."""
    head, written = loaded.module, rehearsal.written
    assert isinstance(head, Head) and written is not None
    work = _Work(head, tab, rehearsal, folders)
    found = gr.State(None)
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            upload = choose_picture(examples)
            note = gr.Markdown("Choose a picture, or pick one of the examples.")
            archive = gr.DownloadButton("Download files (zip)", interactive=False, size="md")
        with gr.Column(scale=3, min_width=300):
            shown: list[Any] = []
            if rehearsal.scores:
                picture = show_picture("Picture")
                label = gr.Label(label="Scores", num_top_classes=_MOST_CLASSES)
                shown += [picture, label]
            if written.map is not None:
                with gr.Row():
                    clicked = show_picture("Picture (click for the value)", min_width=260)
                    slider = gr.ImageSlider(
                        label="Picture and prediction: drag the line",
                        interactive=False,
                        format="png",
                        min_width=260,
                    )
                value = gr.Textbox(label="Value", info="where the picture was clicked")
                clicked.select(
                    work.value, found, value, api_visibility="private", show_progress="hidden"
                )
                shown += [clicked, slider, value]
            if written.pictures:
                shown.append(show_picture("Panel with its scale"))
            if written.videos:
                shown.append(gr.Video(label="Video", interactive=False))
            if written.clouds:
                shown.append(gr.Model3D(label="3D"))
            if written.text:
                shown.append(gr.Textbox(label="Files", lines=3, max_lines=20))
    upload.change(
        work.predict, upload, [found, note, archive, *shown], api_name=tab, concurrency_id="model"
    )


class _Work:
    """What the tab does with a head."""

    def __init__(self, head: Head, tab: str, rehearsal: Rehearsal, folders: Folders) -> None:
        self.head, self.tab, self.folders = head, tab, folders
        self.rehearsal = rehearsal

    @one_line
    def predict(
        self,
        path: str | None,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 (how Gradio finds it)
    ) -> list[Any]:
        """Return the map of the prediction, what was done, the archive, and what is shown."""
        shown: list[Any] = []
        kinds = self.rehearsal.written
        assert kinds is not None
        if not path:
            count = 2 * self.rehearsal.scores + 3 * (kinds.map is not None)
            count += sum(map(bool, (kinds.pictures, kinds.videos, kinds.clouds, kinds.text)))
            return [None, "Choose a picture, or pick one of the examples.", None, *[None] * count]
        progress(0.1, desc="reading")
        photo = open_photo(path)
        place = self.folders.fresh(request, self.tab)
        progress(0.3, desc="predicting")
        prediction = write_prediction(self.head, photo, place / "files")
        progress(0.9, desc="showing")
        names = self.head.data_info.get("class_names") or ()
        written = sort_files(place / "files", names, unit_of(self.head))
        archive = pack(written.files, place / "files", place / f"{self.tab}.zip")
        if self.rehearsal.scores:
            shown += [photo.pixels, class_scores(self.head, prediction)]
        if kinds.map is not None:
            picture = _enlarged(photo.pixels)
            shown += [picture, _compared(picture, written.map), _summary(written.map)]
        for expected, files in (
            (kinds.pictures, str(written.pictures[0]) if written.pictures else None),
            (kinds.videos, str(written.videos[0]) if written.videos else None),
            (kinds.clouds, str(written.clouds[0]) if written.clouds else None),
            (kinds.text, written.text),
        ):
            shown += [files] * bool(expected)
        button = gr.DownloadButton(value=str(archive), interactive=True)
        done = " ".join(filter(None, (photo.note, f"{len(written.files)} files are written.")))
        return [written.map, done, button, *shown]

    @one_line
    def value(self, found: Map | None, event: gr.SelectData) -> str:
        """Say what stands where the picture is clicked."""
        if found is None:
            raise UserError("choose a picture first")
        height, width = found.values.shape
        scale = scale_of((height, width))
        x, y = (
            min(int(at / scale), side - 1)
            for at, side in zip(event.index[:2], (width, height), strict=True)
        )
        return f"{found.at(x, y)}   (x {x}, y {y})"


def unit_of(head: Head) -> str:
    """Return the unit of a head's values, as it states it; nothing where it has none."""
    unit = str(head.output_config.get("unit", "none"))
    return "" if unit.startswith("none") else unit


def _enlarged(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return as_picture(torch.from_numpy(pixels.copy()).permute(2, 0, 1))


def _compared(
    picture: NDArray[np.uint8], found: Map | None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]] | None:
    """Return a picture and its map, if the map is one of all of it."""
    laid = None if found is None else _enlarged(found.picture)
    if found is None or laid is None or laid.shape != picture.shape:
        return None
    # Of classes one wants to see which thing they are laid on.
    return picture, picture // 2 + laid // 2 if found.names else laid


def _summary(found: Map | None) -> str:
    """Say what a map holds."""
    if found is None:
        return ""
    if found.names:
        kinds, counts = np.unique(found.values, return_counts=True)
        order = np.argsort(-counts)[:_MOST_CLASSES]
        share = counts / found.values.size
        name = [*found.names]
        return ", ".join(
            f"{name[kinds[i]] if kinds[i] < len(name) else kinds[i]} {share[i]:.0%}" for i in order
        )
    low, middle, high = np.quantile(found.values, (0.02, 0.5, 0.98))
    return f"{found.told(f'{low:.3g} to {high:.3g}')}, median {found.told(f'{middle:.3g}')}"
