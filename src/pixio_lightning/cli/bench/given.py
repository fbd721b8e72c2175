"""What a command line adds to a suite: where its data lie, and the backbones it is run over."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pixio_lightning.cli import recipes
from pixio_lightning.cli.options import parse_options
from pixio_lightning.errors import UserError, nearest
from pixio_lightning.files import expanded

LEFT_OUT = "none"
_FOLDER = "backbone/"  # of the overlays that name a backbone
# Which backbone it is; all else that a row says of it, as how much of it is tuned, is of the row.
_NAMING = ("weights", "name", "model_args")


def of_all_rows(words: list[str]) -> tuple[list[str], bool]:
    """Return the words that are added to every run, and whether all rows are run anew.

    Raises:
        UserError: One of them is no word of a suite.
    """
    options = parse_options(words)
    if options.ckpt_path or options.untrained:
        raise UserError(
            "--ckpt_path is of one run, not of pixio bench: leave it out; a row says by its own "
            "`checkpoint` what it evaluates"
        )
    return [word for word in words if word != "--fresh"], options.fresh


def read_places(words: Iterable[str]) -> dict[str, str]:
    """Return the places of `NAME=PATH` words by name.

    Raises:
        UserError: A word is not of this form.
    """
    found = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not (name and equals and path):
            raise UserError(f"--data is '{word}', but expected NAME=PATH, as nyuv2=/data/nyuv2")
        found[name] = expanded(path)
    return found


def with_data(suite: dict[str, Any], places: dict[str, str]) -> dict[str, Any]:
    """Return a suite whose rows have the path of their data; rows left out are gone.

    Args:
        suite: Of which a row may name its data, and `data` says what they are.
        places: Paths by these names; `none` leaves the rows with such data out.

    Raises:
        UserError: A name is unknown, or paths are not given or do not exist: all of them are named.
    """
    about, rows = suite.get("data") or {}, suite["rows"]
    for name in places:
        if name not in about:
            known = ", ".join(about) or "none"
            raise UserError(f"--data {name}: the suite has {known}{nearest(name, about)}")
    wanted = list(dict.fromkeys(row["data"] for row in rows.values() if "data" in row))
    missing = [f"--data {n}=PATH ({about[n]})" for n in wanted if n not in places]
    lost = [
        f"{name}={places[name]}"
        for name in wanted
        if name in places and places[name] != LEFT_OUT and not Path(places[name]).exists()
    ]
    if missing or lost:
        told = [f"not given: {'; '.join(missing)}"] if missing else []
        told += [f"not there: {', '.join(lost)}"] if lost else []
        raise UserError(
            f"data of the suite are {'. They are '.join(told)}. --data NAME={LEFT_OUT} leaves the "
            "rows of one out"
        )
    kept = {}
    for name, row in rows.items():
        if "data" not in row:
            kept[name] = row
        elif (path := places[row["data"]]) != LEFT_OUT:
            kept[name] = row | {"set": row.get("set", {}) | {"data.path": path}}
    if not kept:
        raise UserError("every row of the suite is left out: give the data of one")
    return suite | {"rows": kept}


def over_backbones(suite: dict[str, Any], backbones: list[str]) -> dict[str, Any]:
    """Return a suite with a group of rows for each backbone.

    Which backbone a row is of is taken out. Rows that are equal then become one, with the seeds and
    the published figures of all, and are named after their recipe with the overlays and settings
    that are left, as their names may tell of the backbone that was there. Rows that evaluate a
    checkpoint, or read no backbone, stay as they are; the suite's `notes` name them.

    Args:
        suite: Any.
        backbones: Overlays `backbone/NAME`, with or without the folder, or weights, in which
            `{seed}` stands for a row's seed.

    Raises:
        UserError: One stands there twice, or is none of both; or no row takes a backbone.
    """
    if len(set(backbones)) < len(backbones) or not all(backbones):
        raise UserError(f"--backbones is '{','.join(backbones)}', but expected names, each once")
    groups: dict[str, dict[str, Any]] = {}
    every = suite["rows"]
    kinds = {
        "evaluate a checkpoint": [n for n, r in every.items() if "checkpoint" in r],
        "read no backbone": [n for n, r in every.items() if not r.get("reads_backbone", True)],
    }
    kept = {name: every[name] for names in kinds.values() for name in names}
    told = "; ".join(f"those that {do}: {', '.join(names)}" for do, names in kinds.items() if names)
    if len(kept) == len(every):
        raise UserError(f"--backbones: no row of the suite takes one ({told}); leave it out")
    for name, row in ((n, r) for n, r in every.items() if n not in kept):
        settings = row.get("set", {})
        free = _without_backbone(settings)
        overlays = [o for o in row.get("with", []) if not o.startswith(_FOLDER)]
        bare = row | {"set": free, "with": overlays}
        own = free != settings or overlays != row.get("with", [])
        label = _label(bare) if own else name
        for other, known in groups.items():
            if _plain(known) == _plain(bare):
                label = other
        if label in groups and _plain(groups[label]) != _plain(bare):  # a row is called like that
            label = f"{label} ({name})"
        known = groups.setdefault(label, bare)
        for key in ("seeds", "published"):
            there = known.get(key, [])
            if more := [value for value in row.get(key, []) if value not in there]:
                known[key] = [*there, *more]
    rows = {}
    known_overlays = [r.name for r in recipes.all_recipes() if r.name.startswith(_FOLDER)]
    for label, row in groups.items():
        for backbone in backbones:
            overlay = backbone if backbone.startswith(_FOLDER) else _FOLDER + backbone
            if overlay in known_overlays:
                changed: dict[str, Any] = {"with": [*row["with"], overlay]}
            elif backbone.startswith(_FOLDER):
                raise UserError(f"no backbone '{backbone}'{nearest(backbone, known_overlays)}")
            else:
                changed = {"set": row["set"] | {"model.backbone.weights": backbone}}
            one = f"{label}, {backbone}" if len(groups) > 1 else backbone
            rows[one] = row | changed | {"group": label}
            if backbone != backbones[-1]:  # once for each group, behind its rows
                rows[one].pop("published", None)
    notes = [f"--backbones leaves rows as they are, {told}"] if kept else []
    return suite | {"rows": rows | kept, "notes": notes}


def _without_backbone(settings: dict[str, Any]) -> dict[str, Any]:
    """Return what a row sets, without what says which backbone it is."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if key == "model.backbone" and isinstance(value, dict):
            found |= {f"{key}.{k}": v for k, v in value.items() if k not in _NAMING}
        elif not key.startswith(tuple(f"model.backbone.{name}" for name in _NAMING)):
            found[key] = value
    return found


def _label(row: dict[str, Any]) -> str:
    """Name a row after all that tells it from others: recipe, overlays, settings and data."""
    recipe = next(row[verb] for verb in ("fit", "validate", "test") if verb in row)
    data = [f"data {row['data']}"] if "data" in row else []  # of which the path is told elsewhere
    told = {k: v for k, v in row["set"].items() if not (data and k == "data.path")}
    settings = [f"{key.removeprefix('model.')} {value}" for key, value in told.items()]
    return ", ".join([" ".join([recipe, *row["with"]]), *settings, *data])


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in ("published", "seeds")}
