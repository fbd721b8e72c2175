"""Run the real command line in processes of its own, on photographs and a tiny model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import fork_server
import torch
import yaml

_PATIENCE = 540  # seconds for one command line

TINY = {
    "model": {
        "class_path": "PixelPretraining",
        "init_args": {
            "backbone": {
                "name": "pixio_vitt16",
                "weights": "random",
                "tune": "full",
                "drop_path": 0.4,
                "model_args": {
                    "img_size": 64,
                    "patch_size": 8,
                    "embed_dim": 64,
                    "depth": 2,
                    "num_heads": 2,
                    "n_cls_tokens": 4,
                },
            },
            "mask_grid": 2,
            "decoder": {"dim": 32, "depth": 2, "heads": 2},
            "optim": {"lr": 1.0e-3, "warmup": 0.1},
        },
    },
    "data": {
        "class_path": "Pixels",
        "init_args": {
            "source": "folder",
            "image_size": 64,
            "batch_size": 8,
            "num_workers": 0,
            "steps_per_epoch": 5,
            "val_images": 16,
        },
    },
    "trainer": {
        "max_steps": 16,
        "precision": "32-true",  # the same on every processor
        "accelerator": "cpu",
        "log_every_n_steps": 1,
        "logger": False,
        "num_sanity_val_steps": -1,
    },
    "checkpoint": {"every_n_steps": 4},
    "panels": {"every_n_steps": 0},
}


def write_recipe(folder: Path, photographs: Path) -> Path:
    """Write the tiny recipe on a folder of photographs."""
    path = folder / "tiny.yaml"
    recipe = yaml.safe_load(yaml.safe_dump(TINY))
    recipe["data"]["init_args"]["path"] = str(photographs)
    path.write_text(yaml.safe_dump(recipe))
    return path


def command(*words: object, launcher: tuple[str, ...] = ()) -> list[str]:
    """Return the words that start `pixio` in this environment, by default as a fork."""
    start = launcher or (fork_server.python(), "-m")
    return [*start, "pixio_lightning.cli.main", *map(str, words)]


def environment(**more: str) -> dict[str, str]:
    """Return an environment of one thread, on the processor, without a network."""
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | more


def _start(line: list[str], stderr: int, **env: str) -> subprocess.Popen[str]:
    """Start a command line in a session of its own."""
    return subprocess.Popen(
        line,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env=environment(**env),
        start_new_session=True,
    )


def pixio(*words: object, launcher: tuple[str, ...] = (), **env: str) -> str:
    """Run a command line to its end and return what it printed; fails with its output.

    A gradient that DDP finds in another layout than its parameter's is a failure too. If it hangs,
    the output ends with the stacks of all its processes.
    """
    line = command(*words, launcher=launcher)
    process = _start(line, subprocess.PIPE, PYTHONFAULTHANDLER="1", **env)
    try:
        out, err = process.communicate(timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        out, err = _stacks(process)
        raise AssertionError(f"no end after {_PATIENCE} s\n{out}{err}") from None
    except BaseException:
        _signal(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0 and "Grad strides" not in err, out + err
    return out


def train_on_shards(shards: Path) -> Path:
    """Train the tiny recipe for a few steps beside a folder of shards; returns the checkpoint."""
    recipe = yaml.safe_load(yaml.safe_dump(TINY))
    recipe["data"]["init_args"] |= {"source": "shards", "path": str(shards), "max_bad": 0.1}
    path = shards.parent / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe))
    pixio("fit", "-c", path, "--out", shards.parent / "run")
    return shards.parent / "run" / "last.ckpt"


def _stacks(process: subprocess.Popen[str]) -> tuple[str, str]:
    """End the processes of a session, each of which prints where it was."""
    _signal(process.pid, signal.SIGABRT)
    try:
        return process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        _signal(process.pid, signal.SIGKILL)
        return process.communicate(timeout=30)


def _signal(session: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(session, number)


def started(
    text: str,
    *words: object,
    stderr: int = subprocess.STDOUT,
    launcher: tuple[str, ...] = (sys.executable, "-m"),
    **env: str,
) -> subprocess.Popen[str]:
    """Start a command line in a session of its own, and return once it has printed `text`.

    By default it is no fork, so that what has its process number is what can be killed.
    """
    process = _start(command(*words, launcher=launcher), stderr, **env)
    _wait_for(text, process)
    return process


def _wait_for(text: str, process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if text in line:
            return
    raise AssertionError(f"'{text}' was never printed:\n{''.join(seen)}")


def kill_when(
    text: str,
    *words: object,
    after: float = 0.0,
    until: Callable[[int], bool] = bool,
    **env: str,
) -> int:
    """Start a command line and SIGKILL all its processes once it has printed `text`.

    Args:
        text: What to wait for.
        words: The command line.
        after: Seconds to wait in the end.
        until: What else to wait for first, given the process number.
        env: More of the environment.

    Returns:
        The number of the process, or 0 if it had ended by itself.
    """
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "pid"
        process = _start(command(*words), subprocess.STDOUT, FORK_PID=str(told), **env)
        _wait_for(text, process)
        number = int(told.read_text())
    while process.poll() is None and not until(number):
        time.sleep(0.001)
    time.sleep(after)
    _signal(number, signal.SIGKILL)
    killed = process.wait() == -signal.SIGKILL
    assert process.stdout is not None
    process.stdout.close()
    return number if killed else 0


def same(a: Path, b: Path) -> bool:
    """Whether two checkpoints hold the same weights, optimiser state and step, bit for bit."""
    first, second = (torch.load(path, weights_only=True) for path in (a, b))
    assert first["global_step"] == second["global_step"]
    return equal(first["state_dict"], second["state_dict"]) and equal(
        first["optimizer_states"], second["optimizer_states"]
    )


def equal(a: object, b: object) -> bool:
    """Compare nested dicts, lists and tensors exactly."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    return a == b
