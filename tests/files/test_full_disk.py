"""A disk that is full, as the system has it and as libraries tell it."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pixio_lightning.cli.main import main
from pixio_lightning.files import written_aside


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(tmp_path)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system can be mounted here")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def by_torch(state: dict[str, torch.Tensor], path: Path) -> None:
    with path.open("wb") as file:
        torch.save(state, file)


@pytest.mark.parametrize("save", [by_torch, save_file])
def test_what_a_library_makes_of_a_full_disk_is_told_as_one(small: Path, save: Any) -> None:
    target = small / "weights"
    with pytest.raises(OSError, match="No space left") as told, written_aside(target) as aside:
        save({"a": torch.zeros(1_000_000)}, aside)
    assert told.value.errno == errno.ENOSPC and told.value.filename == str(target)
    assert not list(small.iterdir())


def test_an_export_that_does_not_fit_is_one_line_and_leaves_nothing(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = small / "tiny.safetensors"  # 3.6 MB with its decoder, which is the smaller part
    for _ in range(2):
        assert main(["export", "tiny", "--out", str(out)]) == 2
        error = capsys.readouterr().err
        assert "No space left on device; free some" in error and error.count("\n") == 1
        assert not list(small.iterdir())
