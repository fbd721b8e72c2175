"""Reconstruct: hide blocks of a picture and see what a pretraining makes of them.

Blocks are numbered row by row from 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pixio_lightning.cli.app.loaded import Loaded
from pixio_lightning.cli.app.uploads import (
    Photo,
    as_picture,
    choose_picture,
    one_line,
    open_photo,
    scale_of,
    show_picture,
    square,
)
from pixio_lightning.curation.scores import colour_entropy
from pixio_lightning.curation.scoring import image_losses, side_of
from pixio_lightning.data.shards.keep_rule import Curation, KeepRule, Scores
from pixio_lightning.errors import UserError
from pixio_lightning.keyed import Purpose, RandomKey, key_of
from pixio_lightning.models.masking import Mask, block_mask, count_blocks
from pixio_lightning.pretraining.masked_pixels import PixelPretraining
from pixio_lightning.training import visualize

_MASKS = 4  # of which the loss of the curation rule is the mean


def add_reconstruct_tab(loaded: Loaded, examples: Sequence[Path], tab: str) -> None:
    """Put the tab of a pretraining on the page."""
    model = loaded.module
    assert isinstance(model, PixelPretraining)
    work = _Work(model)
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            upload = choose_picture(examples)
            ratio = gr.Slider(
                0.05, 0.95, model.mask_ratio, step=0.05, label="Mask ratio", info="share hidden"
            )
            grid = gr.Radio(
                work.blocks,
                value=model.mask_grid,
                label="Mask grid",
                info="patches a block is wide",
            )
            seed = gr.Number(0, label="Seed of the mask", precision=0, minimum=0)
            hidden = gr.Textbox(
                label="Hidden blocks",
                info="numbered row by row from 0, as 0-5, 8; or click blocks in the masked input",
                max_lines=3,
            )
        with gr.Column(scale=3, min_width=300):
            titles = [
                "Masked input (click a block)",
                work.reconstruction,
                "Truth",
                "Loss per patch",
            ]
            with gr.Row():
                pictures = [show_picture(title) for title in titles]
            text = gr.Markdown("Choose a picture, or pick one of the examples.")
    photo = gr.State(None)
    shown = [hidden, *pictures, text]
    about: dict[str, Any] = {"concurrency_id": "model", "show_progress": "minimal"}
    drawn = [photo, ratio, grid, seed]
    opened = upload.change(work.open, upload, photo, api_name=f"{tab}_open", **about)
    opened.success(work.draw, drawn, shown, api_name=tab, **about)
    ratio.release(work.draw, drawn, shown, api_visibility="private", **about)
    for control in (grid, seed):
        control.input(work.draw, drawn, shown, api_visibility="private", **about)
    chosen = [photo, grid, hidden]
    hidden.submit(work.hide, chosen, shown, api_name=f"{tab}_hidden", **about)
    pictures[0].select(work.toggle, chosen, shown, api_visibility="private", **about)


class _Work:
    """What the tab does with a model."""

    def __init__(self, model: PixelPretraining) -> None:
        self.model, self.side = model, side_of(model)
        self.grid = self.side // model.backbone.stride
        divisors = (g for g in range(1, self.grid) if self.grid % g == 0)
        self.blocks = [g for g in divisors if (self.grid // g) ** 2 > 1]

    @property
    def reconstruction(self) -> str:
        return "Reconstruction" + "*" * self.model.norm_pix

    @one_line
    def open(self, path: str | None) -> Photo | None:
        return open_photo(path) if path else None

    @one_line
    def draw(self, photo: Photo | None, ratio: float, block: int, seed: int) -> tuple[Any, ...]:
        """Hide blocks at random."""
        if photo is None:
            raise UserError("choose a picture first")
        grid = (self.grid, self.grid)
        count, _ = count_blocks(grid, block, ratio, key="a mask ratio of")
        key = RandomKey(torch.tensor([key_of(photo.name)]), int(seed or 0), 0)
        noise = key.uniform(count, Purpose.MASK)
        mask = block_mask(noise, grid=grid, block=block, ratio=ratio)
        patches = mask.hide[0]
        rows, columns = patches // self.grid // block, patches % self.grid // block
        return self._shown(photo, block, set((rows * (self.grid // block) + columns).tolist()))

    @one_line
    def hide(self, photo: Photo | None, block: int, text: str) -> tuple[Any, ...]:
        """Hide the blocks that are named."""
        if photo is None:
            raise UserError("choose a picture first")
        return self._shown(photo, block, parse_blocks(text, (self.grid // block) ** 2))

    @one_line
    def toggle(
        self, photo: Photo | None, block: int, text: str, event: gr.SelectData
    ) -> tuple[Any, ...]:
        """Hide the block that is clicked, or show it."""
        across = self.grid // block
        shown = self.side * scale_of((self.side, self.side))
        column, row = (min(int(at * across / shown), across - 1) for at in event.index[:2])
        if photo is None:
            raise UserError("choose a picture first")
        hidden = parse_blocks(text, across**2) ^ {row * across + column}
        return self._shown(photo, block, hidden)

    def _shown(self, photo: Photo, block: int, hidden: set[int]) -> tuple[Any, ...]:
        model, grid = self.model, (self.grid, self.grid)
        count = (self.grid // block) ** 2
        if not 0 < len(hidden) < count:
            raise UserError(
                f"{len(hidden)} of {count} blocks are hidden; at least one must be, and one stay "
                "visible"
            )
        noise = torch.zeros(1, count)
        noise[0, sorted(hidden)] = 1
        mask = block_mask(noise, grid=grid, block=block, ratio=len(hidden) / count)
        device = model.device
        images = square(photo, self.side, model.backbone)
        keys = torch.tensor([key_of(photo.name)], device=device)
        mask = Mask(mask.keep.to(device), mask.hide.to(device))
        result = model(images, RandomKey(keys, 0, 0), mask)
        losses = (result.prediction.float() - result.target.float()).square().mean(dim=-1)[0]
        columns = [as_picture(column[0]) for column in model.painted(result)]
        high = max(1.0, visualize.quantile(losses, 0.98))
        columns.append(as_picture(self._loss_map(losses / high, result.mask.hide[0])))
        curation = self._curation(photo, float(image_losses(model, images, keys, masks=_MASKS)[0]))
        text = [
            f"**Loss under this mask: {float(losses.mean()):.3f}** "
            f"(per patch: black 0, brightest {high:.2f} and more; grey is visible)",
            curation,
            "\\* hidden patches with the true mean and contrast of each" * model.norm_pix,
            photo.note,
        ]
        return name_blocks(hidden), *columns, "\n\n".join(filter(None, text))

    def _loss_map(self, losses: Tensor, hide: Tensor) -> Tensor:
        values = torch.full((self.grid**2,), torch.nan)
        values[hide.cpu()] = losses.cpu()
        small = visualize.colour(values.view(self.grid, self.grid), "error")
        return F.interpolate(small[None], (self.side, self.side))[0]

    def _curation(self, photo: Photo, loss: float) -> str:
        """Say how often the curation rule of the paper would train on the picture."""
        entropy = colour_entropy(photo.pixels)
        height, width = photo.size
        scores = Scores(*(np.array([x]) for x in (loss, entropy, width, height)))
        rule = Curation()
        kept = float(KeepRule(rule, 1.0, 0).probability(scores)[0])
        why = []
        if entropy <= rule.min_entropy:
            why.append(f"an entropy up to {rule.min_entropy:g}")
        if min(photo.size) < rule.min_side:
            why.append(f"a side under {rule.min_side} pixels")
        dropped = f" (dropped for {' and '.join(why)})" if why else ""
        own = float(np.minimum(1, rule.power(np.array([loss]))[0]))
        of_loss = f"; by its loss alone {own:.2f}" if why else ""
        return (
            f"Curation: loss {loss:.3f} over {_MASKS} masks of the run's own kind, colour entropy "
            f"{entropy:.2f} bits, **keep probability {kept:.2f}**{dropped}{of_loss}"
        )


def parse_blocks(text: str, count: int) -> set[int]:
    """Return the numbers that a list as `0-5, 8` names.

    Raises:
        UserError: It names something else than blocks.
    """
    found: set[int] = set()
    for part in text.replace(",", " ").split():
        first, _, last = part.partition("-")
        if not (first.isdecimal() and (last or first).isdecimal() and len(part) < 20):
            raise UserError(f"'{part}' is no block; expected numbers as 0-5, 8")
        if int(last or first) >= count:
            raise UserError(f"there is no block {last or first}; they are 0 to {count - 1}")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def name_blocks(blocks: Iterable[int]) -> str:
    """Return the list that `parse_blocks` reads."""
    runs: list[list[int]] = []
    for block in sorted(blocks):
        if runs and runs[-1][1] == block - 1:
            runs[-1][1] = block
        else:
            runs.append([block, block])
    return ", ".join(f"{a}-{b}" if a < b else str(a) for a, b in runs)
