"""Suites: their table, their mistakes, and runs that are not repeated."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from pathlib import Path

import pytest
import timm
import yaml
from safetensors.torch import save_file

from pixio_lightning.cli import bench
from pixio_lightning.cli.bench import suite
from pixio_lightning.cli.bench.finished import has_run, last_result
from pixio_lightning.cli.main import main
from pixio_lightning.errors import UserError
from pixio_lightning.models.weights.shipped import SHIPPED
from pixio_lightning.training import results
from pixio_lightning.training.head import Head

SUITE = {
    "metrics": ["abs_rel"],
    "baselines": ["constant"],
    "rows": {
        "random": {
            "fit": "depth/demo",
            "set": {"model.backbone.weights": "random:{seed}"},
            "seeds": [0, 1],
        }
    },
}
TINY = ["--trainer.max_steps=2", "--data.steps_per_epoch=2", "--panels.every_n_steps=0"]
TINY += ["--data.scenes={train: 2, held_out: 2, views: 2, size: 64}", "--data.num_workers=0"]


def write(folder: Path, **changes: object) -> Path:
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump(SUITE | changes))
    return path


def test_a_suite_runs_once_and_prints_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    words = ["bench", str(write(tmp_path)), "--out", str(tmp_path / "out"), *TINY]
    assert main(words) == 0
    table = (tmp_path / "out/table.md").read_text()
    assert "| random |" in table and "+-" in table and "| constant |" in table
    assert "Evaluated on val of scenes 2x2 views of studio, 64 px, 4 samples; depth 0" in table
    assert table in capsys.readouterr().out
    write(tmp_path, title=2026)  # a number to YAML
    assert main(words) == 0
    assert "step 2/2" not in capsys.readouterr().out
    assert "<h1>2026</h1>" in (tmp_path / "out/index.html").read_text()
    assert main(["bench", "--compare", str(tmp_path / "out"), str(tmp_path / "out")]) == 0
    assert "no difference" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": []}, "there is no key metric, did you mean 'metrics'"),
        ({"rows": {"a": {"recipe": "x"}}}, "row a: there is no key recipe"),
        ({"rows": {"a": {}}}, "give fit"),
        ({"rows": None}, "has no rows"),
        ({"metrics": {"abs_rel": "less"}}, "metric abs_rel is 'less'; expected min, max or null"),
        ({"rows": {"a": {"fit": "depth/demo", "seeds": [1, 1]}}}, "one run would count twice"),
    ],
)
def test_mistakes(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        bench.read_suite(write(tmp_path, **changes))


def test_a_misspelt_suite(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(UserError, match=r"did you mean 'suite.yaml'"):
        bench.find_suite(str(tmp_path / "siute.yaml"))
    with pytest.raises(UserError, match=r"did you mean 'depth'\?; give a path, or of those that"):
        bench.find_suite("dept")


def test_suites_that_come_with_it_have_names(tmp_path: Path) -> None:
    assert bench.find_suite("depth").name == "depth.yaml"
    path = write(tmp_path)
    assert bench.find_suite(str(path)) == path


def test_the_spread_is_the_standard_deviation() -> None:
    text = bench.table([bench.Row("a", {"x": [1.0, 3.0]}), bench.Row("b", {"x": [2.0]})])
    assert "| a | 2.0000 +- 1.4142 | 2 |" in text and "| b | 2.0000 | 1 |" in text


BETTER = {"x": "min", "y": None}


def test_the_best_is_bold_and_each_end_is_shown() -> None:
    rows = [bench.Row("a_b", {"x": [1.0, 3.0], "y": [5.0]}), bench.Row("c", {"x": [1.5]})]
    text = bench.table(rows, BETTER)
    assert text.splitlines()[0] == "| | x ↓ | y | seeds |"
    assert "| **1.5000** |" in text and "| 2.0000 +- 1.4142 | 5.0000 |" in text
    tex = bench.latex(rows, BETTER)
    assert r"a\_b & 2.0000 $\pm$ 1.4142 & 5.0000 & 2 \\" in tex
    assert r" & x $\downarrow$ & y & seeds \\" in tex and r"\textbf{1.5000}" in tex
    assert bench.as_csv(rows).splitlines()[:2] == ["row,metric,seed,value", "a_b,x,0,1.0"]


def test_a_difference_stands_beside_what_seeds_do(tmp_path: Path) -> None:
    for name, values in (("a", [1.0, 1.2]), ("b", [1.1, 1.4]), ("c", [0.5, 0.6])):
        table = {"better": BETTER, "rows": {"row": {"x": values}}}
        (tmp_path / name).mkdir()
        (tmp_path / name / "table.json").write_text(json.dumps(table))
    chance, clear = (bench.compare(tmp_path / "a", tmp_path / name) for name in "bc")
    assert chance == (
        "row, x: 1.1000 -> 1.2500 (worse; 0.8 standard errors over seeds, may be chance)"
    )
    assert clear == "row, x: 1.1000 -> 0.5500 (better; 4.9 standard errors over seeds)"


def test_what_is_no_number_is_not_better(tmp_path: Path) -> None:
    for name, value in (("a", [0.5]), ("b", [math.nan]), ("c", [math.nan])):
        table = {"better": {"x": "max"}, "rows": {"row": {"x": value}}}
        (tmp_path / name).mkdir()
        (tmp_path / name / "table.json").write_text(json.dumps(table))
    one, two, three = (tmp_path / name for name in "abc")
    assert bench.compare(one, two) == "row, x: 0.5000 -> nan (not both are numbers)"
    assert bench.compare(two, three) == "no difference"


def test_rows_of_two_tables_that_may_not_be_compared_are_not_judged(tmp_path: Path) -> None:
    about = {key: line()[key] for key in results.COMPARED}
    for name, value, n in (("a", [1.0, 1.2], 3), ("b", [0.5, 0.6], 3), ("c", [0.5, 0.6], 4)):
        table = {"better": BETTER, "rows": {"row": {"x": value}}}
        table["compared"] = {"row": about | {"n": n}}
        (tmp_path / name).mkdir()
        (tmp_path / name / "table.json").write_text(json.dumps(table))
    one, alike, other = (tmp_path / name for name in "abc")
    assert "(better; " in bench.compare(one, alike)
    assert bench.compare(one, other).splitlines() == [
        "row: not to be compared: n is 3 and 4",
        "row, x: 1.1000 -> 0.5500",
    ]


def test_all_seeds_are_looked_at_before_the_first_trains(tmp_path: Path) -> None:
    tmp_path.joinpath("0.ckpt").touch()
    row = {"validate": "depth/demo", "seeds": [0, 1], "checkpoint": f"{tmp_path}/{{seed}}.ckpt"}
    suite = bench.read_suite(write(tmp_path, rows={"a": row}))
    with pytest.raises(UserError, match="row a: checkpoint '.*1.ckpt' does not exist"):
        bench.run(suite, tmp_path / "out", words=TINY)
    shutil.copy(SHIPPED["tiny"], tmp_path / "0.safetensors")
    weights = {"model.backbone.weights": f"{tmp_path}/{{seed}}.safetensors"}
    row = {"fit": "depth/demo", "seeds": [0, 1], "set": weights}
    suite = bench.read_suite(write(tmp_path, rows={"a": row}))
    with pytest.raises(UserError, match="row a: .*1.safetensors"):
        bench.run(suite, tmp_path / "out", words=TINY)
    assert not (tmp_path / "out").exists()


def test_seeds_that_change_nothing_are_not_several(tmp_path: Path) -> None:
    row = {"fit": "depth/demo", "seeds": [0, 1], "set": {"data.seed": 0}}
    path = write(tmp_path, rows={"a": row})
    fixed = ["--seed_everything=0", "--model.seed", "0"]
    with pytest.raises(UserError, match="row a: its seeds 0 and 1 have the same settings"):
        bench.run(bench.read_suite(path), tmp_path / "out", words=[*TINY, *fixed])


def test_a_row_that_stands_there_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text("rows:\n  a: {fit: depth/demo}\n  a: {fit: depth/folder}\n")
    with pytest.raises(UserError, match="the key a stands there twice"):
        bench.read_suite(path)


def test_all_rows_are_planned_before_the_first_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    rows = SUITE["rows"] | {"wrong": {"fit": "depth/demo", "set": {"model.pool": "cls"}}}
    suite = bench.read_suite(write(tmp_path, rows=rows))
    with pytest.raises(UserError, match="row wrong: .*pool"):
        bench.run(suite, tmp_path / "out", words=TINY)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("a b", [0]), ("a-b", [1, 0])),
        (("a/b", [0]), ("a_b", [0])),
        (("a", [-1]), ("a-", [1])),
    ],
)
def test_no_two_rows_share_a_run(first: tuple, second: tuple, tmp_path: Path) -> None:
    rows = {name: {"fit": "depth/demo", "seeds": seeds} for name, seeds in (first, second)}
    suite = bench.read_suite(write(tmp_path, rows=rows))
    said = f"rows '{first[0]}' and '{second[0]}' would share the folder .*a.*: call one"
    with pytest.raises(UserError, match=said):
        bench.run(suite, tmp_path / "out", words=TINY)
    assert not (tmp_path / "out").exists()


def line(**changes: object) -> dict:
    about = {"task": "t", "dataset": "d", "split": "val", "n": 3, "protocol": "p"}
    about |= {"steps": 5, "loss": None, "baselines": {}, "files": {}}
    return about | {"metrics": {"x": 1.0}, "checkpoint": "last", "verb": "fit"} | changes


def test_a_row_may_lack_a_column() -> None:
    text = bench.table([bench.Row("a", {"x": [1.0]}), bench.Row("b", {"y": [2.0]})])
    assert text.splitlines()[0] == "| | x | y | seeds |"
    assert "| a | 1.0000 |  | 1 |" in text and "| b |  | 2.0000 | 1 |" in text


def test_rows_of_a_column_that_may_not_be_compared_are_named() -> None:
    lines = [("a", line()), ("b", line()), ("c", line(protocol="q")), ("c", line(protocol="q"))]
    (why,) = bench.incomparable(lines, ["x"])
    assert why == "a and c: protocol is 'p' and 'q'"
    assert (
        bench.incomparable([("a", line()), ("c", line(protocol="q", metrics={"y": 1}))], "xy") == []
    )


def test_two_runs_compare_only_if_they_may(tmp_path: Path) -> None:
    results.append(tmp_path / "a", line())
    results.append(tmp_path / "a", line(checkpoint="best", verb="validate", metrics={"x": 9.0}))
    results.append(tmp_path / "b", line(metrics={"x": 2.0}))
    results.append(tmp_path / "c", line(n=4))
    assert bench.compare(tmp_path / "a", tmp_path / "b") == "last, x: 1.0000 -> 2.0000"
    with pytest.raises(UserError, match="may not be compared: n is 3 and 4"):
        bench.compare(tmp_path / "a", tmp_path / "c")
    with pytest.raises(UserError, match="holds no table.json"):
        bench.compare(tmp_path / "a", tmp_path)


def test_a_metric_that_no_row_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    row = {"a": {"fit": "depth/demo", "set": {"model.backbone.weights": "random:0"}}}
    path = write(tmp_path, metrics=["abs_rle"], rows=row)
    with pytest.raises(UserError, match="row a has none .* abs_rle, did you mean 'abs_rel'"):
        bench.run(bench.read_suite(path), tmp_path / "out", words=TINY)
    assert not (tmp_path / "out").exists()  # nothing has trained
    path = write(tmp_path, metrics=["abs_rel", "detla1"], rows=row)
    with pytest.raises(UserError, match="no row has a metric detla1, did you mean 'delta1'"):
        bench.run(bench.read_suite(path), tmp_path / "out", words=TINY)


def test_a_row_may_be_evaluated_untrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    row = {"validate": "depth/demo", "set": {"model.backbone.weights": "random"}}
    path = write(tmp_path, rows={"untrained": row})
    rows = bench.run(bench.read_suite(path), tmp_path / "runs", words=TINY).rows
    assert [row.name for row in rows] == ["constant", "untrained"]
    (line,) = results.read(tmp_path / "runs" / "untrained-0")
    assert line["checkpoint"] == "untrained" and line["steps"] == 0


def test_values_that_are_no_number_are_a_row_with_a_spread_of_none() -> None:
    for values in ([1.0, math.nan], [math.inf, 1.0]):
        assert "+- nan" in bench.table([bench.Row("a", {"x": values})])


def test_a_training_s_result_is_its_own(tmp_path: Path) -> None:
    """Other weights, or none, may be evaluated in its folder afterwards."""
    results.append(tmp_path, line(checkpoint="untrained", verb="validate", metrics={"x": 9.0}))
    assert not has_run(tmp_path, "fit")
    results.append(tmp_path, line(verb="fit", metrics={"x": 1.0}))
    for checkpoint in ("untrained", "last"):
        results.append(tmp_path, line(checkpoint=checkpoint, verb="validate", metrics={"x": 9.0}))
    assert last_result(tmp_path)["metrics"] == last_result(tmp_path, "fit")["metrics"] == {"x": 1.0}


def test_a_baseline_that_depends_on_the_backbone_stands_beside_each_row() -> None:
    rows = [bench.Row("random init of a", {"x": [1.0, 1.2]}), bench.Row("of b", {"x": [2.0]})]
    rows.append(bench.Row("of another task", {"z": [3.0]}))
    assert suite.joined("random init", rows, ["x", "y"]) == rows[:2]
    alike = [bench.Row("", {"x": [1.0]}), bench.Row("", {"x": [1.0001], "y": [math.nan] * 2})]
    (row,) = suite.joined("constant", alike, ["x", "y"])
    assert row.name == "constant" and row.values["x"] == [1.0001] and len(row.values["y"]) == 1
    # The same for every row and another for every seed: its mean and spread, once.
    seeds = [bench.Row(name, {"x": [1.0, 2.0]}) for name in ("of a", "of b")]
    assert suite.joined("constant", seeds, ["x"]) == [bench.Row("constant", {"x": [1.0, 2.0]})]


def test_a_seed_that_a_row_sets_stays(tmp_path: Path) -> None:
    about = {"fit": "depth/demo", "set": {"data.seed": 7}}
    words = suite._words(about, 1, tmp_path, [])
    assert "--data.seed=7" in words and "--data.seed=1" not in words and "--model.seed=1" in words


def test_a_row_is_trained_or_evaluated(tmp_path: Path) -> None:
    for row in ({}, {"fit": "depth/demo", "validate": "depth/demo"}):
        with pytest.raises(UserError, match="give fit or validate"):
            bench.read_suite(write(tmp_path, rows={"a": row}))


# --- runs that do not come to their last step -------------------------------------------------


LONG = [*TINY, "--trainer.max_steps=4"]  # two epochs
TWO = {
    "rows": {
        name: {"fit": "depth/demo", "set": {"model.backbone.weights": f"random:{seed}"}}
        for seed, name in enumerate("ab")
    }
}


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM]
)
def test_a_signal_stops_the_suite_and_the_same_line_goes_on(
    number: signal.Signals,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """After an evaluation, which is no result: the row that it stops has none, nor is there one."""
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    words = ["bench", str(write(tmp_path, **TWO)), "--out", str(out), *LONG]
    step = Head.training_step

    def send(self: Head, *args: object) -> object:
        if self.global_step == 2:
            os.kill(os.getpid(), number)
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Head, "training_step", send)
        assert main(words) == 128 + number
    assert "the suite stops with it and has no table: the same line" in capsys.readouterr().out
    assert [line["steps"] for line in results.read(out / "a-0")] == [2]
    assert not (out / "b-0").exists() and not (out / "table.md").exists()
    with pytest.raises(UserError, match=r"a-0 stopped at step 3 and .* evaluated at step 2: run"):
        bench.compare(out / "a-0", out / "a-0")
    assert main(words) == 0
    assert "| a |" in (table := (out / "table.md").read_text()) and "| b |" in table
    assert "ended at step" not in table
    assert [line["steps"] for line in results.read(out / "a-0") if line["checkpoint"] == "last"]


def test_a_training_that_ends_by_itself_is_a_result_and_the_table_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    out, row = tmp_path / "out", {"a": TWO["rows"]["a"]}
    words = ["bench", str(write(tmp_path, rows=row)), "--out", str(out), *LONG]
    words.append("--trainer.max_time=00:00:00:01")
    for _ in range(2):  # the second time no step is left
        assert main([*words, "--trainer.max_steps=100000"]) == 0
        table, (line, *_) = (out / "table.md").read_text(), results.read(out / "a-0")[::-1]
        assert line["checkpoint"] == "running"
        assert f"a, seed 0: its training ended at step {line['steps']} of 100000" in table
        assert f"{line['metrics']['abs_rel']:.4f}" in table
    capsys.readouterr()
    assert main(["bench", "--compare", str(out / "a-0"), str(out / "a-0")]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0] == "no difference" and f"ended at step {line['steps']} of" in said


def test_fresh_runs_finished_rows_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Trainings keep the folder of before; what is only evaluated is evaluated once more."""
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    rows = {"a": TWO["rows"]["a"], "b": {"validate": "depth/demo", "set": TWO["rows"]["b"]["set"]}}
    out = tmp_path / "out"
    words = ["bench", str(write(tmp_path, rows=rows)), "--out", str(out), *TINY]
    assert main(words) == 0
    rate = ["--model.optim.lr=0.5"]
    assert main([*words, *rate]) == 2  # the finished row is of another rate
    assert main([*words, *rate, "--fresh"]) == 0
    assert len(list(out.glob("a-0.*"))) == 1
    assert "--model.optim.lr=0.5" in results.read(out / "a-0")[-1]["overrides"]
    assert len(results.read(out / "b-0")) == 2
    capsys.readouterr()
    assert main([*words, *rate]) == 0
    assert "step 2/2" not in capsys.readouterr().out and len(list(out.iterdir())) == 3 + 5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ckpt_path", "a.ckpt"], "--ckpt_path is of one run, not of pixio bench"),
        (["--ckpt_path=none"], "--ckpt_path is of one run, not of pixio bench"),
    ],
)
def test_words_that_no_suite_has_are_refused(words: list[str], said: str, tmp_path: Path) -> None:
    """Finished rows would not heed them."""
    with pytest.raises(UserError, match=said):
        bench.run(bench.read_suite(write(tmp_path)), tmp_path / "out", words=[*TINY, *words])
    assert not (tmp_path / "out").exists()


# --- precision --------------------------------------------------------------------------------


def test_rows_of_another_precision_stand_in_one_table_and_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    row, out = {"validate": "depth/demo"}, tmp_path / "out"
    keys = {"model.backbone.weights": "random:0", "trainer.precision": "32-true"}
    rows = {
        "a": row | {"set": keys},
        "b": row | {"set": keys | {"trainer.precision": "bf16-mixed"}},
    }
    assert main(["bench", str(write(tmp_path, rows=rows)), "--out", str(out), *TINY]) == 0
    table = (out / "table.md").read_text()
    assert "\nprecision differs: 32-true of a; bf16-mixed of b\n" in table
    assert "Not to be compared" not in table and "| b |" in table
    capsys.readouterr()
    assert main(["bench", "--compare", str(out / "a-0"), str(out / "b-0")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == f"last: precision differs: 32-true of {out}/a-0; bf16-mixed of {out}/b-0"


def test_results_that_do_not_say_their_precision_compare_as_before() -> None:
    lines = [("a", line()), ("b", line(precision="32-true")), ("c", line(precision="32-true"))]
    assert results.caveats(lines) == [] and suite.caveats(lines, ["x"]) == []
    lines.append(("d", line(precision="16-mixed", metrics={"y": 1.0})))
    assert suite.caveats(lines, ["x", "y"]) == []  # of no common column
    assert results.caveats(lines) == ["precision differs: 32-true of b, c; 16-mixed of d"]


def test_rows_of_other_tokens_and_of_an_assumed_input_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Where patches are read: of a blind row nothing differs."""
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=4)
    save_file(vit.state_dict(), tmp_path / "mine.safetensors")
    keys = {"name": "vit_tiny_patch16_224", "weights": str(tmp_path / "mine.safetensors")}
    row = {"validate": "depth/demo"}
    rows = {
        "tiny": row | {"set": {"model.backbone": {"name": None, "weights": "tiny"}}},
        "mine": row | {"set": {"model.backbone": keys | {"model_args": {"depth": 4}}}},
    }
    out = tmp_path / "out"
    assert main(["bench", str(write(tmp_path, rows=rows)), "--out", str(out), *TINY]) == 0
    table = (out / "table.md").read_text()
    assert "\npixels a side of a token differs: 16 of mine; 8 of tiny\n" in table
    assert "as the weights say none: mine\n" in table and "Not to be compared" not in table
    (record,) = results.read(out / "mine-0")
    half = [0.5, 0.5, 0.5]
    assert record["input"] == {"mean": half, "std": half, "assumed": True}
    assert results.read(out / "tiny-0")[0]["input"]["assumed"] is False
    capsys.readouterr()
    assert main(["bench", "--compare", str(out / "tiny-0"), str(out / "mine-0")]) == 0
    assert f"a token differs: 8 of {out}/tiny-0; 16 of {out}/mine-0" in capsys.readouterr().out
    blind = [("a", line(token_px=8)), ("b", line(token_px=None)), ("c", line(token_px=8))]
    assert results.caveats(blind) == []
