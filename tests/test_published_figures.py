"""Figures that headers, README and docs state are those of benchmarks/results."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pixio_lightning.cli import recipes
from pixio_lightning.pretraining.costs import LOADED

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
EXPECTED = {
    recipe.name: recipes.header(recipe.path).fields
    for recipe in recipes.all_recipes()
    if recipe.origin == recipes.BUILT_IN and "expect" in recipes.header(recipe.path).fields
}
CITED = re.compile(r" \(benchmarks/results/(\w+\.md)\)$")
FIGURE = re.compile(r"\d*\.\d+|\d[\d,]*")

# What a header calls the row of a table that it states.
ROWS = {
    "attributes/demo": (
        *("mean class token", "mean patch", "random-init, mean class token", "colours"),
    ),
    "classification/demo": ("pretrained, linear, place", "random-init, linear, place", "majority"),
    "depth/demo": ("pretrained backbone", "random-init backbone", "median map"),
    "distill/demo": (
        *("distilled student, depth", "random-init student, depth"),
        *("pixel-pretrained student, depth", "teacher, depth"),
    ),
    "policy/demo": (
        *("pretrained, key points", "random-init, key points", "blind (own state only)"),
    ),
    "policy/metaworld_demo": (
        *("pretrained backbone, drawer", "random-init backbone, drawer", "blind, drawer"),
    ),
    "propagation/demo": ("pixel-pretrained backbone", "random-init backbone", "colour"),
    "reconstruction/demo": ("trained", "best constant"),
    "segmentation/demo": ("pretrained backbone", "random-init backbone", "majority map"),
}
NAMED = {"most frequent place": "majority"}
LOSSES = {
    "held-out loss": "after the last step",
    "predicting zero": "predicting zero",
    "interpolated colours": "colours interpolated from the visible pixels, "
    "at the true contrast of each hidden patch",
    "with capped contrast": "the same, its contrast capped where it exceeds the truth",
}


def table(text: str) -> dict[str, dict[str, str]]:
    """Return the cells of all tables of a page by the text of a row's first cell, and by column."""
    found: dict[str, dict[str, str]] = {}
    columns: list[str] = []
    for line in text.splitlines():
        cells = [cell.strip(" *") for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            columns = []
        elif not columns:
            columns = cells
        elif set(line) - set("|-"):
            assert cells[0] not in found, cells
            found[cells[0]] = dict(zip(columns[1:], cells[1:], strict=True))
    return found


def read(name: str) -> dict[str, dict[str, str]]:
    return table((RESULTS / name).read_text())


def agrees(stated: str, measured: str) -> bool:
    """Whether a figure is the first one of a cell, rounded to the places that it has."""
    exact = float(FIGURE.findall(measured)[0].replace(",", ""))
    places = len(stated.partition(".")[2])
    return abs(float(stated.replace(",", "")) - exact) <= 0.5 * 10.0**-places + 1e-9


def block(page: str, name: str) -> str:
    """Return what stands between two comments of a page."""
    _, text, _ = re.split(f"<!-- /?{name} -->\n", (ROOT / page).read_text())
    return text


@pytest.mark.parametrize("name", ROWS)
def test_a_header_states_rows_of_the_table_that_it_names(name: str) -> None:
    """The first part names the columns: `top1 0.3, top5 0.9; random-init 0.2, 0.8; ...`"""
    expected = EXPECTED[name]["expect"]
    cited = CITED.search(expected)
    assert cited
    rows, parts = read(cited[1]), expected[: cited.start()].split("; ")
    columns = re.findall(r"([a-z]\w*) [\d.]+", parts[0])
    for part, row in zip(parts, ROWS[name], strict=True):
        label = re.match(r"[a-z, -]*(?= \d)", part)
        if part is not parts[0]:
            assert label and row.startswith(NAMED.get(label[0], label[0])), part
        stated = re.findall(r"(?<= )[\d.]+", part)
        for column, figure in zip(columns, stated, strict=True):
            assert agrees(figure, rows[row][column]), f"{row}, {column}: {figure}"


@pytest.mark.parametrize("name", ["demo", "demo_paper"])
def test_a_demo_states_the_losses_that_it_was_measured_with(name: str) -> None:
    rows = read("pretrain_demo.md")
    expected = EXPECTED[f"pretrain/{name}"]["expect"]
    assert CITED.search(expected)
    for label, row in LOSSES.items():
        (figure,) = re.findall(rf"{label} ([\d.]+)", expected)
        assert agrees(figure, rows[row][name]), label


def test_zero_is_the_same_for_all() -> None:
    (zero, *others) = read("pretrain_demo.md")["predicting zero"].values()
    stated = re.findall(r"zero \(?([\d.]+)", "".join(e["expect"] for e in EXPECTED.values()))
    assert {*stated, *others} == {zero}


@pytest.mark.parametrize(
    ("name", "last"),
    [("video/demo", "after 1200 steps"), ("pretrain/tiny_scenes", "after 3000 steps")],
)
def test_a_pretraining_states_what_it_was_measured_with(name: str, last: str) -> None:
    expected = EXPECTED[name]["expect"]
    cited = CITED.search(expected)
    assert cited
    rows, measured = read(cited[1]), {"held-out loss": last}
    for part in CITED.sub("", expected).replace("; ", ", ").split(", "):
        label, _, figure = part.rpartition(" ")
        assert agrees(figure, rows[measured.get(label, label)]["held-out loss"]), part


def test_every_other_figure_is_the_paper_s() -> None:
    """Or that of a run which the header itself names, as no table is kept of it."""
    for name, fields in EXPECTED.items():
        if re.search(r"\d*\.\d", fields["expect"]) and not CITED.search(fields["expect"]):
            published = re.search(r"arXiv|\bpaper\b", f"{fields['expect']} {fields['reproduces']}")
            own = name in ("pretrain/demo_curated", "pretrain/folder")
            assert own or (published and "nothing of the paper" not in fields["reproduces"]), name


def test_the_readme_prints_what_the_demo_printed() -> None:
    page, rows = block("README.md", "demo"), read("pretrain_demo.md")
    losses = {label: rows[row]["demo"] for label, row in LOSSES.items()}
    first, last = rows["before the first step"]["demo"], losses.pop("held-out loss")
    assert f"first {first}, last {last} (hue " in page
    for label, loss in losses.items():
        share = 1 - float(last) / float(loss)
        assert re.search(rf"{label} +{loss} \(the last loss is {share:.0%} below\)", page), label
    text = (RESULTS / "pretrain_demo.md").read_text()
    (took,) = re.findall(r"the whole demo took (.*?)\)", (ROOT / "README.md").read_text())
    assert took in text


def test_the_readme_s_table_of_depth_is_that_of_three_seeds() -> None:
    assert table(block("README.md", "depth")) == read("demo_seeds.md")


def test_the_readme_s_speed_is_measured() -> None:
    page, speed = (ROOT / "README.md").read_text(), RESULTS / "speed"
    path, step = (
        json.loads((speed / f"{name}.json").read_text()) for name in ("data_path", "pretrain_step")
    )
    found = re.search(
        r"crops (\d+) photographs of 640x480 a second, ([\d.]+) times .*? ([\d.]+) times as many",
        page,
        re.DOTALL,
    )
    small, large = (path[size]["one core"] for size in ("640x480", "1600x1200"))
    assert found and [float(figure) for figure in found.groups()] == [
        round(small["pixio"]),
        *(round(row["ratio"], 1) for row in (small, large)),
    ]
    forms = [step[size]["forms"] for size in ("demo", "tiny", "base")]
    ratios = [round(form["ours, default"]["ratio"], 2) for form in forms]
    assert f"takes {max(ratios)} to {min(ratios)} of the time" in page
    others = ("lightly Pixio", "transformers ViTMAE", "stable-pretraining MAE")  # in float32, too
    ratios = [round(form[other]["ratio"], 2) for form in forms for other in others]
    assert f"take {min(ratios)} to\n{max(ratios)} times as long" in page and min(ratios) > 1
    ends = [f"{path[size]['end to end']['ratio']:.1f}" for size in ("640x480", "1600x1200")]
    assert f"two workers give {ends[0]} and {ends[1]} times as many" in page


def test_plans_load_images_as_fast_as_was_measured() -> None:
    """And docs/scale.md delivers as many as its plan of the paper's run takes."""
    path = json.loads((RESULTS / "speed" / "data_path.json").read_text())
    assert round(path["640x480"]["one core"]["pixio"]) == LOADED
    page = (ROOT / "docs" / "scale.md").read_text()
    assert f"Cores follow from {LOADED} decoded crops of 640x480 a second and core" in page
    stated = re.search(
        r"kept images are ([\d,]+) a second: ([\d.]+) GB a second from shards as packed, ([\d.]+)",
        page,
    )
    plan = re.search(r"at most (\d+) img/s, .*? days on (\d+)", page.split("vit5b16_web\n")[1])
    costs = read("curation_costs.md")
    assert stated and plan
    kept = int(plan[1]) * int(plan[2])
    assert round(kept, -3) == int(stated[1].replace(",", ""))
    size = float(FIGURE.findall(costs["a photograph, 640x480, quality 90"]["on one core"])[0]) * 1e3
    for figure, row in zip(
        stated.groups()[1:],
        ("read for each kept byte, shards as packed", "the same, 16 bins (`--materialize`)"),
        strict=True,
    ):
        waste = float(FIGURE.findall(costs[row]["on one core"])[0])
        assert float(figure) == round(kept * size * waste / 1e9, 1), row


def test_the_costs_of_curation_are_measured() -> None:
    """Those of docs/scale.md by the first figure of a row; docs/curation.md has two more."""
    measured = read("curation_costs.md")
    units = {
        what: row["unit cost"] for what, row in table((ROOT / "docs/scale.md").read_text()).items()
    }
    named = {
        "shards": "a photograph, 640x480, quality 90",
        "scores on disk": "a score on disk",
        "decode, crop and entropy, to score": "decode, crop, entropy (scoring)",
        "read from a shard, file cache warm": "read a photograph from a shard, file cache warm",
        "hash the keys, once": "hash a key",
        "keep or not, each pass": "keep or not",
        "read a score and count it, to calibrate": "calibrate: read a score and count it",
        "read for a kept image, as packed": "read for each kept byte, shards as packed",
        "read for a kept image, materialized": "the same, 16 bins (`--materialize`)",
    }
    for what, unit in units.items():
        assert agrees(FIGURE.findall(unit)[0], measured[named.pop(what)]["on one core"]), what
    assert not named
    text = (ROOT / "docs/curation.md").read_text()
    for sentence, row in (
        (r"reads: ([\d.]+) bytes", "read for each kept byte, shards as packed"),
        (r"thinned: ([\d.]+) bytes", "the same, 16 bins (`--materialize`)"),
        (r"at the keep rate\n([\d.]+)", "keep rate of the example"),
    ):
        (figure,) = re.findall(sentence, text)
        assert agrees(figure, measured[row]["on one core"]), sentence


def test_noise_is_as_measured() -> None:
    def rows(text: str) -> list[list[str]]:
        lines = [line.strip("|").split("|") for line in text.splitlines() if line[:1] == "|"]
        return [[cell.strip() for cell in cells] for cells in lines[2:]]

    measured: dict[tuple[str, str], list[str]] = {}
    for kind, noise, _, _, kept in rows((RESULTS / "curation_noise.md").read_text()):
        measured.setdefault((kind, noise), []).append(kept)
    stated = {
        (kind, noise): kept for kind, noise, *kept in rows(block("docs/curation.md", "noise"))
    }
    assert len(stated) == 8
    for key, (plain, floored) in stated.items():
        # Without noise the floor of one level stands in no row.
        assert measured[key] == [plain, floored] if key[1] != "0" else measured[key][0] == plain
