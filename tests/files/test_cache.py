"""Where caches lie, and what they take."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from pixio_lightning.cli.doctor import caches
from pixio_lightning.files import bytes_by_kind, default_cache, locked


def test_a_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("PIXIO_CACHE", "XDG_CACHE_HOME", "HF_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    assert default_cache() == Path("/home/me/.cache/pixio")
    monkeypatch.setenv("XDG_CACHE_HOME", "~/elsewhere")
    assert default_cache() == Path("/home/me/elsewhere/pixio")
    monkeypatch.setenv("PIXIO_CACHE", "/scratch/mine")
    assert default_cache() == Path("/scratch/mine")
    own, downloads = caches()  # as is told
    assert own.state.startswith("/scratch/mine, ")
    assert downloads.state.startswith("/home/me/elsewhere/huggingface, ")


def test_doctor_says_what_a_cache_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path))
    for name, size in (
        ("features/ab/0.bin", 3 << 29),
        ("scenes-v2-train/0.bin", 1 << 27),
        ("scenes-v2-val/0.bin", 1 << 27),
        ("index-1/a.json", 5),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        with path.open("wb") as file:
            file.truncate(size)  # takes no room
    (tmp_path / "index-2").symlink_to("/nowhere")
    kinds = {"features": 3 << 29, "scenes": 1 << 28}
    found = bytes_by_kind(tmp_path)
    assert {k: found[k] for k in kinds} == kinds and list(found)[:2] == list(kinds)
    (told,) = (finding.state for finding in caches() if finding.subject == "cached")
    assert told.startswith("1.5 GiB of features, 0.2 GiB of scenes; ")
    assert bytes_by_kind(tmp_path / "none") == {}


def test_without_locks_the_work_goes_on_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As Lustre is mounted, unless it is asked for them."""
    with locked(tmp_path / ".lock") as alone:
        assert alone
    assert not capsys.readouterr().err

    def no_locks(*arguments: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with locked(tmp_path / ".lock") as alone:
        assert not alone
    assert f"no lock on {tmp_path / '.lock'} (Function not imp" in capsys.readouterr().err
