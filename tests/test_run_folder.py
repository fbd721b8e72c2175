"""A run folder says what was asked and how far it got; its table reads as if never interrupted."""

import csv
import os
from pathlib import Path

import pytest

from pixio_lightning import run_folder
from pixio_lightning.errors import UserError
from pixio_lightning.run_folder import Metrics, check_same, differences, write_atomically

CONFIG = {
    "model": {"class_path": "A", "init_args": {"optim": {"lr": 1e-3}, "layers": [1, 2]}},
    "data": {"init_args": {"num_workers": 4, "path": None}},
    "trainer": {"max_steps": 10, "profiler": None},
}


def changed(**leaves: object) -> dict:
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


def test_only_keys_that_change_the_result_differ() -> None:
    free = changed(data__init_args__num_workers=0, trainer__profiler="simple")
    assert differences(CONFIG, free) == []
    new = changed(model__init_args__optim={"lr": 2e-3, "blr": None}, model__init_args__layers=[1])
    assert differences(CONFIG, new) == [
        "model.layers: [1, 2] -> [1]",
        "model.optim.lr: 0.001 -> 0.002",
    ]


def test_another_configuration_is_refused_with_all_differences() -> None:
    check_same(Path("runs/a"), CONFIG, changed())
    new = changed(trainer__max_steps=20, data__init_args__path="photos")
    with pytest.raises(UserError) as refused:
        check_same(Path("runs/a"), CONFIG, new)
    text = str(refused.value)
    assert "data.path: None -> photos; trainer.max_steps: 10 -> 20" in text
    assert text.startswith("runs/a holds a run") and "--fresh" in text and "\n" not in text


def test_the_state_of_a_run_is_kept(tmp_path: Path) -> None:
    assert run_folder.read_state(tmp_path) == {}
    for step, finished in ((3, False), (7, True)):
        run_folder.write_state(tmp_path, step=step, finished=finished)
        assert run_folder.read_state(tmp_path) == {"step": step, "finished": finished}


def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "config.yaml"
    write_atomically(path, "first")

    def stopped(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", stopped)
        write_atomically(path, "second, longer")
    assert path.read_text() == "first"
    write_atomically(path, "third")
    assert path.read_text() == "third"
    assert os.listdir(path.parent) == ["config.yaml"]


def test_an_earlier_run_is_kept_under_another_name(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    assert run_folder.set_aside(folder) is None
    kept = []
    for content in ("one", "two"):  # within a second of each other
        folder.mkdir()
        (folder / "file").write_text(content)
        kept.append(run_folder.set_aside(folder))
        assert not folder.exists()
    assert [(old / "file").read_text() for old in kept if old] == ["one", "two"]


# --- metrics.csv ------------------------------------------------------------------------------


def table(path: Path) -> list[dict[str, float]]:
    with path.open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def test_rows_and_columns_grow(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    metrics = Metrics(path)
    rows: list[dict[str, float]] = []
    for row in (
        {"step": 0, "loss": 1.5},
        {"step": 10, "loss": 1.25},
        {"step": 10, "val": float("inf")},
        {"step": 20, "lr": 1 / 3},
        {"step": 30, "loss": 1e-9, "val": 2.0},
    ):
        metrics.add(int(row["step"]), {k: v for k, v in row.items() if k != "step"})
        if rows and rows[-1]["step"] == row["step"]:
            rows[-1] |= row
        else:
            rows.append(dict(row))
        assert table(path) == [pytest.approx(r, rel=1e-7) for r in rows]
    assert path.read_text().splitlines()[0] == "step,loss,val,lr"
    assert metrics.first_and_last("loss") == (1.5, 1e-9)
    assert metrics.first_and_last("depth") is None


def test_known_columns_are_appended(tmp_path: Path) -> None:
    """A table of a million rows must not be written anew for each."""
    path = tmp_path / "metrics.csv"
    metrics = Metrics(path)
    metrics.add(0, {"loss": 1.0, "val": 1.0})
    inode = path.stat().st_ino
    metrics.add(1, {"loss": 2.0})
    assert path.stat().st_ino == inode  # replacing the file would change it
    assert path.read_text() == "step,loss,val\n0,1,1\n1,2,\n"


def test_rows_are_in_order_and_one_for_each_step(tmp_path: Path) -> None:
    """Lightning logs a step's loss after callbacks have logged what follows it."""
    path = tmp_path / "metrics.csv"
    metrics = Metrics(path)
    for step, values in (
        (5, {"loss": 3.0}),
        (7, {"knn": 0.5}),
        (6, {"loss": 2.0}),
        (7, {"loss": 1.0}),
    ):
        metrics.add(step, values)
    expected = [{"step": 5, "loss": 3}, {"step": 6, "loss": 2}, {"step": 7, "knn": 0.5, "loss": 1}]
    assert table(path) == expected


@pytest.mark.parametrize("first", [{"loss": 0.5}, {"val": 0.5}])
def test_a_run_that_goes_on_drops_the_rows_after_it(tmp_path: Path, first: dict) -> None:
    path = tmp_path / "metrics.csv"
    killed = Metrics(path)
    for step in range(5):
        killed.add(step, {"loss": float(step)})
    resumed = Metrics(path)
    resumed.rewind(2)
    resumed.add(3, first)
    kept = [{"step": s, "loss": s} for s in range(3)]
    assert table(path) == [*kept, {"step": 3} | first]
    resumed.rewind(-1)
    assert not path.exists()
    resumed.add(0, {"loss": 9.0})
    assert table(path) == [{"step": 0, "loss": 9}]
