"""Files of cameras in which anything may stand anywhere are read, or refused in one line."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scene_folders
from scene_folders import rendered

from pixio_heads.reconstruction.views.layouts import open_scenes
from pixio_lightning.data.decode import BadImage
from pixio_lightning.errors import UserError

_TRIES = 80  # of a layout
_VALUES = [
    *(None, "", "\0", "../x", "é" * 300, True, -1, 0, 1 << 70, 1e308, float("nan"), float("inf")),
    *([], {}, [[]], [None] * 4, {"a": 1}, [[0.0] * 4] * 4, json.loads("[" * 90 + "]" * 90)),
]
_WORDS = ["", "x", "nan", "inf", "-1", "0", "1e400", "9" * 30, "a\0b", "é", "../x.png", "PINHOLE"]


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every container with a key or index into it."""
    for key in value if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


def odd_json(text: str, random_key: random.Random) -> str:
    content = copy.deepcopy(json.loads(text))
    for _ in range(random_key.choice((1, 1, 2))):
        container, key = random_key.choice(list(places(content)))
        container[key] = random_key.choice(_VALUES)
    return json.dumps(content)


def odd_words(text: str, random_key: random.Random) -> str:
    lines = [line.split(" ") for line in text.split("\n")]
    line = random_key.choice(lines)
    line[random_key.randrange(len(line))] = random_key.choice(_WORDS)
    return "\n".join(" ".join(line) for line in lines)


def odd_bytes(data: bytes, random_key: random.Random) -> bytes:
    changed = bytearray(data[: random_key.choice((len(data), random_key.randrange(len(data))))])
    for _ in range(random_key.randrange(4)):
        if changed:
            changed[random_key.randrange(len(changed))] = random_key.choice((0, 1, 127, 255))
    return bytes(changed)


def wai(root: Path, views: list[Any]) -> None:
    masks = {"pred_mask/moge2": np.ones((4, 4)), "skymask": np.zeros((48, 48))}
    scene_folders.wai(root, views, masks=masks, dataset_name="spring")


Change = Callable[[str, random.Random], str]
_LAYOUTS: dict[str, tuple[Callable[..., Any], str, str, Change]] = {
    "transforms": (scene_folders.nerfstudio, "folder", "transforms.json", odd_json),
    "wai": (wai, "wai", "scene_meta.json", odd_json),
    "colmap images": (scene_folders.colmap, "folder", "sparse/0/images.txt", odd_words),
    "colmap cameras": (scene_folders.colmap, "folder", "sparse/0/cameras.txt", odd_words),
    "blendedmvs": (scene_folders.blendedmvs, "blendedmvs", "cams/00000001_cam.txt", odd_words),
}


@pytest.mark.parametrize("bytewise", [False, True])
@pytest.mark.parametrize("layout", _LAYOUTS)
def test_anything_anywhere(
    layout: str, bytewise: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    write, source, name, change = _LAYOUTS[layout]
    write(tmp_path / "scene", rendered())
    path, random_key = tmp_path / "scene" / name, random.Random(0)
    whole, refused = path.read_bytes(), 0
    for _ in range(_TRIES):
        if bytewise:
            path.write_bytes(odd_bytes(whole, random_key))
        else:
            path.write_text(change(whole.decode(), random_key))
        try:
            scenes = open_scenes(tmp_path, source, scale=1e-3, max_megapixels=64)
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
            continue
        for scene in scenes:
            for number in range(len(scene.frames)):
                with suppress(BadImage):
                    scene.load(number)
    assert refused > _TRIES // 10
