"""Where clips come from, and which of their frames make a sample.

A clip is a window of a video: a numbered list of frames with their times. Its name is
`FILE@SECONDS`, and all clips of one file are trained on or held out together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pixio_lightning.data.decode import BadImage, decode_pixels
from pixio_lightning.data.scenes.clip_store import RenderedClips
from pixio_lightning.data.scenes.clips import exact_flow, warped
from pixio_lightning.data.sources import held_out
from pixio_lightning.errors import UserError
from pixio_lightning.keyed import Purpose, RandomKey

Frame = NDArray[np.uint8]  # (H, W, 3)


class ClipSource(Protocol):
    """A numbered list of clips."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Return the clip's name: unique and stable."""
        ...

    def file(self, index: int) -> str:
        """Return the name of the file or folder that the clip is a part of."""
        ...

    def times(self, index: int) -> NDArray[np.float64]:
        """Return when its frames are shown, `(V,)` seconds in rising order."""
        ...

    def read(self, index: int, frames: Sequence[int]) -> list[Frame]:
        """Return some of its frames, in rising order.

        Raises:
            BadImage: With the name of the clip, as bad ones are counted by name, or of a frame.
        """
        ...


class SceneSource:
    """Rendered clips; the held-out ones know what exact motion would make of a frame.

    Args:
        clips: The clips.
    """

    def __init__(self, clips: RenderedClips) -> None:
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def name(self, index: int) -> str:
        return self.clips.name(index)

    def file(self, index: int) -> str:
        return self.clips.name(index)

    def times(self, index: int) -> NDArray[np.float64]:
        return np.array(self.clips.times(index))

    def read(self, index: int, frames: Sequence[int]) -> list[Frame]:
        encoded = (self.clips.encoded(index, frame) for frame in frames)
        return [decode_pixels(data, max_megapixels=64) for data in encoded]

    def warp(self, index: int, past: int, future: int) -> Frame:
        """Return the past frame moved by exact flow to where it would be in the future one."""
        clip = self.clips.load(index, frames=(past, future))
        return warped(clip.image[0], exact_flow(clip, 1, 0)[0]).transpose(1, 2, 0)


class SomeClips:
    """Some clips of a source, under their own names."""

    def __init__(self, source: ClipSource, indices: NDArray[np.int64]) -> None:
        # As an array: workers would copy a list's numbers one by one.
        self.source, self.indices = source, indices

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))

    def file(self, index: int) -> str:
        return self.source.file(int(self.indices[index]))

    def times(self, index: int) -> NDArray[np.float64]:
        return self.source.times(int(self.indices[index]))

    def read(self, index: int, frames: Sequence[int]) -> list[Frame]:
        return self.source.read(int(self.indices[index]), frames)


def hold_out_files(source: ClipSource, *, share: float = 0.1) -> tuple[SomeClips, SomeClips]:
    """Split clips by the files they are of, the same ones every time.

    Raises:
        UserError: There are fewer than two files.
    """
    file_of = [source.file(i) for i in range(len(source))]
    files = sorted({*file_of})
    if len(files) < 2:
        raise UserError(
            f"{len(files)} clip is too few to train on one and hold one out: give data.val_path, "
            "or more of them"
        )
    _, apart = held_out(files, str, share=share)
    held = set(apart)
    is_held = np.array([file in held for file in file_of])
    train, val = (np.flatnonzero(part) for part in (~is_held, is_held))
    return SomeClips(source, train), SomeClips(source, val)


def choose_frames(
    times: NDArray[np.float64],
    random_key: RandomKey,
    *,
    gap: tuple[float, float],
    past: int = 1,
    step: float = 0.0,
) -> list[int]:
    """Draw the frames of a sample: `past` ones, and a future one.

    The gap is uniform in its range, as far as the clip is long enough, and the start uniform in
    what is left; each frame is the one whose time is nearest. So it does not depend on what
    decodes.

    Args:
        times: Seconds of the frames `(V,)`, in rising order.
        random_key: Of the clip, in this pass.
        gap: Range of seconds from the last past frame to the future one.
        past: How many past frames.
        step: Seconds between them.

    Returns:
        Their numbers, the future one last.

    Raises:
        BadImage: The clip has fewer frames, or is shorter.
    """
    before = (past - 1) * step
    room = float(times[-1] - times[0]) - before if len(times) else 0.0
    if len(times) <= past or room < gap[0]:
        raise BadImage(f"shorter than {before + gap[0]:g} s, or of fewer than {past + 1} frames")
    share, place = random_key.uniform(2, Purpose.CLIP)
    seconds = gap[0] + share * (min(gap[1], room) - gap[0])
    start = float(times[0]) + place * (room - seconds)
    return frames_from(times, start, gap=seconds, past=past, step=step)


def frames_from(
    times: NDArray[np.float64], start: float, *, gap: float, past: int = 1, step: float = 0.0
) -> list[int]:
    """Return the numbers of the frames nearest to `past` times, and to a future one, in order.

    Args:
        times: Seconds of the frames `(V,)`, in rising order; more than `past`.
        start: Seconds of the first past frame.
        gap: Seconds from the last past frame to the future one.
        past: How many past frames.
        step: Seconds between them.
    """
    wanted = [start + i * step for i in range(past)] + [start + (past - 1) * step + gap]
    frames = [int(np.abs(times - at).argmin()) for at in wanted]
    # At a low rate two may fall on one frame; there are enough of them, if not so far apart.
    for i in range(1, past + 1):
        frames[i] = max(frames[i], frames[i - 1] + 1)
    for i in range(past, -1, -1):
        frames[i] = min(frames[i], len(times) - 1 - (past - i))
    return frames
