"""What a user of the page gives: pictures and videos, and a folder of their own for results."""

from __future__ import annotations

import functools
import hashlib
import inspect
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

import gradio as gr
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pixio_lightning.data.decode import BadImage, centre_crop, decode_pixels, read_file, to_tensor
from pixio_lightning.errors import UserError, out_of_memory, visible
from pixio_lightning.models.backbone import Backbone

P = ParamSpec("P")
R = TypeVar("R")

MOST_MEGAPIXELS = 64.0  # decoded, 192 MB
_LONGEST = 1536  # pixels of a side that is worked on
_SHOWN = 512  # pixels that a small picture is enlarged to, so that its patches can be clicked


class Photo(NamedTuple):
    """An upload as it is worked on.

    Attributes:
        name: Of the file, without its suffix.
        pixels: uint8 `(H, W, 3)`, upright.
        size: Height and width of the file's picture.
    """

    name: str
    pixels: NDArray[np.uint8]
    size: tuple[int, int]

    @property
    def note(self) -> str:
        """Say what was done to it."""
        (height, width), (h, w) = self.size, self.pixels.shape[:2]
        return "" if (height, width) == (h, w) else f"Reduced from {width} x {height} to {w} x {h}."


def open_photo(path: str | None) -> Photo:
    """Decode an upload; one that is larger than can be shown is reduced.

    Raises:
        UserError: There is none, or it is no picture that can be used.
    """
    if not path:
        raise UserError("choose a picture first")
    file = Path(path)
    try:
        pixels = decode_pixels(read_file(file), max_megapixels=MOST_MEGAPIXELS)
    except BadImage as error:
        raise UserError(f"{file.name}: {error}") from None
    size = pixels.shape[:2]
    if max(size) > _LONGEST:
        # Pillow, as it works on bytes: torch would need four times the memory.
        scale = _LONGEST / max(size)
        width, height = (max(1, round(side * scale)) for side in size[::-1])
        reduced = Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX)
        pixels = np.asarray(reduced)
    return Photo(visible(file.stem), pixels, (size[0], size[1]))


def square(photo: Photo, side: int, backbone: Backbone) -> Tensor:
    """Return the largest square in the middle of a picture, uint8 `(1, 3, side, side)`."""
    height, width = photo.pixels.shape[:2]
    return to_tensor(photo.pixels, centre_crop(width, height), side)[None].to(backbone.mean.device)


def scale_of(size: Sequence[int]) -> int:
    """Return how many times as large a picture of a height and width is shown."""
    return max(1, -(-_SHOWN // max(size)))


def as_picture(image: Tensor) -> NDArray[np.uint8]:
    """Return an image uint8 `(3, H, W)` for the page; a small one with every pixel enlarged."""
    scale = scale_of(image.shape[-2:])
    return F.interpolate(image[None].cpu(), scale_factor=scale)[0].permute(1, 2, 0).numpy()


class Folders:
    """Temporary folders below `root`, one for each user and tab, emptied by their next request."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def fresh(self, request: gr.Request, tab: str) -> Path:
        """Return an empty folder; what the user's last request of the tab wrote is removed."""
        place = self._of(request) / _digest(tab)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        return Path(tempfile.mkdtemp(dir=place))

    def forget(self, request: gr.Request) -> None:
        """Remove all that a user has been given."""
        shutil.rmtree(self._of(request), ignore_errors=True)

    def _of(self, request: gr.Request) -> Path:
        # A browser names its own session, so that the name may be any text.
        return self.root / _digest(str(request.session_hash))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def one_line(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function of the page show a user's mistake as one line, and keep no gradients.

    So it does where memory runs out; the next, smaller request may fit.
    """

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with torch.no_grad():
                return function(*args, **kwargs)
        except (UserError, BadImage) as error:
            raise told(error) from None
        except (MemoryError, RuntimeError) as error:
            raise _told_of_memory(error) from None

    @functools.wraps(function)
    def called_in_steps(*args: P.args, **kwargs: P.kwargs) -> Any:
        try:
            yield from function(*args, **kwargs)  # type: ignore[misc]
        except (UserError, BadImage) as error:
            raise told(error) from None
        except (MemoryError, RuntimeError) as error:
            raise _told_of_memory(error) from None

    return called_in_steps if inspect.isgeneratorfunction(function) else called


def told(error: Exception) -> gr.Error:
    """Return a mistake as the page shows it, of which the terminal says nothing."""
    return gr.Error(visible(str(error)), title="That did not work", print_exception=False)


def _told_of_memory(error: Exception) -> Exception:
    """Return what the page shows where memory ran out; any other error as it is."""
    text = out_of_memory(error)
    return told(UserError(f"{text}: try a smaller picture, or fewer")) if text else error


def show_picture(label: str, *, min_width: int = 200) -> gr.Image:
    """Put a picture of ours on the page; nothing that a user sends is decoded by it."""
    return gr.Image(
        label=label,
        alt_text=label,
        interactive=False,
        format="png",
        min_width=min_width,
        buttons=["download", "fullscreen"],
    )


def choose_picture(
    examples: Sequence[Path], *, label: str = "Your picture", kinds: Sequence[str] = ("image",)
) -> gr.File:
    """Put an upload on the page, with examples below it to pick from."""
    upload = gr.File(label=label, file_types=[*kinds], height=130)
    if examples:
        offer_examples(examples, upload)
    return upload


def offer_examples(examples: Sequence[Path], upload: gr.File, *, all_at_once: bool = False) -> None:
    """Put examples on the page that fill an upload when they are picked, or all by a button."""
    paths = [str(path) for path in examples]
    if all_at_once:
        button = gr.Button("Take these views", size="sm")
        button.click(lambda: paths, None, upload, api_visibility="private", queue=False)
    shown = gr.Gallery(
        [(str(path), path.stem) for path in examples],
        label="Views of one scene" if all_at_once else "Or one of these",
        columns=2,
        height=200 if all_at_once else 320,
        object_fit="cover",
        allow_preview=False,
        interactive=False,
        buttons=[],
    )

    def pick(event: gr.SelectData) -> str:
        return paths[event.index]

    if not all_at_once:
        shown.select(pick, None, upload, api_visibility="private", queue=False)
