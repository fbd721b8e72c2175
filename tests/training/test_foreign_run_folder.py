"""A run folder that somebody else filled leads nowhere, hangs nothing and forges nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pixio_lightning.cli.main import main

WORDS = ["-c", "depth/demo", "-c", "with/debug"]
WORDS += ["--data.scenes", "{train: 2, held_out: 2, views: 2, size: 64}", "--trainer.logger=false"]
ESCAPES = "x\x1b]0;owned\x07\x1b[2J\ndelta1  0.999"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIXIO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        assert main(["fit", *WORDS, "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def run(
    finished: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture(autouse=True)
def _ends() -> Iterator[None]:
    """Let what waits for ever, or unfolds without end, fail instead."""

    def fail(*_: Any) -> None:
        raise AssertionError("it does not end")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Return what a refused command line said, which must be one line of printable text."""
    told = capsys.readouterr().err
    assert told.startswith("pixio: error: ") and told.count("\n") == 1, told
    assert told[:-1].isprintable()
    return told


NAMES = (".lock", "config.yaml", "state.json", "metrics.csv", "results.jsonl", "bad_files.txt")


@pytest.mark.parametrize("verb", ["fit", "validate"])
@pytest.mark.parametrize("name", NAMES)
def test_a_link_leads_nothing_out_of_it(
    name: str, verb: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    precious = tmp_path / "precious"
    content = (run / name).read_text() if (run / name).exists() else ""
    precious.write_text(content + "precious\n" * (name == ".lock"))
    before = precious.read_bytes()
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(precious)
    code = main([verb, *WORDS, "--out", str(run)])
    assert precious.read_bytes() == before
    assert code == 2 and f"{name}' is a link or no regular file" in one_line(capsys)


@pytest.mark.parametrize("name", NAMES[1:])
def test_a_pipe_is_not_waited_for(name: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    assert main(["fit", *WORDS, "--out", str(run)]) == 2
    assert f"{name}' is " in one_line(capsys)


def test_a_checkpoint_that_is_a_pipe_is_not_waited_for(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "state.json").unlink()
    (run / "last.ckpt").unlink()
    os.mkfifo(run / "last.ckpt")
    assert main(["fit", *WORDS, "--out", str(run)]) == 2
    assert "last.ckpt' is no regular file" in one_line(capsys)
    assert main(["validate", *WORDS, "--ckpt_path", str(run / "last.ckpt")]) == 2
    assert "is neither a file nor a folder" in one_line(capsys)


def bomb(leaf: str, levels: int) -> str:
    """YAML of few lines that unfolds to nine times as many values with every level."""
    lines = [f"l0: &l0 {leaf}"]
    for i in range(levels):
        lines.append(f"l{i + 1}: &l{i + 1} [{', '.join([f'*l{i}'] * 9)}]")
    return "\n".join(lines) + "\n"


CONFIGS: dict[str, Callable[[str], str]] = {
    "alias bomb": lambda text: text + bomb("[x]", 9),
    "alias bomb of mappings": lambda text: text + bomb("{x: 1}", 9),
    "deep": lambda text: text + "x: " + "[" * 20_000 + "]" * 20_000,
    "parts that are none": lambda text: "model: 1\ndata: 2\ntrainer: 3\n",
    "long": lambda text: text + "# " + "x" * (5 << 20),
}


@pytest.mark.parametrize("change", CONFIGS)
def test_a_configuration_that_is_none(
    change: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "config.yaml"
    path.write_text(CONFIGS[change](path.read_text()))
    assert main(["fit", *WORDS, "--out", str(run)]) == 2
    assert "is no configuration of a run" in one_line(capsys)


STATES = {
    "no step": '{"finished": true}',
    "step that is none": json.dumps({"finished": True, "step": ESCAPES}),
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("state", STATES)
def test_a_state_that_is_none(state: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "state.json").write_text(STATES[state])
    assert main(["fit", *WORDS, "--out", str(run)]) == 2
    assert "state.json' is damaged: remove it" in one_line(capsys)


def test_a_batch_that_is_none_counts_as_unknown(run: Path) -> None:
    batch = {"batch_size": "x", "processes": None, "accumulate": []}
    (run / "state.json").write_text(json.dumps({"finished": False, "batch": batch}))
    assert main(["fit", *WORDS, "--out", str(run)]) == 0


@pytest.mark.parametrize(
    "table", ["step,loss\n1,abc\n", "a,b\n1,2\n", "step\n1,2,3\n", "step\n\0\n"]
)
def test_curves_that_are_none(table: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "metrics.csv").write_text(table)
    assert main(["fit", *WORDS, "--out", str(run)]) == 2
    assert "metrics.csv' is damaged" in one_line(capsys)


LINES: dict[str, str | Callable[[dict[str, Any]], Any]] = {
    "empty": "{}",
    "no mapping": "[1]",
    "deep": "[" * 100_000,
    "metrics that are none": lambda line: line | {"metrics": 5},
    "metrics without numbers": lambda line: line | {"metrics": {"abs_rel": ESCAPES}},
    "baselines that are none": lambda line: line | {"baselines": {"constant": []}},
    "step that is none": lambda line: line | {"steps": ESCAPES},
    "files that are none": lambda line: line | {"files": None},
}


# One of what is no line, one with what is shown, one with what is computed with.
QUICK = ("no mapping", "metrics without numbers", "step that is none")


@pytest.mark.parametrize(
    "kind", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in LINES]
)
def test_lines_that_nothing_here_writes_are_left_out(
    kind: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, change = run / "results.jsonl", LINES[kind]
    first = json.loads(results.read_text().splitlines()[0])
    results.write_text((change if isinstance(change, str) else json.dumps(change(first))) + "\n")
    assert main(["fit", *WORDS, "--out", str(run)]) == 0
    assert "finished at step 2" in (told := capsys.readouterr().out) and "abs_rel" not in told
    assert main(["validate", *WORDS, "--out", str(run)]) == 0
    assert "abs_rel" in capsys.readouterr().out


def test_results_only_show(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = run / "results.jsonl"
    lines = [json.loads(text) for text in results.read_text().splitlines()]
    for line in lines:
        line |= {"dataset": ESCAPES, "protocol": ESCAPES}
    results.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["fit", *WORDS, "--out", str(run)]) == 0
    told = capsys.readouterr().out
    assert "x?]0;owned??[2J?delta1  0.999" in told
    assert all(line.isprintable() for line in told.splitlines())
    assert not [line for line in told.splitlines() if line.startswith("delta1")]


ROWS = ('{"a": 5}', '{"a": {"m": ["x"]}}', '{"a": {"m": []}}')
TABLES = ("{", "[]", "{}", *(f'{{"rows": {rows}}}' for rows in ROWS), "[" * 100_000)


@pytest.mark.parametrize("table", TABLES, ids=range(len(TABLES)))
def test_a_table_that_is_none(
    table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "table.json").write_text(table)
    assert main(["bench", "--compare", str(tmp_path), str(tmp_path)]) == 2
    assert "is no table of a suite" in one_line(capsys)


def test_tables_only_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"rows": {f"row{ESCAPES}": {"m": [1]}}}))
    (tmp_path / "b.json").write_text('{"rows": {"row": {"m": [2]}}}')
    assert main(["bench", "--compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    assert all(line.isprintable() for line in capsys.readouterr().out.splitlines())


def test_places_that_are_no_numbers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "x\x1b[2J")
            assert main(["fit", *WORDS]) == 2
            assert f"variable {name} is" in one_line(capsys)
