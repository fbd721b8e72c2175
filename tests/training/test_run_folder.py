"""A run folder says what was asked and how far it got; its table reads as if never interrupted."""

import csv
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pixio_lightning.errors import UserError
from pixio_lightning.files import write_text, written_aside
from pixio_lightning.files.atomic import aside_of
from pixio_lightning.training import run_folder
from pixio_lightning.training.run_folder import Metrics


def test_the_state_of_a_run_is_kept(tmp_path: Path) -> None:
    assert run_folder.read_state(tmp_path) == {}
    for step, finished in ((3, False), (7, True)):
        run_folder.write_state(tmp_path, step=step, finished=finished)
        assert run_folder.read_state(tmp_path) == {"step": step, "finished": finished}
    batch = {"batch_size": 8, "processes": 2, "accumulate": 1}
    run_folder.write_state(tmp_path, batch=batch)
    assert run_folder.read_state(tmp_path) == {"step": 7, "finished": True, "batch": batch}
    (tmp_path / "state.json").write_text('{"step": 7, "fin')
    with pytest.raises(UserError, match=r"state\.json' is damaged"):
        run_folder.read_state(tmp_path)


def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "config.yaml"
    write_text(path, "first")

    def stopped(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", stopped)
        write_text(path, "second, longer")
    assert path.read_text() == "first"
    write_text(path, "third")
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


def test_the_target_of_a_link_is_kept_and_the_link_leads_to_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "last.ckpt").write_text("weights")
    (tmp_path / "run").symlink_to("big")
    old = run_folder.set_aside(tmp_path / "run")
    assert old is not None and old.parent == tmp_path
    assert (old / "last.ckpt").read_text() == "weights"
    assert (tmp_path / "run").is_symlink() and os.listdir(tmp_path / "run") == []


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"letter.txt": "dear"}, "holds files but no run"),
        ({"config.yaml": "port: 80"}, "is no configuration of a run"),
        ({"state.json": "{}"}, "this command runs in it"),
    ],
)
def test_what_is_no_run_is_not_moved_aside(
    files: dict[str, str], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=why):
        run_folder.check_ours(Path("."), fresh=True)


def test_what_the_system_does_not_rename_stays(tmp_path: Path) -> None:
    """A link to a mount point."""
    (tmp_path / "run").symlink_to("/proc")
    with pytest.raises(UserError, match="cannot rename '/proc'"):
        run_folder.set_aside(tmp_path / "run")


def test_what_killed_processes_left_is_removed_before_anything_is_written(tmp_path: Path) -> None:
    for name in ("last.ckpt", "config.yaml"):
        aside_of(tmp_path / name).write_bytes(b"half")
    sharded = tmp_path / ".best.ckpt.tmp"
    sharded.mkdir()
    (sharded / "part-0").touch()
    (tmp_path / ".notes.tmp").touch()
    (tmp_path / "last.ckpt").touch()
    with run_folder.held(tmp_path):
        left = {path.name for path in tmp_path.iterdir()}
    assert left == {".lock", ".notes.tmp", "last.ckpt"}


def test_a_full_disk_leaves_nothing_and_is_named(tmp_path: Path) -> None:
    target = tmp_path / "last.ckpt"
    with (
        pytest.raises(OSError, match="No space left on device: '.*/last.ckpt'"),
        written_aside(target) as aside,
    ):
        aside.touch()
        with open("/dev/full", "w") as full:
            full.write("x")
    assert not list(tmp_path.iterdir())


def test_a_folder_is_held_by_one_process_and_released_by_its_death(tmp_path: Path) -> None:
    """Also where a data worker, a fork of it, lives on."""
    hold = (
        "import os, sys, time\nfrom pathlib import Path\n"
        "from pixio_lightning.training.run_folder import held\n"
        "with held(Path(sys.argv[1])):\n"
        "    worker = os.fork()\n"
        "    if worker: print(worker, flush=True)\n"
        "    time.sleep(60)\n"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert first.stdout is not None
    worker = int(first.stdout.readline())
    try:
        with (
            pytest.raises(UserError, match=rf"in use .*process {first.pid} on "),
            run_folder.held(tmp_path),
        ):
            pass
        first.kill()
        first.wait()
        with run_folder.held(tmp_path):
            assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")
    finally:
        os.kill(worker, signal.SIGKILL)
        first.kill()
        first.stdout.close()


def test_without_locks_a_run_says_so_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As network file systems may be mounted."""

    def no_locks(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(run_folder.fcntl, "lockf", no_locks)
    with run_folder.held(tmp_path):
        pass
    assert f"no lock on {tmp_path} (No locks available)" in capsys.readouterr().err


def test_a_configuration_without_its_parts_is_none(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("model: {a: 1}\ndata: {b: 1}\ntrainer:\n")
    with pytest.raises(UserError, match="is no configuration of a run"):
        run_folder.stored_config(tmp_path)


def test_checkpoints_are_found_while_one_is_put_back(tmp_path: Path) -> None:
    """The first process renames a folder that a kill left; the others come to the same end."""
    from pixio_lightning.files import recover_folder

    assert run_folder.checkpoints(tmp_path) == []
    (tmp_path / ".last.ckpt.old").mkdir()
    assert run_folder.checkpoints(tmp_path) == [tmp_path / "last.ckpt"]
    recover_folder(tmp_path / "last.ckpt")
    assert run_folder.checkpoints(tmp_path) == [tmp_path / "last.ckpt"]
    (tmp_path / "best.ckpt").touch()
    assert [p.name for p in run_folder.checkpoints(tmp_path)] == ["last.ckpt", "best.ckpt"]


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


def test_a_table_that_is_opened_again_goes_on_with_its_columns(tmp_path: Path) -> None:
    """Also where one came late into an earlier row."""
    metrics = Metrics(tmp_path / "metrics.csv")
    metrics.add(0, {"loss": 1.0})
    metrics.add(1, {"loss": 2.0, "rate": 0.5})
    metrics.add(0, {"probe": 0.25})
    again = Metrics(tmp_path / "metrics.csv")
    again.add(3, {"loss": 4.0, "rate": 0.125, "probe": 0.75})
    assert Metrics(tmp_path / "metrics.csv").rows[-1] == {
        **{"step": 3, "loss": 4, "rate": 0.125, "probe": 0.75}
    }


def test_a_row_of_metrics_that_was_cut_short_is_forgotten(tmp_path: Path) -> None:
    """`10` of `1000,...` would be a row of an earlier step, and take the next one with it."""
    metrics = Metrics(tmp_path / "metrics.csv")
    for step in (998, 999):
        metrics.add(step, {"train/loss": 0.5})
    with metrics.path.open("a") as file:
        file.write("10")
    again = Metrics(metrics.path)
    assert [row["step"] for row in again.rows] == [998, 999]
    again.rewind(1000)
    again.add(1010, {"train/loss": 0.25})
    assert metrics.path.read_text().splitlines()[1:] == ["998,0.5", "999,0.5", "1010,0.25"]
