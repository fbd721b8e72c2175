"""The file of a suite of `pixio bench`: rows of recipes, whose results stand in one table.

    title: What the table is called.
    metrics: {abs_rel: min, delta1: max}  # columns, and which end is better (null: neither); a row
                                        # without one of them leaves it empty
    baselines: [constant, median_map]   # rows of what predicts without looking
    rows:
      random-init backbone:
        fit: depth/demo                  # a recipe; `validate` and `test` evaluate it untrained,
                                         # or with a `checkpoint: FILE`
        with: [with/finetune]            # overlays
        set: {model.backbone.weights: random}
        seeds: [0, 1, 2]
        data: nyuv2                      # its path is given by `--data nyuv2=DIR`
        reads_backbone: false            # `--backbones` leaves the row as it is
        published:                       # stand beside it, marked where protocols differ
        - {name: Pixio ViT-H, abs_rel: 0.1, source: "arXiv ..., table 1", comparable: "no: why"}
    data: {nyuv2: what it is}

A row's seeds set `seed_everything`, `data.seed` and `model.seed`, and stand for `{seed}` in what it
sets.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pixio_lightning.errors import UserError, nearest
from pixio_lightning.files.text import parse_yaml, read_text

_KEYS = {"title", "metrics", "baselines", "rows", "data"}
VERBS = ("fit", "validate", "test")
_ROW_KEYS = {*VERBS, "checkpoint", "with", "set", "seeds", "data", "published", "reads_backbone"}
SOURCE_WORDS = ("name", "source", "comparable")  # of a published figure


def find_suite(name: str) -> Path:
    """Return the suite at a path, or the one of a name that comes with the package, as `depth`.

    Raises:
        UserError: There is neither.
    """
    path, here = Path(name), Path(__file__).resolve()
    shipped = here.parents[2] / "_suites"  # in a wheel; a checkout keeps them beside src/
    shipped = shipped if shipped.is_dir() else here.parents[4] / "benchmarks"
    known = {suite.stem: suite for suite in sorted(shipped.glob("*.yaml"))}
    if path.is_file():
        return path
    if name in known:
        return known[name]
    beside = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
    hint = nearest(path.name, beside) or nearest(path.stem, known)
    raise UserError(
        f"no suite '{name}'{hint}; give a path, or of those that come with it {', '.join(known)}"
    )


def read_suite(path: Path) -> dict[str, Any]:
    """Read a suite.

    Raises:
        UserError: The file holds another key than a suite has.
    """
    text = read_text(path)
    try:
        suite = parse_yaml(text)
    except ValueError as error:
        raise UserError(f"suite '{path}' is not valid YAML: {error}") from None
    if not isinstance(suite, dict) or not isinstance(suite.get("rows"), dict):
        raise UserError(f"suite '{path}' has no rows; expected {', '.join(sorted(_KEYS))}")
    _check(suite, _KEYS, f"suite '{path}'")
    named = suite.get("baselines") or [], suite.get("metrics") or []
    if not all(isinstance(names, dict | list) for names in named) or not all(
        isinstance(name, str) for names in named for name in names
    ):
        raise UserError(f"suite '{path}': metrics and baselines are no lists of names")
    for metric, end in better_ends(suite).items():
        if end is not None and (not isinstance(end, str) or end not in ("min", "max")):
            raise UserError(
                f"suite '{path}': metric {metric} is {end!r}; expected min, max or null"
            )
    if not isinstance(suite.get("data") or {}, dict):
        raise UserError(f"suite '{path}': data is no table of names, each with what it is")
    for name, row in suite["rows"].items():
        where = f"suite '{path}', row {name}"
        _check_row(row, name, where)
        if "data" in row and row["data"] not in (suite.get("data") or {}):
            raise UserError(f"{where}: data {row['data']!r} is not among the suite's data")
    return suite


def _check_row(row: Any, name: Any, where: str) -> None:
    if not isinstance(name, str) or not isinstance(row, dict):
        raise UserError(f"{where}: expected a name, and below it {', '.join(sorted(_ROW_KEYS))}")
    _check(row, _ROW_KEYS, where)
    recipes = [row[verb] for verb in VERBS if verb in row]
    if len(recipes) != 1 or not isinstance(recipes[0], str):
        raise UserError(f"{where}: give fit or validate or test, a recipe")
    if "checkpoint" in row and (not isinstance(row["checkpoint"], str) or "fit" in row):
        raise UserError(f"{where}: checkpoint is the file that validate or test evaluates")
    if not isinstance(reads := row.get("reads_backbone", True), bool):
        raise UserError(f"{where}: reads_backbone is {reads!r}; expected true or false")
    if not isinstance(row.get("set", {}), dict):
        raise UserError(f"{where}: set is no table of keys with their values")
    overlays = row.get("with", [])
    if not isinstance(overlays, list) or not all(isinstance(name, str) for name in overlays):
        raise UserError(f"{where}: with is no list of overlays, such as [with/finetune]")
    _check_published(row.get("published", []), where)
    seeds = row.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        raise UserError(f"{where}: seeds is no list of whole numbers, such as [0, 1, 2]")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{where}: seeds is {seeds}, but one run would count twice: each once")


def _check_published(entries: Any, where: str) -> None:
    """Refuse figures of others that do not say whose they are, and whether they may be compared."""
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{where}: published is no list of tables")
    for entry in entries:
        said = [str(entry.get(word, "")) for word in SOURCE_WORDS]
        figures = {key: value for key, value in entry.items() if key not in SOURCE_WORDS}
        if (
            not all(said)
            or not (said[2] == "yes" or said[2].startswith("no: "))
            or not figures
            or not all(type(value) in (int, float) for value in figures.values())
        ):
            raise UserError(
                f"{where}: published has {entry}; expected name, source, comparable ('yes' or "
                "'no: WHY'), and figures by metric"
            )


def better_ends(suite: dict[str, Any]) -> dict[str, str | None]:
    """Return the columns of a suite, each with the end that is better, where it says so."""
    found = suite.get("metrics") or {}
    return found if isinstance(found, dict) else dict.fromkeys(found)


def columns_of(suite: dict[str, Any]) -> dict[str, str | None]:
    """Return the same for each of the suite's data, where its rows name any."""
    data = dict.fromkeys(row.get("data") for row in suite["rows"].values())
    ends = better_ends(suite)
    return {
        f"{name} {metric}" if name else metric: ends[metric] for name in data for metric in ends
    }


def _check(values: dict[str, Any], known: set[str], where: str) -> None:
    for key in values:
        if key not in known:
            raise UserError(f"{where}: there is no key {key}{nearest(key, known)}")
