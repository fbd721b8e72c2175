"""The viewer as a server: it answers on this machine alone, and it stops."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import fork_server
import pytest
from true_scene import true_scene

from pixio_heads.reconstruction.drawing import viewer
from pixio_heads.reconstruction.export import Export, export


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (path,) = export(true_scene(views=2, size=32), tmp_path, Export(formats=("npz",)))
    return path


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_it_starts_answers_and_stops(file: Path, tmp_path: Path) -> None:
    port = free_port()
    command = [fork_server.python(), "-m", "pixio_heads.reconstruction.drawing.viewer", str(file)]
    with subprocess.Popen(
        [*command, "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "FORK_PID": str(tmp_path / "pid")},
    ) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line == f"open http://127.0.0.1:{port} in a browser; Ctrl-C ends\n"
            with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=30) as page:
                assert page.status == 200 and b"<html" in page.read().lower()
            os.kill(int((tmp_path / "pid").read_text()), signal.SIGINT)
            _, errors = process.communicate(timeout=30)
        finally:
            process.kill()
        assert process.returncode == 0 and "Traceback" not in errors


def test_no_other_machine_sees_it(file: Path) -> None:
    server = viewer.show(viewer.read(file), port=free_port(), title="a room")
    try:
        assert server.get_host() == "127.0.0.1"
        with urllib.request.urlopen(f"http://127.0.0.1:{server.get_port()}", timeout=30) as page:
            assert page.status == 200
    finally:
        server.stop()


def test_a_file_that_is_none_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.npz").write_text("nothing")
    assert viewer.main([str(tmp_path / "a.npz")]) == 2
    error = capsys.readouterr().err
    assert "is no reconstruction" in error and error.count("\n") == 1


def test_without_viser_it_says_what_to_install(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "viser", None)
    assert viewer.main([str(file)]) == 2
    assert "pip install 'pixio-lightning[viewer]'" in capsys.readouterr().err
