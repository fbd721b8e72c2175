"""What a pair of frames costs: from H.264 by the distance of key frames, and from shards of clips.

Clips of four seconds, 340x256, pan over photographs with a little noise; a pair is two frames of
one clip, 0.13 to 1.6 seconds apart, decoded as `Clips` does, without crop and resize. Also: how
long the packets of a thousand files take to index.

Run: python benchmarks/video_path.py [--clips 1000] [--distinct 16] [--pairs 300]
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skimage import data
from sklearn.datasets import load_sample_images

from pixio_lightning.data.clips.pack import Form, pack_clips
from pixio_lightning.data.clips.packed import PackedClips
from pixio_lightning.data.clips.source import ClipSource, choose_frames
from pixio_lightning.data.clips.video import video_writer
from pixio_lightning.data.clips.videos import VideoSource
from pixio_lightning.keyed import RandomKey

HEIGHT, WIDTH, FPS, SECONDS = 256, 340, 30, 4


def write(path: Path, photograph: np.ndarray, *, seed: int, key_frames: int) -> None:
    """Write a clip that pans over a photograph."""
    rng = np.random.default_rng(seed)
    room = np.array(photograph.shape[:2]) - (HEIGHT, WIDTH)
    start, end = rng.uniform(0, room), rng.uniform(0, room)
    options = {"crf": "23", "g": str(key_frames), "sc_threshold": "0"}
    with video_writer(path, fps=FPS, height=HEIGHT, width=WIDTH, options=options) as add:
        for i in range(FPS * SECONDS):
            y, x = (start + (end - start) * i / (FPS * SECONDS)).astype(int)
            frame = photograph[y : y + HEIGHT, x : x + WIDTH, :3].astype(np.float32)
            noisy = frame + rng.normal(0, 2, frame.shape)
            add(np.clip(noisy, 0, 255).astype(np.uint8))


def milliseconds(source: ClipSource, pairs: int) -> float:
    """Return the CPU time of a pair."""
    source.read(0, [0, 1])
    start = time.process_time()
    for number in range(pairs):
        index = number * 7 % len(source)
        key = RandomKey(number, 0, 0)
        source.read(index, choose_frames(source.times(index), key, gap=(0.13, 1.6)))
    return 1000 * (time.process_time() - start) / pairs


def size_of(folder: Path) -> float:
    """Return the kilobytes of a kept second."""
    return sum(p.stat().st_size for p in folder.iterdir()) / 1000


def main() -> None:
    """Make the clips, measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--distinct", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=300)
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = ("astronaut", "coffee", "rocket")
    photographs = [*load_sample_images().images, *(getattr(data, name)() for name in names)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["PIXIO_CACHE"] = str(folder / "cache")
        print("| source | kB a clip | CPU ms a pair |\n|---|---|---|")
        about: dict[str, Any] = {"least": 0.13, "frames": 2, "max_megapixels": 64.0}
        for key_frames in (250, 30, 12):
            own = folder / f"h264-{key_frames}"
            for i in range(options.distinct):
                photograph = photographs[i % len(photographs)]
                write(own / f"{i:04d}.mp4", photograph, seed=i, key_frames=key_frames)
            cost = milliseconds(VideoSource(str(own), SECONDS, whole=1.6, **about), options.pairs)
            print(
                f"| H.264, a key frame every {key_frames} | {size_of(own) / options.distinct:.0f} "
                f"| {cost:.1f} |",
                flush=True,
            )
        shards = folder / "shards"
        form = Form(fps=8, seconds=SECONDS, side=288)
        pack_clips(str(folder / "h264-30"), shards, form, rows=10_000, shuffled=True, jobs=2)
        cost = milliseconds(PackedClips(str(shards), **about), 10 * options.pairs)
        print(
            f"| shards, 8 JPEG frames a second | {size_of(shards) / options.distinct:.0f} "
            f"| {cost:.2f} |"
        )
        many = folder / "many"
        many.mkdir()
        for i in range(options.clips):
            shutil.copy(folder / "h264-30" / f"{i % options.distinct:04d}.mp4", many / f"{i}.mp4")
        for what in ("indexing", "opening again"):
            start, cpu = time.perf_counter(), time.process_time()
            count = len(VideoSource(str(many), SECONDS, whole=1.6, **about))
            took = time.perf_counter() - start
            print(f"{what} {count} clips: {took:.1f} s, {time.process_time() - cpu:.1f} s of CPU")


if __name__ == "__main__":
    main()
