"""Verbs that answer without torch, each run as a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pixio_lightning.cli import main as cli
from pixio_lightning.cli import recipes

SOURCES = Path(cli.__file__).parents[2]
HEAVY = {"torch", "lightning", "jsonargparse", "timm", "numpy", "yaml"}

# Prints the heavy modules that were imported and the number of all, then exits as the command.
PROBE = f"""
import sys
from pixio_lightning.cli.main import main
try:
    code = main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
print(sorted({HEAVY} & set(sys.modules)), len(sys.modules), file=sys.stderr)
sys.exit(code)
"""
# These verbs answer at once, whatever else the machine does: imports are what takes time. Python
# starts with some 35, argparse and importlib.metadata need most others; torch has 1000.
MODULES = 220


@pytest.fixture
def site(tmp_path) -> Path:
    """A folder with one good head and one whose import crashes the interpreter."""
    heads = "[pixio_lightning.heads]\nnormals = good_one:Normals\na_crash = crash_one:Crash\n"
    install(tmp_path, "my-heads", heads + "[pixio_lightning.recipes]\nmine = crash_one.recipes\n")
    (tmp_path / "good_one.py").write_text('class Normals:\n    """Predict surface normals."""\n')
    package = tmp_path / "crash_one"
    (package / "recipes" / "scannet").mkdir(parents=True)
    code = 'import os, sys\nprint("no renderer", file=sys.stderr)\nos._exit(3)\nclass Crash: ...\n'
    (package / "__init__.py").write_text(code)
    text = "# Normals on ScanNet.\n# expect: 12.3 degrees\n"
    (package / "recipes" / "scannet" / "linear.yaml").write_text(text)
    return tmp_path


def install(site: Path, name: str, entry_points: str = "", version: str = "1.0") -> None:
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(entry_points)


def pixio(*words: str, site: Path | None = None, **environment: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join(str(folder) for folder in (site, SOURCES) if folder)
    return subprocess.run(
        [sys.executable, "-c", PROBE, *words],
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("line", "code", "shown"),
    [
        ("", 0, "pixio fit -c pretrain/demo"),
        ("--help", 0, "pixio fit -c depth/demo"),
        ("--version", 0, "pixio-lightning"),
        ("heads", 0, "Predict surface normals. · good_one:Normals · my-heads 1.0"),
        ("heads --help", 0, "usage: pixio heads"),
        ("recipes", 0, "pretrain/demo"),
        ("recipes DEGREES", 0, "Normals on ScanNet. · expect: 12.3 degrees · from my-heads 1.0"),
        ("doctor", None, "CC-BY-NC-4.0"),  # its code depends on what is installed here
        ("fit --help", 0, "usage: pixio fit -c RECIPE"),
        ("validate -c fit -h", 0, "usage: pixio validate -c RECIPE"),
        ("predict --help", 0, "predictions/ in the run folder"),
        ("predict --help", 0, "images per device and batch; 1 where sizes differ"),
        ("fit --help", 0, "--model.help CLASS"),
        ("check --help", 0, "usage: pixio check -c RECIPE"),
        ("export --help", 0, "--to {safetensors,transformers,timm,onnx}"),
    ],
)
def test_light_verb_answers_at_once(site, line, code, shown):
    done = pixio(*line.split(), site=site)
    assert done.returncode == code or code is None, done.stderr
    assert shown in done.stdout
    imported, count = done.stderr.splitlines()[-1].rsplit(" ", 1)
    assert imported == "[]"
    assert int(count) < MODULES


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("fitt -c pretrain/demo", "unknown verb 'fitt' .*did you mean 'fit'"),
        ("-c pretrain/demo", "no verb given"),
        ("fit", "fit needs a recipe"),
        ("fit -c pretrain/dmeo", "'pretrain/dmeo' .*did you mean 'pretrain/demo'"),
        ("test --config=pretrain/dmeo", "'pretrain/dmeo' .*did you mean 'pretrain/demo'"),
        ("fit --out test -c pretrain/dmeo", "'pretrain/dmeo' .*did you mean 'pretrain/demo'"),
        ("-c pretrain/demo fit", "the verb comes first: pixio fit -c pretrain/demo$"),
        ("-c pretrain/demo --out test fit", "first: pixio fit -c pretrain/demo --out test$"),
        ("--out=check --fresh fit", "the verb comes first: pixio fit --out=check --fresh$"),
        ("bench --trainer.max_steps 2 x.yaml", "bench needs a suite first"),
        ("fit -c ~no-such/x.yaml", "there is no home folder of '~no-such'"),
        ("cp pretrain/demo /dev/null/x.yaml", "'/dev/null/x.yaml': Not a directory$"),
        ("new-head mine --dir /dev/null/x", "'/dev/null/x.*': Not a directory$"),
        ("fit -c demo", "'demo' .*did you mean 'pretrain/demo'"),
        ("fit -c folder", "'folder' .*did you mean 'pretrain/folder'"),
        ("fit -c depht/demo", "'depht/demo' .*did you mean 'depth/demo'"),
        ("predict -cpretrain/dmeo", "'pretrain/dmeo' .*did you mean 'pretrain/demo'"),
        ("cp pretrain/dmeo x.yaml", "'pretrain/dmeo' .*did you mean 'pretrain/demo'"),
        ("cp pretrain/demo", "required: destination .usage: pixio cp"),
        ("recipes pretrian", "no recipe mentions 'pretrian', did you mean 'pretrain'"),
        ("fit pretrain/demo", "did you mean `pixio fit -c pretrain/demo`.$"),
        ("check --fresh depth/demo --out x", "`pixio check --fresh -c depth/demo --out x`.$"),
        ("fit -c pretrain/demo with/debug", "`pixio fit -c pretrain/demo -c with/debug`.$"),
        ("test pretrain/dmeo", "named by -c, .*did you mean 'pretrain/demo'.$"),
        ("fit -c pretrain/demo --data.mean [0.1, 0.2]", "'0.2]' stands .* spaces is quoted"),
        ("shard x --verify --jobs 0", "--jobs is 0, but expected at least 1$"),
        ("bench --compare a b --data x=y", "--compare prints what there is: it takes no --data"),
        ("bench --compare a b --backbones x", "takes no --data, --backbones or --out "),
        ("runs c --diff a b", "--diff takes two runs and no folder: leave 'c' out "),
        ("curate x --jobs 2", "--jobs is for --materialize, which rewrites the shards "),
        ("doctor --import", "unrecognized arguments: --import "),
    ],
)
def test_mistake_is_one_line_and_code_2(line, message, capsys):
    assert cli.main(line.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("pixio: error: ") and captured.err.count("\n") == 1
    assert re.search(message, captured.err)


def test_cp_adds_the_suffix_and_never_overwrites(tmp_path, capsys):
    assert cli.main(["cp", "pretrain/demo", str(tmp_path / "mine")]) == 0
    assert cli.main(["cp", "pretrain/demo", str(tmp_path)]) == 0
    text = recipes.find("pretrain/demo").read_bytes()
    assert (tmp_path / "mine.yaml").read_bytes() == (tmp_path / "demo.yaml").read_bytes() == text
    (tmp_path / "mine.yaml").write_text("mine: 1")
    assert cli.main(["cp", "pretrain/demo", str(tmp_path / "mine.yaml")]) == 2
    assert (tmp_path / "mine.yaml").read_text() == "mine: 1"
    assert cli.main(["cp", "pretrain/demo", str(tmp_path / "no" / "x.yaml")]) == 2
    assert "No such file or directory" in capsys.readouterr().err


def test_lists_wrap_to_the_terminal(site):
    wide, narrow = (
        pixio("recipes", "normals on scannet", site=site, **size)
        for size in ({}, {"COLUMNS": "50"})
    )
    assert len(wide.stdout.splitlines()) == 1
    assert len(narrow.stdout.splitlines()) > 1
    assert max(map(len, narrow.stdout.splitlines())) <= 50
    assert narrow.stdout.split() == wide.stdout.split()


def test_lost_reader_is_quiet():
    command = [sys.executable, "-m", "pixio_lightning.cli.main", "fit", "--help"]
    read, write = os.pipe()
    os.close(read)
    environment = os.environ | {"PYTHONPATH": str(SOURCES)}
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, env=environment)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "pixio_lightning", "recipes"],
            env=os.environ | {"PYTHONPATH": str(SOURCES)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 2
    assert re.fullmatch("pixio: error: .*No space left on device; free some.*\n", done.stderr)


def test_the_package_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "pixio_lightning", "--version"],
        env=os.environ | {"PYTHONPATH": str(SOURCES)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.startswith("pixio-lightning ")


def test_a_tilde_is_the_home_folder_wherever_a_path_is_given(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["cp", "pretrain/demo", "~/mine"]) == 0
    assert cli.main(["cp", "~/mine.yaml", "~/other"]) == 0
    assert cli.main(["new-head", "mine", "--dir=~/heads"]) == 0
    assert cli.main(["shard", "~/photos", "~/shards"]) == 2
    assert cli.main(["curate", "~/shards"]) == 2
    assert cli.main(["bench", "~/suite.yaml"]) == 2
    assert cli.main(["bench", "--compare", "~/a", "~/b"]) == 2
    assert cli.main(["export", "~/last.ckpt"]) == 2
    assert {path.name for path in tmp_path.iterdir()} <= {"mine.yaml", "other.yaml", "heads"}
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 5 and all(f"{tmp_path}/" in line and "~" not in line for line in errors)


def test_doctor_says_which_extras_are_here(site):
    install(site, "av", version="14.1")
    install(site, "old-part", version="1.0")
    install(site, "pixio-lightning")
    lines = ["Provides-Extra: video", "Requires-Dist: av>=14; extra == 'video'"]
    lines += ["Provides-Extra: lost", "Requires-Dist: no-such-part>=2; extra == 'lost'"]
    lines += ["Provides-Extra: old", "Requires-Dist: old-part>=2; extra == 'old'"]
    lines += ["Provides-Extra: all", "Requires-Dist: pixio-lightning[lost,video]; extra == 'all'"]
    with (site / "pixio_lightning-1.0.dist-info" / "METADATA").open("a") as file:
        file.write("\n".join(lines) + "\n")
    shown = pixio("doctor", site=site).stdout
    assert "   video              installed\n" in shown
    assert "   lost               lacks no-such-part: pip install 'pixio-lightning[lost]'" in shown
    assert "   old                lacks old-part>=2 (there is 1.0): pip install" in shown
    assert "   all                lacks no-such-part: pip install 'pixio-lightning[all]'" in shown


def test_doctor_finds_what_is_broken(site):
    install(site, "lightning", version="2.6.5")
    install(site, "rival", "[pixio_lightning.heads]\nnormals = rival_one:Normals\n")
    # Imported before the one that crashes; all others are by another process.
    install(site, "early", "[pixio_lightning.heads]\na_camera = good_one:Normals\n")
    install(site, "meddler", "[lightning.pytorch.callbacks_factory]\nadds = meddler:callbacks\n")
    gpu = site / "nvidia-smi"
    gpu.write_text('#!/bin/sh\necho "NVIDIA H200, 143771 MiB, 570.86.15"\n')
    gpu.chmod(0o755)
    path = f"{site}{os.pathsep}{os.environ['PATH']}"
    done = pixio("doctor", "--imports", site=site, PATH=path, PIXIO_CACHE=str(site / "a" / "b"))
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    broken = [line for line in lines if line.startswith("!!")]
    assert [line for line in broken if " lightning " in line and "2.6.5, needs >=2.6.6: " in line]
    assert len([line for line in broken if "normals" in line and "more than once" in line]) == 2
    assert [line for line in broken if "a_crash" in line and line.endswith(": no renderer")]
    (good,) = (line for line in lines if "a_camera" in line)
    assert good.startswith("  ") and good.endswith("early 1.0")
    assert [line for line in lines if "   adds " in line and "callbacks of meddler" in line]
    assert "   gpu 0              NVIDIA H200, 143771 MiB, driver 570.86.15" in lines
    assert [line for line in lines if f"{site}/a/b, " in line and "GiB free" in line]
