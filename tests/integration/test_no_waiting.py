"""Between two logs no step reads a value off the device, for which a GPU would be waited for."""

from pathlib import Path
from typing import Any

import pretend_cuda as device
import pytest
from small_runs import BACKBONE, HEADS

from pixio_lightning.cli.main import main
from pixio_lightning.data.stream import EndlessLoader

_STEPS, _LOG = 13, 4
_PRETRAINING = (
    *("-c", "pretrain/demo", *BACKBONE, "--model.backbone.tune", "full"),
    *(
        "--data.scenes",
        "{train: 8, held_out: 4, views: 2, size: 64}",
        "--panels.every_n_steps",
        "0",
    ),
)


@pytest.mark.parametrize("name", ["pretraining", "depth", "segmentation", "classification"])
def test_no_step_between_two_logs_reads_off_the_device(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = _PRETRAINING if name == "pretraining" else HEADS[name]
    steps: list[int] = []  # reads so far, whenever a batch is fetched
    fetch = EndlessLoader.__next__

    def noted(loader: EndlessLoader) -> dict[str, Any]:
        steps.append(len(device.reads))
        return fetch(loader)

    monkeypatch.setattr(EndlessLoader, "__next__", noted)
    with device.pretend_cuda(monkeypatch) as there:
        run = [*words, *there, "--out", str(tmp_path), "--data.num_workers", "0"]
        run += ["--data.batch_size", "2", "--data.steps_per_epoch", "50"]
        run += ["--trainer.max_steps", str(_STEPS), "--trainer.log_every_n_steps", str(_LOG)]
        run += ["--trainer.limit_val_batches", "0", "--trainer.num_sanity_val_steps", "0"]
        run += ["--checkpoint.every_n_steps", "100"]
        assert main(["fit", *run]) == 0
    taken = enumerate(zip(steps, steps[1:], strict=False))
    assert [step for step, (a, b) in taken if b > a] == [_LOG - 1, 2 * _LOG - 1, 3 * _LOG - 1]
