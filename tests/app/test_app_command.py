"""`pixio app` as a command: what it needs, what it says, and how it ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import fork_server
import gradio as gr
import pytest
import yaml
from gradio_client import Client, handle_file
from PIL import Image

from pixio_lightning.cli import main as cli
from pixio_lightning.cli import recipes
from pixio_lightning.cli.app.loaded import newest, open_run
from pixio_lightning.cli.app.server import opened, served
from pixio_lightning.errors import UserError


def test_without_runs_it_shows_what_the_package_brings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Though a folder of that name is there."""
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    loaded = opened([])
    assert "no run with a checkpoint below runs/" in capsys.readouterr().out
    assert [one.name for one in loaded] == [one.name for one in opened(["tiny"])] == ["tiny"]
    Image.new("RGB", (64, 64), (200, 30, 30)).save("red.png")
    with served(loaded, host="127.0.0.1", port=0) as address:
        user = Client(address, verbose=False, httpx_kwargs={"timeout": 120})
        user.predict(handle_file("red.png"), api_name="/reconstruct_open")
        *_, text = user.predict(0.75, 2, 0, api_name="/reconstruct")
        user.close()
    assert "Loss under this mask" in text
    with pytest.raises(UserError, match="tiny holds no weights"):
        opened(["./tiny"])


def test_a_missing_run_is_one_line_with_the_nearest(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["app", str(runs / "dept")]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "did you mean 'depth'" in told


def test_without_gradio_the_extra_is_named_before_anything_is_loaded() -> None:
    code = (
        "import sys; sys.modules['gradio'] = None\n"
        "from pixio_lightning.cli import main\n"
        "code = main.main(['app', '.'])\n"
        "assert 'torch' not in sys.modules\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "pixio: error: the page needs Gradio: pip install 'pixio-lightning[app]'\n"
    )


def test_the_newest_run_of_every_recipe_is_taken(runs: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("depth", "depth", "segmentation")):
        copy = shutil.copytree(runs / name, tmp_path / f"{name}-{number}")
        for file in copy.rglob("*"):
            os.utime(file, (number, number))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "state.json").write_text("{}")
    found = newest(tmp_path)
    assert [path.name for path in found] == ["segmentation-2", "depth-1"]


def test_a_frozen_backbone_is_found_from_another_folder(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe names it from where it was run."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(runs / "pretrain", "runs/pretrain")
    recipe = yaml.safe_load(recipes.find("depth/demo").read_text())
    recipe["model"]["init_args"] |= {
        "backbone": {"weights": "runs/pretrain/last.ckpt"},
        "decoder": {"class_path": "LinearDecoder"},
        "cache": False,
    }
    Path("mine.yaml").write_text(yaml.safe_dump(recipe))
    words = ["fit", "-c", "mine.yaml", "--out", "runs/depth", "--trainer.max_steps", "1"]
    words += ["--data.scenes", "{train: 4, held_out: 4, views: 2, size: 64}"]
    words += ["--data.num_workers", "0", "--panels.every_n_steps", "0"]
    assert cli.main(words) == 0
    monkeypatch.chdir("/")
    assert open_run(tmp_path / "runs/depth").name == "mine.yaml"
    (tmp_path / "runs/pretrain/last.ckpt").unlink()
    with pytest.raises(UserError, match="frozen weights"):
        open_run(tmp_path / "runs/depth")


def test_it_says_who_can_reach_it_and_ends_in_one_line(runs: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [fork_server.python(), "-m", "pixio_lightning.cli.main"]
        + ["app", str(runs / "depth"), "--host", "0.0.0.0", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path), "FORK_PID": str(tmp_path / "pid")},
    )
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(3)]
    assert lines[0].startswith("loaded ") and "whoever reaches this machine" in lines[1], lines
    port = lines[2].split()[0].rstrip("/").rpartition(":")[2]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as answer:
        assert answer.status == 200
    assert list(tmp_path.glob("pixio-app-*"))
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "\nended\n", "")
    assert not list(tmp_path.glob("pixio-app-*"))


def test_what_users_sent_is_removed_though_the_end_is_interrupted(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second Ctrl-C, or one that a wrapper passes on again, comes while the page is closed."""

    def interrupted(page: gr.Blocks, **kwargs: bool) -> None:
        close(page, **kwargs)
        raise KeyboardInterrupt

    close = gr.Blocks.close
    monkeypatch.setattr(gr.Blocks, "close", interrupted)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    loaded = [open_run(runs / "depth")]
    with pytest.raises(KeyboardInterrupt), served(loaded, host="127.0.0.1", port=0):
        assert list(tmp_path.glob("pixio-app-*"))
    assert not list(tmp_path.glob("pixio-app-*"))
