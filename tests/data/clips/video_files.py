"""Videos that tests make: each frame says its number by its brightness."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

GOOD = 24  # frames


def number_of(frame: np.ndarray) -> int:
    """Return the number of a frame that `painted` made, read back after any codec."""
    return round(float(frame.mean()) / 10)


def painted(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Return a frame of one brightness, with a darker left upper quarter."""
    frame = np.full((height, width, 3), 10 * number, np.uint8)
    return frame


def write_video(
    path: Path,
    *,
    count: int = GOOD,
    fps: int = 8,
    gop: int = 6,
    codec: str = "h264",
    times: list[int] | None = None,
    rotation: int = 0,
    options: dict[str, str] | None = None,
    size: tuple[int, int] = (48, 64),
    noise: int = 0,
) -> Path:
    """Write a video of painted frames.

    Args:
        path: The file; its suffix says the container.
        count: Frames.
        fps: Frames a second.
        gop: Frames from key frame to key frame.
        codec: What encodes.
        times: Of the frames in ticks of 1 / fps, for a variable rate; None for one tick each.
        rotation: Degrees by which a player turns it.
        options: Of the encoder.
        size: Height and width.
        noise: What is added to the brightness at random, at most: flat frames are of few bytes.
    """
    grain = np.random.default_rng(0).integers(-noise, noise + 1, (*size, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.gop_size = gop
        stream.codec_context.time_base = Fraction(1, fps)
        stream.options = options or {}
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(
                (painted(i, *size) + grain).clip(0, 255).astype(np.uint8), format="rgb24"
            )
            frame.pts = times[i] if times else i
            frame.time_base = Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if rotation:
        turned(path, rotation)
    return path


def turned(path: Path, degrees: int) -> None:
    """Say in an mp4 file that it is shown turned: the matrix of its track header."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4
    matrix = at + (4 + 8 + 4 + 4 + 4) + 8 + 2 + 2 + 2 + 2  # version 0: before it stand these fields
    one, minus = (1 << 16).to_bytes(4, "big"), (-(1 << 16)).to_bytes(4, "big", signed=True)
    zero, w = bytes(4), (1 << 30).to_bytes(4, "big")
    rows = {90: [zero, one, zero, minus, zero, zero], 180: [minus, zero, zero, zero, minus, zero]}
    data[matrix : matrix + 36] = b"".join([*rows[degrees], zero, zero, w])
    path.write_bytes(data)


def write_sound(path: Path) -> Path:
    """Write a file of sound alone."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_empty(path: Path) -> Path:
    """Write a video without a frame."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=8)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        container.start_encoding()
    return path
