"""Weights that lie in this package: `tiny`, a small Pixio pretrained on rendered scenes.

`tiny.README.md` beside them is their model card. They are replaced by what `pixio export` writes.
"""

from __future__ import annotations

from pathlib import Path

RECIPE = "pretrain/tiny_scenes"  # that trained them: the file holds no settings of a decoder
SHIPPED = {"tiny": Path(__file__).with_name("tiny.safetensors")}


def located(source: str) -> str:
    """Return where the weights lie that a source names, if they are shipped, or the source.

    The word stands for them wherever a command is run: a file or a folder of that name is `./tiny`.
    """
    return str(SHIPPED.get(source, source))
