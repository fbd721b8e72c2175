"""A run goes on with what changes nothing that is learned, and with nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pixio_lightning.cli.main import main
from pixio_lightning.cli.resume import FREE, Batch, check_changes
from pixio_lightning.errors import UserError
from pixio_lightning.models.weights.shipped import SHIPPED
from pixio_lightning.training import results

CONFIG: dict[str, Any] = {
    "model": {
        "class_path": "A",
        "init_args": {
            "backbone": {"class_path": "B", "init_args": {"name": "vit", "checkpointing": False}},
            "optim": {"lr": 1e-3},
            "layers": [1, 2],
        },
    },
    "data": {"class_path": "C", "init_args": {"batch_size": 8, "num_workers": 4, "path": None}},
    "trainer": {
        "max_steps": 10,
        "devices": 2,
        "accumulate_grad_batches": 1,
        "precision": None,
        "profiler": None,
        "strategy": "ddp",
        "logger": None,
        "plugins": None,
    },
    "checkpoint": {"every_n_steps": 5, "best": True},
}
BATCH = Batch(8, 2, 1)
SLURM = "lightning.pytorch.plugins.environments.SLURMEnvironment"
HALF = "lightning.pytorch.plugins.precision.HalfPrecision"
DDP = "lightning.pytorch.strategies.DDPStrategy"


def changed(**leaves: Any) -> dict[str, Any]:
    """CONFIG with other leaves, `a__b=1` for key a.b."""
    config = {"": CONFIG}
    for name, value in leaves.items():
        *path, last = name.split("__")
        copy = config[""] = dict(config[""])
        for key in path:
            copy[key] = dict(copy[key])
            copy = copy[key]
        copy[last] = value
    return config[""]


def check(now: Batch | None = BATCH, then: Batch | None = BATCH, **leaves: Any) -> str:
    return check_changes(Path("runs/a"), CONFIG, changed(**leaves), then=then, now=now)


@pytest.mark.parametrize(
    ("leaves", "note"),
    [
        ({}, ""),
        ({"trainer__devices": "2"}, ""),  # as the command line gives it
        ({"data__init_args__num_workers": 0}, "goes on with other data.num_workers: 4 -> 0"),
        (
            {"trainer__profiler": "simple", "checkpoint__every_n_steps": 50},
            "goes on with other checkpoint.every_n_steps: 5 -> 50; "
            "trainer.profiler: None -> simple",
        ),
        (
            {"trainer__logger": {"class_path": "WandbLogger", "init_args": {"project": "p"}}},
            "goes on with other trainer.logger.class_path: None -> WandbLogger; "
            "trainer.logger.project: None -> p",
        ),
        ({"trainer__strategy": "auto"}, "goes on with other trainer.strategy: ddp -> auto"),
        (
            {"model__init_args__backbone__init_args__checkpointing": True},
            "goes on with other model.backbone.checkpointing: False -> True",
        ),
        ({"panels": {"images": 3}}, "goes on with other panels.images: None -> 3"),
        (
            {"model__init_args__videos": 0, "data__init_args__processes": 2},
            "goes on with other data.processes: None -> 2; model.videos: None -> 0",
        ),
    ],
)
def test_what_changes_nothing_is_noted(leaves: dict[str, Any], note: str) -> None:
    assert check(**leaves) == note


def test_how_long_processes_wait_for_each_other_may_change() -> None:
    given = {"timeout": "0:05:00", "ddp_comm_hook": None, "model_averaging_period": None}
    ddp = {"class_path": DDP, "init_args": given}
    assert "trainer.strategy.timeout: None -> 0:05:00" in check(trainer__strategy=ddp)
    sharded = {"class_path": "pixio_lightning.ShardedStrategy"}
    then, now = ({**sharded, "init_args": {"timeout": time}} for time in ("0:30:00", "1:00:00"))
    line = check_changes(
        Path("runs/a"),
        changed(trainer__strategy=then),
        changed(trainer__strategy=now),
        then=BATCH,
        now=BATCH,
    )
    assert "trainer.strategy.timeout: 0:30:00 -> 1:00:00" in line


def test_where_the_processes_are_told_of_may_change_and_what_they_compute_may_not() -> None:
    slurm = [{"class_path": SLURM, "init_args": {"auto_requeue": False}}]
    assert "trainer.plugins: None -> " in check(trainer__plugins=slurm)
    with pytest.raises(UserError, match=r"trainer\.plugins: None"):
        check(trainer__plugins=[*slurm, {"class_path": HALF}])


@pytest.mark.parametrize(
    ("leaves", "named"),
    [
        ({"trainer__max_steps": 20}, "trainer.max_steps: 10 -> 20"),
        ({"trainer__precision": "bf16-mixed"}, "trainer.precision: None -> bf16-mixed"),
        (
            {"trainer__strategy": {"class_path": DDP, "init_args": {"ddp_comm_hook": "fp16"}}},
            "trainer.strategy.ddp_comm_hook: None -> fp16",
        ),
        ({"trainer__strategy": "fsdp"}, "trainer.strategy: ddp -> fsdp"),
        ({"data__init_args__path": "photos"}, "data.path: None -> photos"),
        ({"model__init_args__layers": [1]}, "model.layers: [1, 2] -> [1]"),
        ({"checkpoint__best": False}, "checkpoint.best: True -> False"),
        ({"model__init_args__num_workers": 1}, "model.num_workers: None -> 1"),  # of a plug-in
        ({"data__init_args__of_a_plugin": 1}, "data.of_a_plugin: None -> 1"),
    ],
)
def test_all_else_is_refused(leaves: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError) as refused:
        check(**leaves, data__init_args__num_workers=0)
    text = str(refused.value)
    assert named in text and "num_workers: 4" not in text
    assert text.startswith("runs/a holds a run") and "--fresh" in text and "\n" not in text


def test_all_that_is_refused_is_named() -> None:
    with pytest.raises(UserError, match=r"data\.path: None -> x; trainer\.max_steps: 10 -> 20"):
        check(trainer__max_steps=20, data__init_args__path="x")


def test_the_global_batch_may_be_divided_otherwise() -> None:
    one = {"trainer__devices": 1}
    note = check(now=Batch(16, 1, 1), data__init_args__batch_size=16, **one)
    assert note == (
        "goes on with other data.batch_size: 8 -> 16; trainer.devices: 2 -> 1; global batch as "
        "before, then 16 = data.batch_size 8 x 2 processes, now 16 = data.batch_size 16 x 1 process"
    )
    assert "x 2 accumulated" in check(now=Batch(8, 1, 2), trainer__accumulate_grad_batches=2, **one)


@pytest.mark.parametrize("key", ["val_check_interval", "limit_train_batches"])
def test_what_counts_batches_would_count_other_steps(key: str) -> None:
    """Of other validations best.ckpt is chosen otherwise."""

    def divided(value: float) -> str:
        old = changed(**{f"trainer__{key}": value})
        keys = {"trainer__devices": 1, "trainer__accumulate_grad_batches": 2}
        new = changed(**keys, **{f"trainer__{key}": value})
        return check_changes(Path("runs/a"), old, new, then=BATCH, now=Batch(8, 1, 2))

    with pytest.raises(UserError, match=f"{key} 4 counts batches"):
        divided(4)
    assert "x 2 accumulated" in divided(1.0)


def test_another_global_batch_is_refused_with_what_keeps_it() -> None:
    with pytest.raises(UserError) as refused:
        check(now=Batch(8, 1, 1), trainer__devices=1)
    assert "set data.batch_size 16 or trainer.accumulate_grad_batches 2, " in str(refused.value)
    # Though no key differs: `devices: auto` on a machine with more of them.
    with pytest.raises(UserError, match="global batch of 16 = .* set data.batch_size 4, "):
        check(now=Batch(8, 4, 1))
    with pytest.raises(UserError, match="learned: give another"):
        check(now=Batch(8, 3, 1))


def test_without_a_known_global_batch_its_keys_are_refused() -> None:
    assert check(now=None, then=None) == ""
    for then, now in ((None, BATCH), (BATCH, None)):
        with pytest.raises(UserError, match=r"trainer\.devices: 2 -> 1"):
            check(now=now, then=then, trainer__devices=1)


def test_a_tilde_is_the_folder_it_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    old = changed(data__init_args__path="~/photos")
    new = changed(data__init_args__path=f"{tmp_path}/photos")
    assert check_changes(Path("runs/a"), old, new, then=BATCH, now=BATCH) == ""


def test_every_free_key_exists() -> None:
    """A key that was renamed would be refused without anybody noticing."""
    import inspect

    import lightning as L

    from pixio_heads.policy.data import PolicyData
    from pixio_heads.policy.head import Policy
    from pixio_lightning import Backbone
    from pixio_lightning.cli.config_errors import GROUPS
    from pixio_lightning.data.datamodule import StreamData
    from pixio_lightning.data.pixels import Pixels

    known = set(GROUPS)
    for part, classes in {
        "trainer": [L.Trainer],
        "checkpoint": [GROUPS["checkpoint"]],
        "data": [StreamData, Pixels, PolicyData],
        "model": [Policy],
        "model.backbone": [Backbone],
    }.items():
        known |= {f"{part}.{n}" for cls in classes for n in inspect.signature(cls).parameters}
    assert set(FREE) <= known


def test_a_finished_run_does_not_show_its_results_for_other_weights_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    weights = tmp_path / "weights.safetensors"
    shutil.copy(SHIPPED["tiny"], weights)
    words = ["fit", "-c", "depth/demo", "--out", str(tmp_path / "run")]
    words += ["--model.backbone.weights", str(weights), "--trainer.max_steps=2"]
    words += ["--data.steps_per_epoch=2", "--panels.every_n_steps=0", "--data.num_workers=0"]
    words += ["--data.scenes={train: 2, held_out: 2, views: 2, size: 64}"]
    assert main(words) == main(words) == 0
    assert "finished at step 2; --fresh starts anew" in capsys.readouterr().out
    metrics = results.read(tmp_path / "run")[-1]["metrics"]
    with safe_open(weights, "pt") as file:
        about = file.metadata()
    turned = {name: tensor.flip(0) for name, tensor in load_file(weights).items()}
    save_file(turned, weights, metadata=about)
    assert main(words) == 2
    said = capsys.readouterr()
    assert f"finished with another '{weights}' than there is now" in said.err
    assert "abs_rel" not in said.out
    assert main([*words, "--fresh"]) == main(words) == 0
    assert results.read(tmp_path / "run")[-1]["metrics"] != metrics
