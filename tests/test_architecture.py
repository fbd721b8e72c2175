"""The rules that keep the tree readable from its outside."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = [p for p in sorted((ROOT / "src").rglob("*.py")) if "template" not in p.parts]
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


PACKAGE = ROOT / "src" / "pixio_lightning"
# What a layer may import: itself and those before it. Models and data know nothing of each other.
LAYERS = [
    {"errors", "keyed", "files"},
    {"models", "data"},
    {"training"},
    {"pretraining"},
    {"curation"},
    {"cli", "__main__"},
    {"testing"},
]
FACADES = {"data", "models", "training", "files", "keyed", "errors", "testing"}


def layer_of(name: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if name in names)


def core_imports(path: Path) -> set[str]:
    """Return the modules of the core that a file imports, as `data.decode`; names left out."""
    found = set()
    for name in imports(path):
        parts = name.split(".")[1:] if name.startswith("pixio_lightning.") else []
        while parts and not _is_module(parts):
            parts.pop()
        if parts:
            found.add(".".join(parts))
    return found


def _is_module(parts: list[str]) -> bool:
    place = PACKAGE.joinpath(*parts)
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


@pytest.mark.parametrize("path", CORE, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if own in ("__init__", "__main__"):  # what is loaded lazily, and the command line
        return
    for name in core_imports(path):
        other = name.split(".")[0]
        if other != own:
            assert layer_of(other) <= layer_of(own), f"{own} imports {name}"
            assert {own, other} != {"models", "data"}, f"{own} imports {name}"


def test_no_circle_of_imports() -> None:
    """Not of modules that are loaded, nor inside of functions or for types."""
    graph = {}
    for path in CORE:
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if path.name != "__init__.py" and "template" not in parts:
            graph[".".join(parts)] = core_imports(path)
    graph = {name: found & graph.keys() - {name} for name, found in graph.items()}
    while leaves := [name for name, found in graph.items() if not found]:
        for leaf in leaves:
            del graph[leaf]
        graph = {name: found - {*leaves} for name, found in graph.items()}
    assert not graph, "these import each other: " + ", ".join(sorted(graph))


@pytest.mark.parametrize("path", HEADS, ids=lambda p: str(p.relative_to(ROOT / "heads")))
def test_heads_import_from_facades(path: Path) -> None:
    for name in core_imports(path):
        assert name.split(".")[0] in FACADES, name
        assert name in FACADES or name == "training.visualize", f"import {name} from its facade"


@pytest.mark.parametrize("name", ["", ".data", ".models", ".training"])
def test_a_facade_gives_what_it_imports_for_types(name: str) -> None:
    package = import_module(f"pixio_lightning{name}")
    types = next(n for n in ast.parse(inspect.getsource(package)).body if isinstance(n, ast.If))
    assert len(package.__all__) == len(types.body)
    for line in types.body:
        assert isinstance(line, ast.ImportFrom)
        (alias,) = line.names
        assert alias.asname == alias.name, "type checkers take only this as given on"
        assert getattr(package, alias.name) is getattr(import_module(line.module), alias.name)
        assert alias.name in package.__all__
    with pytest.raises(AttributeError, match=f"'pixio_lightning{name}' has no attribute 'torch'"):
        package.torch  # noqa: B018


def test_the_core_imports_no_head() -> None:
    for path in CORE:
        assert not [name for name in imports(path) if name.split(".")[0] == "pixio_heads"], path


def test_the_package_reads_at_a_glance() -> None:
    entries = {p.name for p in PACKAGE.iterdir()} - {"__pycache__", "py.typed"}
    assert len(entries) <= 12, sorted(entries)
    for folder in {path.parent for path in CORE + HEADS}:
        files = [path.name for path in folder.iterdir() if path.is_file()]
        assert len(files) <= 14, (folder, sorted(files))


def test_files_are_renamed_in_one_place() -> None:
    for path in CORE + HEADS:
        if path != PACKAGE / "files" / "atomic.py":
            found = re.findall(r"os\.(?:replace|rename)|\.rename\(|shutil\.move", path.read_text())
            assert not found, path


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


@pytest.mark.parametrize(
    "name",
    [
        *("cli.main", "cli.recipes", "cli.doctor", "files.plugins", "errors", "files"),
        *("training", "training.run_folder", "training.results", "data", "models"),
    ],
)
def test_light_modules_import_no_torch(name: str) -> None:
    code = (
        f"import sys, pixio_lightning.{name}\n"
        "heavy = {'torch', 'lightning', 'jsonargparse', 'timm', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_processes_that_render_import_no_torch() -> None:
    """There is one for every core, and it would take most of a gigabyte in each."""
    code = "import sys, pixio_lightning.data.scenes.clip_store; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow  # light modules import the package as well
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
