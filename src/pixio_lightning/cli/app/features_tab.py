"""Features: what an encoder finds alike, inside of a picture and between pictures.

Shapes: K class tokens, h x w grid of patches, C width of a token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pixio_lightning.cli.app.uploads import (
    MOST_MEGAPIXELS,
    as_picture,
    choose_picture,
    one_line,
    open_photo,
    show_picture,
    square,
)
from pixio_lightning.data.decode import BadImage, centre, decode_pixels, read_file
from pixio_lightning.data.sources import image_files
from pixio_lightning.errors import UserError, visible
from pixio_lightning.models.backbone import Backbone
from pixio_lightning.models.features import Layer
from pixio_lightning.models.probes import nearest_neighbours
from pixio_lightning.training import visualize

_MOST_FILES = 5000  # of the folder that neighbours are looked for in
_NEIGHBOURS = 8
_AT_ONCE = 16
_SCALES = (1, 2, 3, 4)
_MEAN = "mean of all"


class _Seen(NamedTuple):
    """Pictures `(N, 3, S, S)` with their patches `(N, C, h, w)` and class tokens `(N, K, C)`.

    Of an encoder without class tokens the mean patch stands for one.
    """

    images: Tensor
    patches: Tensor
    cls: Tensor


class _Bank(NamedTuple):
    """Pictures of the folder that could be used: files, class tokens `(M, K, C)`, and the rest.

    No pixels: they are read again of the few that are shown.
    """

    files: list[Path]
    cls: Tensor
    note: str


def add_features_tab(
    backbones: dict[str, Backbone], examples: Sequence[Path], folder: Path | None
) -> None:
    """Put the tab of all encoders on the page."""
    work = _Work(backbones, folder)
    first, *_ = backbones
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            name = gr.Dropdown(list(backbones), value=first, label="Encoder")
            scale = gr.Radio(
                list(_SCALES), value=2, label="Size", info="times the size it was trained on"
            )
            upload = choose_picture(examples)
            second = choose_picture([], label="A second picture, to compare with")
            row = gr.Slider(0, 1, 0.5, step=0.01, label="Patch from the top", info="or click one")
            column = gr.Slider(0, 1, 0.5, step=0.01, label="Patch from the left")
        with gr.Column(scale=3, min_width=300):
            pictures = []
            for number, title in enumerate(("", " of the second picture")):
                with gr.Row(visible=number == 0) as line:
                    for what in ("Picture", "Features by PCA", "Similarity to the patch"):
                        label = f"{what}{title}" + " (click a patch)" * (what + title == "Picture")
                        pictures.append(show_picture(label))
            text = gr.Markdown("Choose a picture, or pick one of the examples.")
            if folder is not None:
                with gr.Row():
                    token = gr.Dropdown([_MEAN], value=_MEAN, label="Class token that is compared")
                    search = gr.Button("Find the nearest in the folder", variant="primary")
                    stop = gr.Button("Stop")
                found = gr.Gallery(
                    label=f"Nearest in {folder.name}", columns=4, interactive=False, buttons=[]
                )
                among = gr.Markdown()
    seen = gr.State(None)
    about: dict[str, Any] = {"concurrency_id": "model", "show_progress": "minimal"}
    maps = [*pictures, line, text]
    for trigger in (upload.change, second.change, scale.input, name.input):
        looked = trigger(
            work.look,
            [name, scale, upload, second],
            seen,
            api_name="features_look" if trigger == upload.change else None,
            api_visibility="public" if trigger == upload.change else "private",
            **about,
        )
        looked.success(work.maps, [seen, row, column], maps, api_visibility="private", **about)
    for slider in (row, column):
        slider.release(work.maps, [seen, row, column], maps, api_visibility="private", **about)
    pictures[0].select(work.clicked, seen, [row, column], api_visibility="private").success(
        work.maps, [seen, row, column], maps, api_name="features", **about
    )
    if folder is not None:
        name.change(work.tokens, name, token, api_visibility="private")
        searching = search.click(
            work.search,
            [name, seen, token],
            [found, among],
            api_name="neighbours",
            concurrency_id="model",
        )
        stop.click(None, None, None, cancels=[searching], api_visibility="private")


class _Work:
    """What the tab does with its encoders."""

    def __init__(self, backbones: dict[str, Backbone], folder: Path | None) -> None:
        self.backbones, self.folder = backbones, folder
        self.banks: dict[str, _Bank] = {}

    @one_line
    def look(self, name: str, scale: int, *paths: str | None) -> _Seen | None:
        """Encode one or two pictures; a second without a first is the first."""
        given = [path for path in paths if path]
        if not given:
            return None
        backbone = self._backbone(name)
        photos = [open_photo(path) for path in given]
        side = _side_of(backbone)
        images = torch.cat([square(photo, side * int(scale), backbone) for photo in photos])
        last = backbone(images).layers[-1]
        # As the pictures of the folder are encoded, whatever the size that is looked at.
        whole = torch.cat([square(photo, side, backbone) for photo in photos])
        summary = _summary(backbone(whole).layers[-1])
        return _Seen(images.cpu(), last.patches.cpu(), summary.cpu())

    @one_line
    def clicked(self, seen: _Seen | None, event: gr.SelectData) -> tuple[float, float]:
        """Return where the picture was clicked, from the top and from the left."""
        if seen is None:
            raise UserError("choose a picture first")
        side = as_picture(seen.images[0]).shape[0]
        left, top = (min(max(at / side, 0.0), 1.0) for at in event.index[:2])
        return round(top, 3), round(left, 3)

    @one_line
    def maps(self, seen: _Seen | None, row: float, column: float) -> tuple[Any, ...]:
        """Draw the features, and how similar every patch is to one of the first picture."""
        if seen is None:
            return *[None] * 6, gr.skip(), "Choose a picture, or pick one of the examples."
        h, w = seen.patches.shape[-2:]
        y, x = min(int(row * h), h - 1), min(int(column * w), w - 1)
        unit = F.normalize(seen.patches.float(), dim=1)
        cosine = torch.einsum("nchw,c->nhw", unit, unit[0, :, y, x])
        # Of most encoders all patches are alike to some degree: what differs is shown.
        low = min(visualize.quantile(cosine, 0.02), 0.99)
        components = visualize.principal_components(seen.patches, seen.images.shape)
        found: list[Any] = []
        size = tuple(seen.images.shape[-2:])
        for number, image in enumerate(seen.images):
            shown = image.clone() if number else _marked(image, y, x, (h, w))
            heat = visualize.colour((cosine[number] - low) / (1 - low), "error")
            heat = F.interpolate(heat[None], size)[0]
            found += [as_picture(picture) for picture in (shown, components[number], heat)]
        found += [None] * (6 - len(found))
        text = (
            f"Patch {y}, {x} of {h} x {w}. Cosine similarity: black {low:.2f} and less, brightest "
            f"1.\n\n{_class_tokens(seen.cls)}"
        )
        return *found, gr.Row(visible=len(seen.images) > 1), text

    @one_line
    def tokens(self, name: str) -> gr.Dropdown:
        """Offer the class tokens of an encoder."""
        single = [f"token {i}" for i in range(self._backbone(name).n_cls_tokens)]
        return gr.Dropdown([_MEAN, *single], value=_MEAN)

    @one_line
    def search(
        self,
        name: str,
        seen: _Seen | None,
        token: str,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 (how Gradio finds it)
    ) -> Iterator[tuple[list[tuple[NDArray[np.uint8], str]] | None, str]]:
        """Yield the pictures of the folder that are nearest to the first one, and among which."""
        if seen is None:
            raise UserError("choose a picture first")
        backbone = self._backbone(name)
        assert self.folder is not None
        if name not in self.banks:
            for bank in _encoded(self.folder, backbone, progress):
                if bank is None:
                    yield None, ""  # where it can be stopped
                else:
                    self.banks[name] = bank
        bank = self.banks[name]
        query, entries = _tokens_of(seen.cls[:1], token), _tokens_of(bank.cls, token)
        similarity, index = nearest_neighbours(query, entries, n=_NEIGHBOURS)
        shown = []
        for value, i in zip(similarity[0].tolist(), index[0].tolist(), strict=True):
            with suppress(BadImage, OSError):  # it is gone since
                thumbnail = _cropped(bank.files[i], _side_of(backbone))
                file = visible(bank.files[i].relative_to(self.folder).as_posix())
                shown.append((thumbnail, f"{file}: {value:.3f}"))
        yield shown, bank.note

    def _backbone(self, name: str) -> Backbone:
        if name not in self.backbones:
            raise UserError(f"there is no encoder '{name}' here")
        return self.backbones[name]


def _encoded(folder: Path, backbone: Backbone, progress: Any) -> Iterator[_Bank | None]:
    """Encode the pictures of a folder; yield None after each step, and last what was found."""
    every = image_files(folder)
    files, used, parts = every[:_MOST_FILES], [], []
    for start in range(0, len(files), _AT_ONCE):
        progress((start, len(files)), desc="encoding the folder", unit="pictures")
        crops = []
        for file in files[start : start + _AT_ONCE]:
            with suppress(BadImage, OSError):
                crops.append(_cropped(file, _side_of(backbone)))
                used.append(file)
        if crops:
            images = torch.from_numpy(np.stack(crops)).movedim(-1, 1).to(backbone.mean.device)
            with torch.no_grad():
                last = backbone(images).layers[-1]
            parts.append(_summary(last).cpu())
        yield None
    if not parts:
        raise UserError(f"the folder has no picture that can be used, of {len(files)}")
    note = f"Among {len(files):,} pictures of the folder"
    if len(files) < len(every):
        note = f"Among the first {len(files):,} of {len(every):,} pictures of the folder"
    bad = len(files) - len(used)
    yield _Bank(used, torch.cat(parts), f"{note}, {bad:,} of them unusable" if bad else note)


def _side_of(backbone: Backbone) -> int:
    """Return the side of the pictures that an encoder was trained on, in pixels."""
    return backbone.grid[0] * backbone.stride


def _cropped(file: Path, side: int) -> NDArray[np.uint8]:
    """Return the square in the middle of a picture of the folder, uint8 `(side, side, 3)`."""
    return centre(decode_pixels(read_file(file), max_megapixels=MOST_MEGAPIXELS), side)


def _tokens_of(cls: Tensor, token: str) -> Tensor:
    """Return unit vectors `(M, C)`: the mean class token of each picture, or a single one."""
    single = token.removeprefix("token ")
    if token == _MEAN or not single.isdecimal() or int(single) >= cls.shape[1]:
        return F.normalize(cls.float().mean(1), dim=1)
    return F.normalize(cls[:, int(single)].float(), dim=1)


def _summary(layer: Layer) -> Tensor:
    """Return what stands for whole pictures: class tokens `(N, K, C)`, or the mean patch."""
    return layer.cls if layer.n_cls else layer.tokens.mean(dim=1, keepdim=True)


def _class_tokens(cls: Tensor) -> str:
    """Return a table: single class tokens `(N, K, C)` against their mean, and across pictures."""
    mean = cls.float().mean(1, keepdim=True)
    every = torch.cat([cls.float(), mean], dim=1)
    columns = [
        ["class token", *map(str, range(cls.shape[1])), _MEAN],
        ["cosine with the mean", *_numbers(every[0], mean[0])],
    ]
    if len(cls) > 1:
        columns.append(["cosine between the two pictures", *_numbers(every[0], every[1])])
    lines = ["| " + " | ".join(row) + " |" for row in zip(*columns, strict=True)]
    return "\n".join([lines[0], "|---" * len(columns) + "|", *lines[1:]])


def _numbers(a: Tensor, b: Tensor) -> list[str]:
    return [f"{value:.3f}" for value in F.cosine_similarity(a, b, dim=-1).tolist()]


def _marked(image: Tensor, row: int, column: int, grid: tuple[int, int]) -> Tensor:
    """Frame a patch."""
    found, side = image.clone(), image.shape[-1] // grid[1]
    top, left, white = row * side, column * side, image.new_full((3, 1), 255)
    patch = found[:, top : top + side, left : left + side]
    for edge in (patch[:, 0], patch[:, -1], patch[:, :, 0], patch[:, :, -1]):
        edge[:] = white
    return found
