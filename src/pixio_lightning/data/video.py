"""Frames of a video file, evenly spaced in time, and what writes one; by PyAV."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixio_lightning.data.samples import spread
from pixio_lightning.errors import UserError

SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".3gp")

# Containers of these files alone: what FFmpeg takes for a playlist opens other files and addresses.
_OPTIONS = {
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts",
    "protocol_whitelist": "file",
}


def pyav(file: Path) -> Any:
    """Return PyAV, for a video; raises UserError where it is missing."""
    try:
        import av
    except ImportError:
        raise UserError(
            f"'{file}' is a video, which needs PyAV: pip install 'pixio-lightning[video]'"
        ) from None
    return av


def video_frames(
    file: Path, *, every: float, limit: int | None, max_megapixels: float
) -> Iterator[tuple[int, NDArray[np.uint8] | None]]:
    """Yield frames with their numbers, upright, as uint8 `(h, w, 3)`; None where one is damaged.

    Args:
        file: The video.
        every: Seconds between frames.
        limit: Frames at most, evenly spread over those; None for all.
        max_megapixels: Larger frames are refused.

    Raises:
        UserError: PyAV is missing, or the file is no video, without frames, or too large.
    """
    av = pyav(file)
    if not file.is_file():
        raise UserError(f"data.path '{file}' does not exist")
    try:
        with av.open(str(file), options=_OPTIONS, metadata_errors="replace") as container:
            times, unit = _times(container, max_megapixels)
    except (av.error.FFmpegError, OSError) as error:
        reason = error.strerror or type(error).__name__
        raise UserError(f"'{file}' cannot be read as a video ({reason})") from None
    if not len(times):
        raise UserError(f"'{file}' is a video without frames")
    wanted = evenly(times * unit, every, limit)
    with av.open(str(file), options=_OPTIONS, metadata_errors="replace") as container:
        yield from zip(wanted, _frames(av, container, times[wanted].tolist()), strict=True)


def _times(container: Any, max_megapixels: float) -> tuple[NDArray[np.int64], float]:
    """Return when the frames are shown, in order, and the unit in seconds; decodes nothing."""
    none = np.empty(0, np.int64)
    if not container.streams.video:
        return none, 1.0
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise UserError("the video is of an unknown codec, or damaged")
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > max_megapixels * 1e6:
        raise UserError(
            f"the video has frames of {width}x{height} pixels, over {max_megapixels:g} megapixels: "
            "scale it down, or raise data.max_megapixels"
        )
    packets = [packet for packet in container.demux(stream) if packet.size]
    stamps = [packet.dts if packet.pts is None else packet.pts for packet in packets]
    times = sorted({stamp for stamp in stamps if stamp is not None})
    return np.array(times, np.int64) if times else none, float(stream.time_base)


def evenly(times: NDArray[np.floating], every: float, limit: int | None) -> list[int]:
    """Return the numbers of the frames at 0, `every`, 2 `every`... seconds; at most `limit`.

    Args:
        times: Seconds of the frames `(N,)`, in rising order.
        every: Seconds between frames.
        limit: Frames at most, evenly spread over those; None for all.
    """
    marks = np.arange(times[0], times[-1] + 1e-6, every)
    # A frame that is early by a rounding of its time is the one that is meant.
    numbers = np.unique(np.searchsorted(times, marks - 1e-6))
    return [int(numbers[i]) for i in spread(len(numbers), limit)]


def _frames(av: Any, container: Any, times: list[int]) -> Iterator[NDArray[np.uint8] | None]:
    """Yield the frames shown at `times`, in rising order; None for all that do not come."""
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    frames = container.decode(stream)
    at = 0
    while at < len(times):
        try:
            frame = next(frames, None)
        except av.error.FFmpegError:
            frame = None
        if frame is None:
            break
        # By time, not by count, because a decoder drops what it cannot decode.
        while at + 1 < len(times) and frame.pts is not None and frame.pts >= times[at + 1]:
            yield None
            at += 1
        if frame.pts is not None and frame.pts >= times[at]:
            pixels = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
            yield np.ascontiguousarray(pixels)
            at += 1
    yield from [None] * (len(times) - at)


@contextmanager
def video_writer(
    path: Path, *, fps: float, height: int, width: int, options: dict[str, str] | None = None
) -> Iterator[Callable[[NDArray[np.uint8]], None]]:
    """Give what adds a frame, uint8 `(height, width, 3)`, to an mp4 file (H.264).

    Args:
        path: The file; its folder is made.
        fps: Frames a second.
        height: Of the frames, an even number, since H.264 halves the colours.
        width: Likewise.
        options: Of the encoder.

    Raises:
        UserError: PyAV is missing.
    """
    av = pyav(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("h264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.options = options or {}

        def add(frame: NDArray[np.uint8]) -> None:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))

        yield add
        container.mux(stream.encode())
