"""A policy's evaluation that is killed in mid-episode."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
from running import pixio, started

LINE = (
    *("fit", "-c", "policy/demo", "--model.backbone.weights", "random:0"),
    "--model.backbone.model_args",
    "{img_size: 32, patch_size: 16, embed_dim: 24, depth: 1, num_heads: 2, n_cls_tokens: 2}",
    *("--trainer.max_steps", 6, "--data.steps_per_epoch", 2, "--data.batch_size", 4),
    *("--data.num_workers", 0, "--trainer.log_every_n_steps", 1, "--trainer.logger", "false"),
    *("--data.demonstrations", 2, "--data.processes", 2, "--data.image_size", 32),
    *("--model.videos", 0, "--checkpoint.every_n_steps", 2),
    # An untrained policy takes all the steps it may.
    *("--data.episodes", 4, "--data.horizon", 50, "--out"),
)


def in_group(group: int) -> list[int]:
    """Return the processes of a group that have not ended."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            ended = (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            if os.getpgid(int(process.name)) == group and not ended:
                found.append(int(process.name))
    return found


@pytest.mark.slow
def test_only_that_evaluation_is_lost(tmp_path: Path) -> None:
    """Its environments end with it; the same line goes on, and ends as one never killed."""
    cache = {"PIXIO_CACHE": str(tmp_path / "cache")}
    pixio(*LINE, tmp_path / "whole", **cache)
    run = started("step 4: saved", *LINE, tmp_path / "cut", **cache)
    while len(in_group(run.pid)) < 4:  # also the fork server and two environments
        time.sleep(0.05)
    os.kill(run.pid, signal.SIGKILL)
    run.communicate()
    records = (tmp_path / "cut" / "results.jsonl").read_text().splitlines()
    assert [json.loads(record)["steps"] for record in records] == [2]
    while in_group(run.pid):
        time.sleep(0.05)
    pixio(*LINE, tmp_path / "cut", **cache)
    for name in ("results.jsonl", "episodes.csv", "metrics.csv"):
        whole, cut = ((tmp_path / out / name).read_text() for out in ("whole", "cut"))
        assert whole == cut.replace(f"{tmp_path}/cut", f"{tmp_path}/whole"), name
