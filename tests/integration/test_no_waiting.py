"""Between two logs no step reads off the device, or copies to it, what a GPU is waited for."""

from pathlib import Path
from typing import Any

import pretend_cuda as device
import pytest
from small_runs import ON_A_GPU, logged_run

from pixio_lightning.cli.main import main
from pixio_lightning.data.stream import EndlessLoader

_STEPS, _LOG = 10, 3
_LONG = ("future prediction", "distillation", "relative depth")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in _LONG else n for n in ON_A_GPU]
)
def test_no_step_between_two_logs_reads_off_the_device(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []  # reads so far, whenever a batch is fetched
    fetch = EndlessLoader.__next__

    def noted(loader: EndlessLoader) -> dict[str, Any]:
        steps.append(len(device.reads))
        return fetch(loader)

    monkeypatch.setattr(EndlessLoader, "__next__", noted)
    with device.pretend_cuda(monkeypatch) as there:
        run = [*logged_run(name, tmp_path, steps=_STEPS, every=_LOG), *there]
        assert main(["fit", *run]) == 0
    taken = enumerate(zip(steps, steps[1:], strict=False))
    assert [step for step, (a, b) in taken if b > a] == [_LOG - 1, 2 * _LOG - 1, 3 * _LOG - 1]
