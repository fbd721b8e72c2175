"""Frames of a video file, evenly spaced in time, and what writes one; by PyAV."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixio_lightning.data.decode import BadImage
from pixio_lightning.data.samples import spread
from pixio_lightning.errors import UserError
from pixio_lightning.files import written_aside

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".3gp")

# Containers of these files alone: what FFmpeg takes for a playlist opens other files and addresses.
_OPTIONS = {
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts",
    "protocol_whitelist": "file",
}
# Frames that a decoder may need before the one it shows: the deepest reordering of H.264.
_REORDERED = 16
_SAME = 1e-4  # seconds by which equal times may differ


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
    with opened_video(file, max_megapixels=max_megapixels) as container:
        times, _ = packet_times(container)
    if not len(times):
        raise UserError(f"'{file}' is a video without frames")
    wanted = evenly(times, every, limit)
    # Of a frame that is damaged the next one stands in its place, if it is not wanted itself.
    found = frames_at(file, times[wanted].tolist(), early=1e-6, late=math.inf)
    yield from zip(wanted, found, strict=True)


@contextmanager
def opened_video(file: Path, *, max_megapixels: float) -> Iterator[Any]:
    """Give the container of a video with a stream of pictures; nothing is decoded.

    Args:
        file: The video.
        max_megapixels: Larger frames are refused.

    Raises:
        UserError: PyAV is missing, or the file is no video, without frames, or too large.
    """
    av = pyav(file)
    if not file.is_file():
        raise UserError(f"the video '{file}' does not exist")
    try:
        with av.open(str(file), options=_OPTIONS, metadata_errors="replace") as container:
            if not container.streams.video:
                raise UserError(f"'{file}' is a video without frames")
            codec = container.streams.video[0].codec_context
            if codec is None:
                raise UserError(f"'{file}' is a video of an unknown codec, or damaged")
            if codec.width * codec.height > max_megapixels * 1e6:
                raise UserError(
                    f"'{file}' has frames of {codec.width}x{codec.height} pixels, over "
                    f"{max_megapixels:g} megapixels: scale it down, or raise the limit"
                )
            yield container
    except (av.error.FFmpegError, OSError) as error:
        reason = error.strerror or type(error).__name__
        raise UserError(f"'{file}' cannot be read as a video ({reason})") from None


def packet_times(container: Any) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return when the frames are shown, seconds in order, and which are key frames, by number.

    The packets tell; nothing is decoded.
    """
    stream = container.streams.video[0]
    shown: dict[int, bool] = {}
    for packet in container.demux(stream):
        stamp = packet.dts if packet.pts is None else packet.pts
        # What an edit list cuts off is decoded, but never shown.
        if packet.size and stamp is not None and not packet.is_discard:
            shown[stamp] = packet.is_keyframe
    stamps = sorted(shown)
    keys = np.flatnonzero([shown[stamp] for stamp in stamps])
    return np.array(stamps, np.float64) * float(stream.time_base or 1), keys


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


def frames_at(
    file: Path, times: Sequence[float], *, early: float, late: float
) -> Iterator[NDArray[np.uint8] | None]:
    """Yield the frames shown at some times, upright, uint8 `(h, w, 3)`; None for each without one.

    By time, not by count, because a decoder drops what it cannot decode. What it says it has
    filled in is dropped as well, with all up to the next key frame, which is made of it.

    Args:
        file: A video that `opened_video` takes.
        times: Seconds, in rising order.
        early: Seconds by which a frame may be shown before its time, but no more than half of those
            between two frames: of several, the nearest is meant.
        late: Likewise, after it, but not at the next one.
    """
    av, at = pyav(file), 0
    try:
        with av.open(str(file), options=_OPTIONS, metadata_errors="replace") as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            early = min(early, 0.5 / float(stream.average_rate or 1))
            before = early + _REORDERED / float(stream.average_rate or 1)
            first = int((times[0] - before) / stream.time_base)
            if first > (stream.start_time or 0):
                container.seek(first, stream=stream)
            sound = True
            for frame in container.decode(stream):
                sound = not frame.is_corrupt and (sound or frame.key_frame)
                if frame.time is None or not sound:
                    continue
                while at < len(times) and (
                    frame.time > times[at] + late
                    or (at + 1 < len(times) and frame.time >= times[at + 1] - early)
                ):
                    yield None
                    at += 1
                if at == len(times):
                    return
                if frame.time >= times[at] - early:
                    yield _upright(frame)
                    at += 1
    except (av.error.FFmpegError, OSError, ArithmeticError):
        pass  # what has not come by now is damaged
    yield from [None] * (len(times) - at)


def sought_frames(
    file: Path, numbers: Sequence[int], times: NDArray[np.float64], keys: NDArray[np.integer]
) -> list[NDArray[np.uint8]]:
    """Return a few frames of a video, upright, uint8 `(h, w, 3)`, decoding as little as it takes.

    It goes to the key frame before a frame, unless that has been passed already; on one thread,
    since others decode beside it.

    Args:
        file: A video that `opened_video` takes.
        numbers: Of the frames, in rising order.
        times, keys: When all frames are shown and which are key frames, see `packet_times`.

    Raises:
        BadImage: One cannot be decoded.
    """
    av, found = pyav(file), []
    before = np.searchsorted(keys, numbers, side="right") - 1
    # Before the first key frame there is nothing to go to but the beginning.
    sought = [float(times[keys[i] if i >= 0 else 0]) for i in before]
    try:
        with av.open(str(file), options=_OPTIONS, metadata_errors="replace") as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            frames, now = container.decode(stream), -math.inf
            for wanted, key in zip(times[list(numbers)].tolist(), sought, strict=True):
                if key > now:
                    container.seek(round(key / stream.time_base), stream=stream)
                    frames = _sound(container.decode(stream), key)
                frame = _first_from(frames, wanted)
                if frame is not None and frame.time > wanted + _SAME and key > now:
                    # Without an index of its own, a file may be gone to too far.
                    container.seek(stream.start_time or 0, stream=stream)
                    frames = _sound(container.decode(stream), key)
                    frame = _first_from(frames, wanted)
                if frame is None or frame.time > wanted + _SAME:
                    raise BadImage("a frame cannot be decoded")
                now = frame.time
                found.append(_upright(frame))
    except (av.error.FFmpegError, OSError, ArithmeticError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise BadImage(f"cannot be decoded ({reason})") from None
    return found


def _sound(frames: Iterator[Any], key: float) -> Iterator[Any]:
    """Yield frames; raises BadImage at one since a key frame, at `key` seconds, that is damaged.

    A decoder fills in what it cannot read, says so, and makes all up to the next key frame of it.
    """
    for frame in frames:
        if frame.is_corrupt and frame.time is not None and frame.time > key - _SAME:
            raise BadImage("a frame is damaged")
        yield frame


def _first_from(frames: Iterator[Any], time: float) -> Any:
    """Return the first frame that is shown at a time or later; None if there is none."""
    return next((f for f in frames if f.time is not None and f.time > time - _SAME), None)


def _upright(frame: Any) -> NDArray[np.uint8]:
    pixels = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
    return np.ascontiguousarray(pixels)


def write_video(path: Path, frames: NDArray[np.uint8], *, fps: float) -> None:
    """Write frames `(T, H, W, 3)` as an mp4 file, cut to even sides; it is there whole or not.

    Raises:
        UserError: PyAV is missing.
    """
    height, width = (side - side % 2 for side in frames.shape[1:3])
    with (
        written_aside(path) as aside,
        video_writer(aside, fps=fps, height=height, width=width) as add,
    ):
        for frame in frames:
            add(np.ascontiguousarray(frame[:height, :width]))


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
