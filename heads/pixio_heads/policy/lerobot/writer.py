"""Demonstrations as a LeRobot folder, of version 3.0 or 2.1."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pixio_heads.policy.demonstrations import Demonstration
from pixio_heads.policy.lerobot.layout import ACTION, STATE
from pixio_heads.policy.lerobot.stats import Stats, levels, of_levels, of_values, plain, pooled
from pixio_heads.policy.rollout.pictures import encode_png
from pixio_lightning.data import video_writer
from pixio_lightning.errors import UserError
from pixio_lightning.files import written_aside

CAMERA = "observation.image"
_CHUNK = 1000  # files in a folder
# Every other frame stands alone, so that any is found at once; none waits for later ones.
_VIDEO = {"crf": "18", "g": "2", "bf": "0"}
_FILE = 100  # MiB after which version 3.0 begins another file
_PATHS = {  # of data, and of videos
    "v3.0": (
        "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    ),
    "v2.1": (
        "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    ),
}


def write(
    folder: Path,
    demonstrations: Sequence[Demonstration],
    *,
    fps: float,
    task: str,
    version: str = "v3.0",
    video: bool = False,
) -> None:
    """Write demonstrations as a data set that LeRobot reads; the folder is whole or absent.

    Args:
        folder: Where; it must not exist.
        demonstrations: Their pictures, states and actions are all of one shape.
        fps: Steps a second.
        task: What is done, in words.
        version: `v3.0`, with several episodes in a file, or `v2.1`, with a file for each.
        video: Write mp4 (H.264, with losses) in place of PNG.

    Raises:
        UserError: The folder exists, there is nothing to write, or shapes differ.
        BadImage: A picture of the demonstrations cannot be decoded.
    """
    if folder.exists():
        raise UserError(f"'{folder}' exists already: remove it, or choose another folder")
    if version not in _PATHS:
        raise UserError(f"version '{version}' is not written; expected {', '.join(_PATHS)}")
    shapes = {(demo.proprio.shape[1:], demo.actions.shape[1:]) for demo in demonstrations}
    if len(shapes) != 1 or not all(map(len, demonstrations)):
        raise UserError("expected demonstrations with steps, all of one shape of state and action")
    features = _features(demonstrations[0], fps, video=video)
    with written_aside(folder) as aside:
        _write(aside, demonstrations, features, fps, task, version)


def _features(demo: Demonstration, fps: float, *, video: bool) -> dict[str, dict[str, Any]]:
    height, width, _ = shape = demo.frame(0).shape
    camera: dict[str, Any] = {
        "dtype": "video" if video else "image",
        "shape": list(shape),
        "names": ["height", "width", "channels"],
    }
    if video:
        if height % 2 or width % 2:
            raise UserError(f"pictures of {width}x{height}: an mp4 takes even sides only")
        camera["info"] = {
            "video.height": height,
            "video.width": width,
            "video.channels": 3,
            "video.codec": "h264",
            "video.pix_fmt": "yuv420p",
            "video.is_depth_map": False,
            "video.fps": fps,
            "has_audio": False,
        }
    features = {CAMERA: camera}
    for name, values in ((STATE, demo.proprio), (ACTION, demo.actions)):
        if values.shape[1]:
            features[name] = {"dtype": "float32", "shape": [values.shape[1]], "names": None}
    features["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
    for name in ("frame_index", "episode_index", "index", "task_index"):
        features[name] = {"dtype": "int64", "shape": [1], "names": None}
    return features


def _schema(features: dict[str, dict[str, Any]]) -> pa.Schema:
    fields = []
    for name, about in features.items():
        width = about["shape"][0]
        if about["dtype"] == "image":
            kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        elif about["dtype"] == "int64":
            kind = pa.int64()
        else:  # one number is stored as such, not as a list of one
            kind = pa.float32() if width == 1 else pa.list_(pa.float32(), width)
        if about["dtype"] != "video":
            fields.append((name, kind))
    return pa.schema(fields)


def _write(
    folder: Path,
    demonstrations: Sequence[Demonstration],
    features: dict[str, dict[str, Any]],
    fps: float,
    task: str,
    version: str,
) -> None:
    schema, video = _schema(features), features[CAMERA]["dtype"] == "video"
    episodes: list[dict[str, Any]] = []
    stats: list[dict[str, Stats]] = []
    step = begun = files = 0
    paths: list[Path] = []
    with ExitStack() as opened:
        for number, demo in enumerate(demonstrations):
            # Episodes of version 3.0 share a file until it is large.
            if not number or version == "v2.1" or sum(map(_size, paths)) > _FILE << 20:
                opened.close()
                part = {"chunk_index": files // _CHUNK, "file_index": files % _CHUNK}
                of_episode = {"episode_chunk": number // _CHUNK, "episode_index": number}
                paths = [
                    folder / path.format(video_key=CAMERA, **part, **of_episode)
                    for path in _PATHS[version]
                ]
                paths[0].parent.mkdir(parents=True, exist_ok=True)
                rows = opened.enter_context(pq.ParquetWriter(paths[0], schema))
                if video:
                    height, width, _ = features[CAMERA]["shape"]
                    writer = video_writer(
                        paths[1], fps=fps, height=height, width=width, options=_VIDEO
                    )
                    film = opened.enter_context(writer)
                begun, files = step, files + 1
            table, found = _columns(demo, number, step, fps)
            pictures, counts = [], np.zeros((3, 256), np.int64)
            for i in range(len(demo)):
                frame = demo.frame(i)
                if list(frame.shape) != features[CAMERA]["shape"]:
                    raise UserError(f"{demo.name}: a picture of another size than the first one")
                counts += levels(frame)
                if video:
                    film(frame)
                else:
                    pictures.append({"bytes": encode_png(frame), "path": None})
            if not video:
                table[CAMERA] = pictures
            rows.write_table(pa.table({name: table[name] for name in schema.names}, schema))
            stats.append({CAMERA: of_levels(counts, len(demo)), **found})
            about = {"episode_index": number, "tasks": [task], "length": len(demo)}
            if version == "v3.0":
                about |= {f"data/{name}": value for name, value in part.items()}
                about |= {"dataset_from_index": step, "dataset_to_index": step + len(demo)}
                if video:
                    about |= {f"videos/{CAMERA}/{name}": value for name, value in part.items()}
                    first = step - begun
                    about[f"videos/{CAMERA}/from_timestamp"] = first / fps
                    about[f"videos/{CAMERA}/to_timestamp"] = (first + len(demo)) / fps
            episodes.append(about)
            step += len(demo)
    info = _info(features, fps, version, episodes, step)
    _write_meta(folder / "meta", info, episodes, stats, task)


def _write_meta(
    meta: Path,
    info: dict[str, Any],
    episodes: list[dict[str, Any]],
    stats: list[dict[str, Stats]],
    task: str,
) -> None:
    meta.mkdir()
    (meta / "info.json").write_text(json.dumps(info, indent=4) + "\n")
    if info["codebase_version"] == "v3.0":
        whole = {name: pooled([of[name] for of in stats]) for name in stats[0]}
        (meta / "stats.json").write_text(json.dumps(plain(whole), indent=4) + "\n")
        # Tasks are the index of a data frame, which LeRobot looks them up by.
        tasks = pd.DataFrame({"task_index": [0]}, index=pd.Index([task], name="task"))
        tasks.to_parquet(meta / "tasks.parquet")
        for about, of in zip(episodes, stats, strict=True):
            for name, found in plain(of).items():
                about |= {f"stats/{name}/{kind}": value for kind, value in found.items()}
            about |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        listed = meta / "episodes" / "chunk-000" / "file-000.parquet"
        listed.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(episodes), listed)
    else:
        numbered = [
            {"episode_index": number, "stats": plain(found)} for number, found in enumerate(stats)
        ]
        _write_lines(meta / "tasks.jsonl", [{"task_index": 0, "task": task}])
        _write_lines(meta / "episodes.jsonl", episodes)
        _write_lines(meta / "episodes_stats.jsonl", numbered)


def _columns(
    demo: Demonstration, number: int, first: int, fps: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return all columns of an episode but its pictures, and their statistics."""
    steps = np.arange(len(demo))
    found: dict[str, NDArray[Any]] = {
        STATE: demo.proprio,
        ACTION: demo.actions,
        "timestamp": (steps / fps).astype(np.float32)[:, None],
        "frame_index": steps[:, None],
        "episode_index": np.full_like(steps, number)[:, None],
        "index": first + steps[:, None],
        "task_index": np.zeros_like(steps)[:, None],
    }
    found = {name: values for name, values in found.items() if values.shape[1]}
    columns = {
        name: values[:, 0] if values.shape[1] == 1 else list(values)
        for name, values in found.items()
    }
    return columns, {name: of_values(values) for name, values in found.items()}


def _info(
    features: dict[str, dict[str, Any]],
    fps: float,
    version: str,
    episodes: list[dict[str, Any]],
    steps: int,
) -> dict[str, Any]:
    video = features[CAMERA]["dtype"] == "video"
    data_path, video_path = _PATHS[version]
    if version == "v3.0":
        counts = {"data_files_size_in_mb": _FILE, "video_files_size_in_mb": _FILE}
    else:
        chunks = -(-len(episodes) // _CHUNK)
        counts = {"total_videos": len(episodes) * video, "total_chunks": chunks}
    return {
        "codebase_version": version,
        "robot_type": None,
        "total_episodes": len(episodes),
        "total_frames": steps,
        "total_tasks": 1,
        **counts,
        "chunks_size": _CHUNK,
        "fps": int(fps) if fps == int(fps) else fps,
        "splits": {"train": f"0:{len(episodes)}"},
        "data_path": data_path,
        "video_path": video_path if video else None,
        "features": features,
    }


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
