"""`pixio app` as a command: what it needs, what it says, and how it ends."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import app_runs
import fork_server
import gradio as gr
import pytest
import yaml
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from pixio_lightning.cli import main as cli
from pixio_lightning.cli import recipes
from pixio_lightning.cli.app import features_tab
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


def test_runs_on_weights_of_a_hub_take_those_that_are_given(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run that names a source takes it; of files, each run the one with its digest."""
    seeds = []
    for number in (1, 2):
        words = ["fit", "-c", "depth/demo", "-c", "with/debug", "--trainer.max_steps", "1"]
        words += ["--data.scenes", "{train: 2, held_out: 2, views: 2, size: 64}"]
        words += ["--model.backbone.weights", f"random:{number}", "--out", str(tmp_path / "run")]
        assert cli.main([*words, "--fresh"]) == 0
        path = tmp_path / f"{number}.ckpt"
        seeds.append(app_runs.rewritten(tmp_path / "run", path, weights="hf:a/b"))
    given = [str(path) for path in seeds]
    assert cli.main(["app", given[0]]) == 2
    error = capsys.readouterr().err
    assert "if you trust them, --weights hf:a/b\n" in error and "load(" not in error
    with pytest.raises(UserError, match="--weights hf:a/b"):
        opened(given, ["hf:someone/else"])
    with pytest.raises(UserError, match="digest"):
        opened(given, ["random:7"])
    loaded = opened([*given, str(runs / "depth")], ["random:2", "random:1", "random:7"])
    assert [one.backbone.weights for one in loaded[:2]] == ["random:1", "random:2"]
    said = capsys.readouterr().out
    assert "--weights random:7: no run" in said and "--weights random:1" not in said


def test_a_run_without_room_is_left_out(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    about = {"class": "GreedyDepth"}
    greedy = str(app_runs.rewritten(runs / "depth", tmp_path / "greedy.ckpt", **about))
    loaded = opened([greedy, str(runs / "depth")])
    said = capsys.readouterr().out
    assert [one.name for one in loaded] == ["depth/demo"]
    assert f"left out {greedy}: out of memory (CUDA out of memory. Tried" in said
    with pytest.raises(UserError, match=r"none of the runs can be loaded: out of memory \(CUDA"):
        opened([greedy])


def test_a_picture_without_room_is_one_line(tmp_path: Path) -> None:
    with served([app_runs.plug_in(app_runs.Greedy)], host="127.0.0.1", port=0) as address:
        user = Client(address, verbose=False, httpx_kwargs={"timeout": 120})
        for shade in (250, 100):
            Image.new("RGB", (64, 64), (shade,) * 3).save(tmp_path / f"{shade}.png")
        with pytest.raises(AppError, match=r"out of memory \(CUDA .*: try a smaller picture"):
            user.predict(handle_file(tmp_path / "250.png"), api_name="/greedy")
        *_, text = user.predict(handle_file(tmp_path / "100.png"), api_name="/greedy")
        user.close()
    assert text == "brightness 100"


def test_the_page_says_among_how_many_pictures_it_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features_tab, "_MOST_FILES", 3)
    folder = tmp_path / "folder"
    app_runs.write_photographs(folder)
    (folder / "broken.png").write_bytes(b"no picture")
    given = handle_file(folder / "gradient.png")
    with served([app_runs.plug_in()], host="127.0.0.1", port=0, folder=folder) as address:
        user = Client(address, verbose=False, httpx_kwargs={"timeout": 120})
        user.predict("brightness", 1, given, None, api_name="/features_look")
        found, among = user.predict("brightness", "mean of all", api_name="/neighbours")
        (folder / "green.png").unlink()
        less, _ = user.predict("brightness", "mean of all", api_name="/neighbours")
        user.close()
    assert among == "Among the first 3 of 4 pictures of the folder, 1 of them unusable"
    assert {item["caption"].split(":")[0] for item in found} == {"gradient.png", "green.png"}
    assert [item["caption"].split(":")[0] for item in less] == ["gradient.png"]


# --- where it listens ---------------------------------------------------------------------------


@pytest.mark.parametrize("port", ["70000", "-1", "many", "7860.5"])
def test_what_is_no_port_is_one_line(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["app", "tiny", "--port", port]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"'{port}' is no port: expected 1 to 65535, or 0" in error


def test_a_port_that_is_taken_is_one_line_and_so_is_a_foreign_host() -> None:
    loaded = [app_runs.plug_in()]
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        with pytest.raises(UserError, match=f"port {taken}: .*in use; give another --port"):
            served(loaded, host="127.0.0.1", port=taken).__enter__()
    for host in ("203.0.113.1", "no such host", "a" * 70, "2001:db8::1"):
        with pytest.raises(UserError, match="cannot listen on .* or another --host"):
            served(loaded, host=host, port=0).__enter__()


def test_no_proxy_is_asked_for_the_page_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most clusters name one, and not always what is not to go through it."""
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "example.org")
    monkeypatch.delenv("no_proxy", raising=False)
    with served([app_runs.plug_in()], host="127.0.0.1", port=0) as address:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        assert direct.open(address, timeout=60).status == 200
        assert "no_proxy" not in os.environ


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_an_address_of_ipv6_is_listened_on(host: str) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with served([app_runs.plug_in()], host=host, port=0) as address:
        assert address.startswith("http://[::1]:")
        assert urllib.request.urlopen(address, timeout=60).status == 200
        foreign = urllib.request.Request(address, headers={"Host": "evil.example"})
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(foreign, timeout=60)


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
