"""A checkpoint of which any part is of another kind is refused in one line, wherever it is used."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import pixio_lightning
from pixio_lightning.cli.main import main
from pixio_lightning.errors import UserError

WORDS = ["-c", "depth/demo", "-c", "with/debug", "--trainer.logger=false"]
WORDS += ["--data.scenes", "{train: 2, held_out: 2, views: 2, size: 64}"]
VALUES: list[Any] = [5, "x\x1b[31mred", None, [], {}, {"a": 1}, [[5]], -1, 10**30, torch.ones(2)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIXIO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        assert main(["fit", *WORDS, "--out", str(folder / "run")]) == 0
        yield folder / "run/last.ckpt"


def places(value: Any, above: tuple = ()) -> Iterator[tuple]:
    """Yield where something stands in nested mappings and lists, of each list the first."""
    inside: Any = ()
    if isinstance(value, dict):
        inside = value.items()
    elif isinstance(value, list):
        inside = enumerate(value[:1])
    for key, inner in inside:
        yield (*above, key)
        yield from places(inner, (*above, key))


def changed(stored: dict[str, Any], place: tuple, value: Any) -> dict[str, Any]:
    stored = inside = copy.deepcopy(stored)
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = value
    return stored


@pytest.mark.parametrize("each", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_whatever_stands_anywhere_loads_or_is_one_line(
    trained: Path, tmp_path: Path, each: int
) -> None:
    stored = torch.load(trained, weights_only=True)
    del stored["loops"], stored["optimizer_states"]  # of training
    everywhere = list(places(stored))
    refused = 0
    for place in everywhere:
        for value in random.Random(str(place)).sample(VALUES, each):
            torch.save(changed(stored, place, value), tmp_path / "m.ckpt")
            try:
                pixio_lightning.load(tmp_path / "m.ckpt")
            except UserError as error:
                assert str(error).isprintable()
                refused += 1
    assert len(everywhere) > 50 and 2 * refused > each * len(everywhere)


# (verb, place, value): one for each way in which they went wrong.
USED: list[tuple[str, tuple, Any]] = [
    ("fit", ("callbacks",), 5),
    ("fit", ("callbacks", "Accumulation"), torch.ones(2)),
    ("fit", ("callbacks", "Checkpoints"), {"a": 1}),
    ("fit", ("optimizer_states", 0, "state", 3, "step"), None),
    ("fit", ("optimizer_states", 0, "param_groups"), [[5]]),
    ("fit", ("lr_schedulers", 0, "_last_lr"), [None, None]),
    ("fit", ("lr_schedulers", 0, "last_epoch"), {}),
    ("fit", ("lr_schedulers", 0, "lr_lambdas"), -1),
    ("fit", ("running_means",), [[[0.5]]]),
    ("fit", ("running_means",), [[[0.5, 1.0]], 5]),
    ("fit", ("loops", "fit_loop", "state_dict"), -1),
    ("fit", ("loops", "fit_loop", "state_dict"), {"combined_loader": [{}] * 9}),
    ("fit", ("loops", "fit_loop", "epoch_loop.scheduler_progress", "total", "ready"), "x\x1b[31m"),
    ("validate", ("loops", "validate_loop"), None),
    ("validate", ("loops", "validate_loop", "batch_progress", "total", "processed"), [[5]]),
    ("validate", ("pytorch-lightning_version",), [[5]]),
    ("validate", ("pixio",), 5),
    ("predict", ("pixio", "facts"), "x\x1b[31m"),
    ("predict", ("pixio", "statistics", "constant"), None),
]


@pytest.mark.parametrize(("verb", "place", "value"), USED, ids=range(len(USED)))
def test_what_is_used_of_it_is_one_line(
    verb: str,
    place: tuple,
    value: Any,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stored = torch.load(trained, weights_only=True)
    torch.save(changed(stored, place, value), tmp_path / "m.ckpt")
    words = [verb, *WORDS, "--trainer.max_steps=3", "--out", str(tmp_path / "out")]
    assert main([*words, "--ckpt_path", str(tmp_path / "m.ckpt")]) == 2
    told = capsys.readouterr().err
    assert told.startswith("pixio: error: checkpoint '") and told.count("\n") == 1
    assert told[:-1].isprintable()


def test_a_run_still_goes_on_from_its_own(trained: Path, tmp_path: Path) -> None:
    words = ["fit", *WORDS, "--trainer.max_steps=3", "--out", str(tmp_path / "out")]
    assert main([*words, "--ckpt_path", str(trained)]) == 0
