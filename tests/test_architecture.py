"""The rules that keep the tree readable from its outside."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = sorted((ROOT / "src" / "pixio_lightning").rglob("*.py"))
HEADS = sorted((ROOT / "heads" / "pixio_heads").rglob("*.py"))
LIBRARIES = ("lightning", "jsonargparse", "timm")
# timm offers no public way to the prefix tokens and positions of a Vision Transformer.
ALLOWED = {"_pos_embed"}


def imports(path: Path) -> set[str]:
    """Return the modules a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", CORE, ids=lambda p: p.stem)
def test_the_core_imports_no_head(path: Path) -> None:
    assert not [name for name in imports(path) if name.split(".")[0] == "pixio_heads"]


def test_heads_import_no_other_head() -> None:
    for path in HEADS:
        own = path.relative_to(ROOT / "heads").parts[1]
        for name in imports(path):
            parts = name.split(".")
            assert parts[0] != "pixio_heads" or len(parts) < 2 or parts[1] == own, (path, name)


@pytest.mark.parametrize("path", CORE + HEADS, ids=lambda p: p.stem)
def test_no_private_name_of_the_libraries_is_used(path: Path) -> None:
    """Neither imported, nor an attribute that only they define."""
    tree = ast.parse(path.read_text())
    for name in imports(path):
        parts = name.split(".")
        if parts[0] in LIBRARIES:
            assert not [part for part in parts if part.startswith("_")], name
    own = {n.name for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    own |= {n.attr for n in ast.walk(tree) if _is_set_on_self(n)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.match(r"_[a-z]", node.attr):
            assert node.attr in own | ALLOWED | _INHERITED, f"{path.name}: .{node.attr}"


# Of torch's own nn.Module, and of namedtuples.
_INHERITED = {"_apply", "_asdict", "_fields", "_replace"}


def _is_set_on_self(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id in ("self", "cls")
    )


@pytest.mark.parametrize("name", ["cli", "plugins", "recipes", "doctor", "errors", "run_folder"])
def test_light_modules_import_no_torch(name: str) -> None:
    code = (
        f"import sys, pixio_lightning.{name}\n"
        "heavy = {'torch', 'lightning', 'jsonargparse', 'timm', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_package_and_its_names_are_lazy() -> None:
    code = (
        "import sys, pixio_lightning\n"
        "assert 'torch' not in sys.modules\n"
        "for name in pixio_lightning.__all__: getattr(pixio_lightning, name)\n"
        "assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_file_is_longer_than_four_hundred_lines() -> None:
    assert [p.name for p in CORE + HEADS if len(p.read_text().splitlines()) > 400] == []
