"""FSDP2 over NCCL: what one process of it computes is what a process without it does."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import interrupted_after, losses, words_of

from pixio_lightning.cli.main import main

_MORE = (
    *("--trainer.max_steps", "4", "--data.steps_per_epoch", "4", "--model.backbone.tune", "full"),
    *("--trainer.deterministic", "warn"),  # where maps are scaled, sums of floats have no order
)


@pytest.mark.parametrize(("precision", "near"), [("32-true", 1e-5), ("bf16-mixed", 1e-2)])
@pytest.mark.parametrize("name", ["pretraining", "segmentation, tuned"])
def test_a_sharded_run_equals_a_plain_one_and_resumes(
    name: str,
    precision: str,
    near: float,
    gpu: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    more = (*gpu, *_MORE, "--trainer.precision", precision)
    assert main(["fit", *words_of(name, tmp_path / "plain"), *more]) == 0
    sharded = [*words_of(name, tmp_path / "sharded"), *more]
    sharded[4:4] = ["-c", "with/fsdp"]  # after the overlay that names another strategy
    interrupted_after(2, sharded, monkeypatch)
    assert (tmp_path / "sharded" / "last.ckpt").is_dir()
    assert main(["fit", *sharded]) == 0
    for verb in ("validate", "test"):
        assert main([verb, *sharded]) == 0
    plain, other = losses(tmp_path / "plain"), losses(tmp_path / "sharded")
    assert len(plain) == 4 and other == pytest.approx(plain, rel=near)
