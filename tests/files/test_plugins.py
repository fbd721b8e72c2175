"""Entry points of distributions that are really installed: a folder on the path with metadata."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pixio_lightning.errors import UserError
from pixio_lightning.files import plugins

HEAD = '''"""A module."""\nclass Normals:\n    """Predict surface normals.\n\n    More."""\n'''


def install(site: Path, name: str, entry: str, files: dict[str, str]) -> None:
    """Lay out a distribution with one entry point of heads, as pip does."""
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{plugins.HEADS}]\n{entry}\n")
    for path, text in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text)


def named(name: str) -> plugins.Plugin:
    return next(plugin for plugin in plugins.installed() if plugin.name == name)


def test_head_is_listed_with_its_sentence_and_not_imported(tmp_path, monkeypatch):
    files = {"listed/__init__.py": "raise RuntimeError", "listed/sub/head.py": HEAD}
    install(tmp_path, "my-heads", "normals = listed.sub.head:Normals", files)
    monkeypatch.syspath_prepend(tmp_path)
    plugin = named("normals")
    assert plugin in plugins.installed(plugins.HEADS)
    assert plugin == plugins.Plugin("normals", "listed.sub.head:Normals", "my-heads", "1.0")
    assert plugin.summary == "Predict surface normals."
    assert "listed" not in sys.modules


@pytest.mark.parametrize(
    "line", ["from .sub.head import Normals", "from re_export.sub.head import Normals as Normals"]
)
def test_sentence_is_found_behind_a_reexport(tmp_path, monkeypatch, line):
    files = {"re_export/__init__.py": line, "re_export/sub/head.py": HEAD}
    install(tmp_path, "my-heads", "normals = re_export:Normals [extra]", files)
    monkeypatch.syspath_prepend(tmp_path)
    assert named("normals").summary == "Predict surface normals."


def test_circle_of_reexports_ends(tmp_path, monkeypatch):
    files = {"circle/__init__.py": "from .a import A", "circle/a.py": "from . import A"}
    install(tmp_path, "circle", "circle = circle:A", files)
    monkeypatch.syspath_prepend(tmp_path)
    assert named("circle").summary == "(no docstring)"


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("broken_one:Head", "(cannot be read: invalid syntax (broken_one.py, line 2))"),
        ("broken_one.gone:Head", "(cannot be read: no source file of module broken_one.gone)"),
        ("nowhere:Head", "(cannot be read: no source file of module nowhere)"),
    ],
)
def test_broken_plugin_says_so_and_harms_nobody(tmp_path, monkeypatch, target, reason):
    install(tmp_path, "broken", f"broken = {target}", {"broken_one.py": "\nclass = Head\n"})
    install(tmp_path, "good", "normals = good_head:Normals", {"good_head.py": HEAD})
    monkeypatch.syspath_prepend(tmp_path)
    assert named("broken").summary == reason
    assert plugins.load(named("normals")).__module__ == "good_head"
    with pytest.raises(UserError, match="head 'broken' of broken 1.0 fails to import: [A-Z]"):
        plugins.load(named("broken"))


def test_load_reports_what_the_module_raises(tmp_path, monkeypatch):
    files = {"raises_one.py": "raise RuntimeError('no simulator here')\nclass A: ..."}
    install(tmp_path, "raises", "raises = raises_one:A", files)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="RuntimeError: no simulator here"):
        plugins.load(named("raises"))


def test_distribution_found_twice_counts_once(tmp_path, monkeypatch):
    for folder in ("editable", "copy"):
        files = {"twice_head.py": HEAD}
        install(tmp_path / folder, "my-heads", "normals = twice_head:Normals", files)
        monkeypatch.syspath_prepend(tmp_path / folder)
    assert [plugin.name for plugin in plugins.installed()].count("normals") == 1
