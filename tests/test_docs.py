"""The site of documentation leads to every page and names every public class."""

from __future__ import annotations

import re
from pathlib import Path

import pixio_lightning

DOCS = Path(__file__).parents[1] / "docs"
WRITTEN = {"recipes", "results"}  # by conf.py


def test_every_page_is_in_the_contents() -> None:
    contents = re.findall(r"```\{toctree\}\n(.*?)```", (DOCS / "index.md").read_text(), re.DOTALL)
    listed = {line for part in contents for line in part.splitlines() if line and line[0] != ":"}
    assert listed == {page.stem for page in DOCS.glob("*.md")} - {"index"} | WRITTEN


def test_every_public_name_is_in_the_reference() -> None:
    named = set(re.findall(r"auto\w+:: (\w+)$", (DOCS / "api.md").read_text(), re.MULTILINE))
    assert named == set(pixio_lightning.__all__) - {"__version__"}


def test_a_random_encoder_to_compare_with_has_a_seed() -> None:
    """Of a frozen backbone `random` is `random:0`, whatever the run's seed."""
    texts = [*DOCS.glob("*.md"), DOCS.parent / "README.md", *DOCS.parent.glob("recipes/**/*.yaml")]
    for path in texts:
        assert not re.search(r"--model.backbone.weights random(?!:)", path.read_text()), path
