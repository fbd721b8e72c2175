"""Command lines of short runs on a folder of classes, with a tiny random backbone."""

from __future__ import annotations

from pathlib import Path

import yaml

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 64}


def words(recipe: str, path: Path, out: Path, *more: str) -> list[str]:
    """Return a short run of a folder's recipe with a tiny random backbone."""
    backbone = {"name": "pixio_vitt16", "weights": "random:0", "model_args": SMALL}
    overlay = out.with_suffix(".yaml")
    keys = {"source": "folder", "path": str(path), "image_size": 64, "num_workers": 0}
    trainer = {"accelerator": "cpu", "precision": "32-true"}
    content = {"model": {"backbone": backbone}, "data": keys, "trainer": trainer}
    overlay.write_text(yaml.safe_dump(content))
    return ["-c", recipe, "-c", str(overlay), "--out", str(out), *more]
