"""The documentation site: `make docs`."""

from __future__ import annotations

import os
import re
from importlib.metadata import version as version_of
from pathlib import Path

from sphinx.application import Sphinx

from pixio_lightning.cli import recipes

HERE = Path(__file__).parent
ROOT = HERE.parent
project = "pixio-lightning"
release = version = version_of("pixio-lightning")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "notebooks"]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
autodoc_typehints = "none"  # the signature has them
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
napoleon_numpy_docstring = False
nitpicky = False
html_theme = "furo"
html_title = f"pixio-lightning {version}"
html_show_sourcelink = False


COSTS = ["speed", "gpu_step", "cached_probe", "curation_costs", "video_path", "soak"]


def write_pages() -> None:
    """Write the pages that say what other files say: the recipes' headers, and the results."""
    parts = ["# Recipes\n\nAs `pixio recipes` lists them; run one with `pixio fit -c NAME`.\n"]
    folder = ""
    for recipe in recipes.all_recipes():
        if recipe.origin != recipes.BUILT_IN:
            continue
        if recipe.name.partition("/")[0] != folder:
            folder = recipe.name.partition("/")[0]
            parts.append(f"\n## {folder}\n\n| recipe | what | expect |\n|---|---|---|\n")
        summary, fields = recipes.header(recipe.path)
        cells = [f"`{recipe.name}`", summary, fields.get("expect", "")]
        parts.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |\n")
    (HERE / "recipes.md").write_text("".join(parts))
    pages = {p.stem: p for p in sorted((ROOT / "benchmarks" / "results").glob("*.md"))}
    first = [name for name in pages if name not in COSTS]
    text = "# Results\n\nEvery page names the command that printed it.\n"
    for title, names in {"What pretraining gives": first, "Speed and memory": COSTS}.items():
        text += f"\n## {title}\n"
        for name in names:
            page = pages[name]
            body = page.read_text().replace("](", f"](../{os.path.relpath(page.parent, ROOT)}/")
            body = body.replace("\n#", "\n###").replace("# ", "### ", 1)
            text += f"\n(results-{name})=\n{body}"
    (HERE / "results.md").write_text(text)


def point_to_results(app: Sphinx, name: str, source: list[str]) -> None:
    """Let links to files of results, which GitHub shows as they are, lead to their place here."""
    source[0] = re.sub(r"\]\(\.\./benchmarks/results/(\w+)\.md\)", r"](#results-\1)", source[0])


def setup(app: Sphinx) -> None:
    """Connect it."""
    app.connect("source-read", point_to_results)


write_pages()
