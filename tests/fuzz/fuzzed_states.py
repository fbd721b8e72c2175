"""What runs write for themselves and read when they go on: in run folders and in the cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from kind import Kind, Make

from pixio_heads.reconstruction import reconstructed
from pixio_lightning.cli import bench
from pixio_lightning.training import results, run_folder
from pixio_lightning.training.callbacks.feature_store import Store, Writer

_LINE = {"task": "depth", "dataset": "scenes", "split": "val", "verb": "fit", "checkpoint": "last"}
_LINE |= {"n": 8, "steps": 20, "loss": 0.5, "metrics": {"abs_rel": 0.3}, "protocol": "crop"}
_LINE |= {"baselines": {"constant": {"abs_rel": 0.5}}, "files": {}}
_CONFIG = {"seed_everything": 0, "model": {"class_path": "Depth", "init_args": {"lr": 1e-3}}}
_CONFIG |= {"data": {"class_path": "DepthData"}, "trainer": {"max_steps": 5, "callbacks": []}}


def text(name: str, content: str) -> Make:
    """Return what writes a file of text."""

    def make(folder: Path) -> list[str]:
        (folder / name).write_text(content)
        return [name]

    return make


def _features(folder: Path) -> list[str]:
    writer = Writer(folder)
    for name in ("a", "b"):
        writer.add(name, {"layer": torch.ones(2, 3), "size": (4, 5)})
    writer.close()
    return [p.name for p in folder.glob("*.jsonl")]


def _stored(folder: Path) -> None:
    store = Store(folder)
    for name in store:
        store[name]


def _reconstruction(folder: Path) -> list[str]:
    eyes = {n: np.stack([np.eye(n)] * 2).astype(np.float32) for n in (3, 4)}
    images = np.zeros((2, 16, 16, 3), np.uint8)
    maps = np.ones((2, 16, 16), np.float32)
    found = reconstructed.Reconstructed(
        names=["a.jpg", "b.jpg"],
        image=images,
        points=images.astype(np.float32),
        depth=maps,
        confidence=maps,
        mask=maps > 0,
        intrinsics=eyes[3],
        cam2world=eyes[4],
        original_size=np.array([[16, 16]] * 2),
        placement=np.array([[1, 1, 0, 0]] * 2, np.float32),
    )
    np.savez_compressed(folder / "reconstruction.npz", **found._asdict())
    return ["reconstruction.npz"]


def _metrics(folder: Path) -> Any:
    found = run_folder.Metrics(folder / "metrics.csv")
    found.rewind(3)


_SUITE = {
    "metrics": {"abs_rel": "min"},
    "rows": {"a": {"fit": "depth/demo", "set": {"model.lr": 1e-3}, "seeds": [0, 1]}},
}
_TABLE = {"better": {"abs_rel": "min"}, "rows": {"a": {"abs_rel": [0.5, 0.4]}}}

KINDS = {
    "state": Kind([text("state.json", '{"step": 12, "finished": true}')], run_folder.read_state),
    "config": Kind([text("config.yaml", yaml.safe_dump(_CONFIG))], run_folder.stored_config),
    "metrics": Kind(
        [text("metrics.csv", "step,train/loss,val/loss\n1,0.5,\n2,0.25,0.75\n")], _metrics
    ),
    "results": Kind(
        [text(results.FILE, "".join(json.dumps(_LINE | {"steps": i}) + "\n" for i in (1, 2)))],
        results.read,
    ),
    "features": Kind([_features], _stored),
    "suite": Kind(
        [text("suite.yaml", yaml.safe_dump(_SUITE))],
        lambda folder: bench.read_suite(folder / "suite.yaml"),
    ),
    "table": Kind(
        [text("table.json", json.dumps(_TABLE))], lambda folder: bench.compare(folder, folder)
    ),
    "reconstruction": Kind(
        [_reconstruction], lambda folder: reconstructed.read(folder / "reconstruction.npz")
    ),
}
