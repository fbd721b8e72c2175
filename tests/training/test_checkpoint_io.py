"""A checkpoint is whole or absent, whatever kills the writer, and runs nothing when loaded."""

import argparse
import multiprocessing
import os
import pickle
import random
import signal
import tempfile
import time
from pathlib import Path

import pytest
import torch

from pixio_lightning.errors import UserError
from pixio_lightning.files import recover_folder, written_aside
from pixio_lightning.files.atomic import sweep
from pixio_lightning.training import run_folder
from pixio_lightning.training.checkpoints.checkpoint_io import AtomicIO, read

HYPER = "hyper_parameters"


def content(step: int) -> dict:
    """A checkpoint of 4 MB that shows when it was mixed of two."""
    return {"step": step, "state_dict": {"weight": torch.full((1_000_000,), float(step))}}


def check_whole(checkpoint: dict) -> int:
    assert (checkpoint["state_dict"]["weight"] == checkpoint["step"]).all()
    return checkpoint["step"]


def save_forever(path: Path, step: int) -> None:
    # Where Lightning would stage: on another file system a move is a copy.
    os.environ["TMPDIR"], tempfile.tempdir = "/dev/shm", None
    while True:
        step += 1
        AtomicIO().save_checkpoint(content(step), path)


def test_a_killed_writer_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    path, random_key, steps = tmp_path / "run" / "last.ckpt", random.Random(0), [0]
    cut_short = 0
    for _ in range(10):
        writer = multiprocessing.get_context("fork").Process(
            target=save_forever, args=(path, steps[-1])
        )
        writer.start()
        before = path.stat().st_mtime_ns if path.exists() else 0
        while not path.exists() or path.stat().st_mtime_ns == before:
            assert writer.is_alive()
            time.sleep(0.001)
        time.sleep(random_key.uniform(0, 0.1))
        writer.kill()
        writer.join()
        steps.append(check_whole(read(path)))
        cut_short += len(os.listdir(path.parent)) > 1
    assert steps == sorted(set(steps))
    assert cut_short  # or no kill met a save
    AtomicIO().save_checkpoint(content(10_000), path)
    assert os.listdir(path.parent) == ["last.ckpt"]
    assert check_whole(AtomicIO().load_checkpoint(path)) == 10_000


def test_a_save_that_fails_leaves_the_last_one(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    AtomicIO().save_checkpoint(content(1), path)
    with pytest.raises((AttributeError, pickle.PicklingError)):
        AtomicIO().save_checkpoint(content(2) | {"other": lambda: None}, path)
    assert check_whole(read(path)) == 1


def test_a_file_takes_the_place_of_a_sharded_folder(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    path.mkdir()
    (path / "part-0").write_bytes(b"x")
    with pytest.raises(UserError, match="is a folder, as a sharded run writes"):
        AtomicIO().load_checkpoint(path)
    with pytest.raises(UserError, match="is damaged: it holds no file .metadata"):
        read(path)
    AtomicIO().save_checkpoint(content(3), path)
    assert check_whole(read(path)) == 3


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_kill_while_one_kind_takes_the_place_of_the_other_loses_neither(
    kind: str, tmp_path: Path
) -> None:
    """As a run goes on with a strategy that is sharded, or no longer so."""
    path = tmp_path / "last.ckpt"

    def make(target: Path, kind: str) -> None:
        if kind == "folder":
            target.mkdir()
        (target / "part-0" if kind == "folder" else target).write_text(kind)

    def replace_and_die() -> None:
        os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        with written_aside(path, durable=True) as aside:
            make(aside, kind)

    before = {"file": "folder", "folder": "file"}[kind]
    make(path, before)
    writer = multiprocessing.get_context("fork").Process(target=replace_and_die)
    writer.start()
    writer.join()
    assert writer.exitcode == -signal.SIGKILL
    assert run_folder.checkpoints(tmp_path) == [path]
    recover_folder(path)
    assert (path / "part-0" if before == "folder" else path).read_text() == before
    with written_aside(path) as aside:
        make(aside, kind)
    sweep(tmp_path)
    assert os.listdir(tmp_path) == ["last.ckpt"] and path.is_dir() == (kind == "folder")


def test_a_folder_is_put_back_after_a_kill_between_two_renames(tmp_path: Path) -> None:
    path, old = tmp_path / "last.ckpt", tmp_path / ".last.ckpt.old"
    old.mkdir()
    (old / "part-0").write_bytes(b"old")
    recover_folder(path)
    assert (path / "part-0").read_bytes() == b"old" and not old.exists()
    old.mkdir()
    recover_folder(path)  # the new one stands: the old one is a leftover
    assert (path / "part-0").read_bytes() == b"old" and not old.exists()


def refusal(path: Path | str) -> str:
    texts = set()
    for load in (read, AtomicIO().load_checkpoint):
        with pytest.raises(UserError) as refused:
            load(path)
        texts.add(str(refused.value))
    (text,) = texts
    assert "\n" not in text and "\x1b" not in text and len(text) < 300
    assert text.removeprefix("cannot read ").startswith(f"checkpoint '{path}' ")
    return text


class Canary:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.path}",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    canary, path = tmp_path / "sang", tmp_path / "hostile.ckpt"
    hostile = {"state_dict": {}, "loops": Canary(canary)}
    for zipped in (True, False):
        torch.save(hostile, path, _use_new_zipfile_serialization=zipped)
        assert "(posix.system): refused" in refusal(path)
        with pytest.raises(UserError):  # whoever asks for it
            AtomicIO().load_checkpoint(path, weights_only=False)
    path.write_bytes(pickle.dumps(hostile, protocol=2))
    assert "(posix.system): refused" in refusal(path)
    assert not canary.exists()
    pickle.loads(path.read_bytes())
    assert canary.exists()  # it would have sung


def test_other_objects_are_named(tmp_path: Path) -> None:
    torch.save({"arguments": argparse.Namespace(lr=1)}, tmp_path / "a.ckpt")
    assert "more than tensors and plain data (argparse.Namespace)" in refusal(tmp_path / "a.ckpt")
    torch.save([1, 2], tmp_path / "b.ckpt")
    assert refusal(tmp_path / "b.ckpt").endswith("holds a list, not a dict")


@pytest.mark.parametrize("key", ["_instantiator", "_class_path"])
def test_classes_named_in_hyper_parameters_are_refused(tmp_path: Path, key: str) -> None:
    path = tmp_path / "a.ckpt"
    torch.save(content(1) | {HYPER: {key: "os.system"}}, path)
    assert f"names code to run ({key} in its hyper_parameters)" in refusal(path)
    torch.save(content(1) | {HYPER: {"lr": 1}}, path)
    assert check_whole(read(path)) == 1


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_one_line(tmp_path: Path, share: float) -> None:
    path = tmp_path / "last.ckpt"
    torch.save(content(1), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    assert "truncated, damaged or none" in refusal(path)
    path.write_text("no checkpoint\nat all")
    assert "truncated, damaged or none" in refusal(path)


def test_missing_files_and_urls(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.ckpt").endswith("does not exist")
    for url in ("https://example.org/a.ckpt", "s3://bucket/a.ckpt"):
        assert "is a URL; download it" in refusal(url)
        with pytest.raises(UserError, match="is a URL"):
            AtomicIO().save_checkpoint(content(1), url)
