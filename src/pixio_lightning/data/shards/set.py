"""The shards of a run: opened, held out, curated, and where all processes stand in them."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from pixio_lightning.data.batches import Bad
from pixio_lightning.data.shards.format import Encoded, ShardIndex, read_group
from pixio_lightning.data.shards.held_out import held_out_groups, refuse_trained_on
from pixio_lightning.data.shards.index import open_index
from pixio_lightning.data.shards.keep_rule import Curation, KeepRule
from pixio_lightning.data.shards.rule_of_run import rule_of
from pixio_lightning.data.shards.stream import (
    BLOCK_ROWS,
    BlockOrder,
    ShardImages,
    ShardLoader,
    Tally,
)
from pixio_lightning.data.sources import digest_of
from pixio_lightning.errors import UserError
from pixio_lightning.files import write_text

_PER_BLOCK = "groups per block"  # in a layout


class ShardSource:
    """Some groups of shards as a numbered list of images, named by their place.

    Args:
        index: The shards.
        groups: Which groups, in order.
        limit: At most so many images.
    """

    def __init__(self, index: ShardIndex, groups: NDArray[np.int64], *, limit: int) -> None:
        self.index, self.groups = index, groups
        self.ends: NDArray[np.int64] = np.cumsum(index.group_rows[groups], dtype=np.int64)
        self.limit = limit
        # A group is read as a whole, and its images are asked for one after the other.
        self._last: tuple[int, list[Encoded]] = (-1, [])

    def __len__(self) -> int:
        return min(int(self.ends[-1]) if len(self.ends) else 0, self.limit)

    def place(self, index: int) -> tuple[int, int]:
        """Return the group of an image, and its row there."""
        at = int(np.searchsorted(self.ends, index, side="right"))
        return int(self.groups[at]), index - (int(self.ends[at - 1]) if at else 0)

    def encoded(self, index: int) -> Encoded:
        """Return an image, or why it cannot be had."""
        group, row = self.place(index)
        if self._last[0] != group:
            self._last = group, read_group(self.index, group)
        return self._last[1][row]

    def name(self, index: int) -> str:
        group, row = self.place(index)
        shard, local = self.index.locate(group)
        return f"{self.index.shards[shard].path}#{local}:{row}"

    def read(self, index: int) -> bytes:
        image = self.encoded(index)
        if image.reason:
            raise OSError(0, image.reason)
        return image.data

    def label(self, index: int) -> str | None:
        return None


class ShardSet:
    """The shards a run trains on.

    Args:
        index: Those to train on.
        val_path: Shards to validate on; None takes those of `val_split` beside the others, or holds
            out groups.
        val_split: Which of them to validate on, where their names tell.
        val_images: Held-out images, at most.
        curation: Which images to train on.
        seed: Seed of the order and of what is kept.
        look: Whether to look at each shard, see `open_index`, and whether one is held out and
            trained on.
        rule: What another process has found of the scores; None looks at each of their files.

    Attributes:
        rule: By which images are kept; None keeps all.

    Raises:
        UserError: There are no shards, or too few groups; some of them are trained on and held out;
            or the scores do not fit.
    """

    def __init__(
        self,
        index: ShardIndex,
        *,
        val_path: str | None,
        val_split: str | None = None,
        val_images: int,
        curation: Curation,
        seed: int,
        look: bool = True,
        rule: KeepRule | None = None,
    ) -> None:
        self.index = index
        if not self.index.n_groups:
            reasons = "; ".join(": ".join(bad) for bad in index.damaged[:3]) or "empty shards"
            raise UserError(f"data.path '{index.root}' holds no image ({reasons})")
        self.seed = seed
        every = np.arange(self.index.n_groups)
        if val_path is not None or val_split is not None:
            apart = open_index(
                val_path or index.root,
                split=val_split,
                column=index.column,
                key="data.val_path" if val_path else "data.path",
                split_key="data.val_split",
                look=look,
            )
            if look:
                given = f"path '{val_path}'" if val_path else f"split '{val_split}'"
                refuse_trained_on(index, apart, f"data.val_{given}")
            self.held_out = ShardSource(apart, np.arange(apart.n_groups), limit=val_images)
            train = every
        else:
            chosen = held_out_groups(self.index, limit=val_images)
            self.held_out = ShardSource(self.index, chosen, limit=val_images)
            train = np.setdiff1d(every, chosen)
        if not len(self.held_out):
            raise UserError(f"data.val_path '{val_path}' holds no image to validate on")
        self.rows = int(self.index.group_rows[train].sum(dtype=np.int64))  # in a pass
        self.order = BlockOrder.of(self.index, train, rows=BLOCK_ROWS, seed=seed)
        self.loader: ShardLoader | None = None
        self.stored: dict[str, Any] | None = None
        self.live: dict[str, Any] = {}
        # Of every shard, how many of its images this process met, and how many of them it kept.
        self.tally = np.zeros((len(index.shards), 2), np.int64)
        self.rule = rule
        if curation.scores is not None and rule is None:
            self.rule = rule_of(self.index, curation, seed)

    @property
    def digest(self) -> str:
        """Hash of what the order follows from: shards and groups, the rule; not where they lie."""
        shards = hashlib.blake2b(digest_size=8)
        # Without their sha256, which only those have that lie beside an index.
        for shard in self.index.shards:
            shards.update(f"{shard.path} {shard.size}\n".encode())
            shards.update(shard.group_rows.tobytes())
        groups = hashlib.blake2b(self.order.groups.tobytes(), digest_size=8).hexdigest()
        # Rounded, as processors may differ in its last digits.
        constant = f"{self.rule.c:.6g}" if self.rule else ""
        return digest_of(shards.hexdigest(), groups, constant)

    # --- the loader, and where it stands ------------------------------------------------------

    def open(
        self,
        images: dict[str, Any],
        report: Callable[[list[Bad], int], None],
        *,
        batches: int,
        arguments: dict[str, Any],
        restart_pass: bool,
    ) -> ShardLoader:
        """Return the training loader, where the checkpoint left it.

        Args:
            images: Arguments of `ShardImages`.
            report: Called with bad images.
            batches: Batches in a virtual epoch.
            arguments: Of the DataLoader.
            restart_pass: Begin the next pass where the layout has changed.
        """
        data = ShardImages(self.index, self.order, self.rule, seed=self.seed, **images)
        loader = ShardLoader(data, report, tally=self.count, batches=batches, arguments=arguments)
        self.loader = loader
        self.live = live = self.layout(images["world_size"], loader.readers)
        if self.stored is not None:
            _check_place(self.stored)
            self._go_on_counting(self.stored.get("tally"))
            states = self.stored["states"]
            if self.stored["layout"] == live:
                loader.go_to(states[images["rank"]])
            elif restart_pass:
                first = next_pass(
                    states,
                    before=blocks_of_layout(self.stored["layout"]),
                    now=self.order.blocks_per_pass,
                )
                cursors = data.first_cursors(loader.readers, block=first)
                loader.go_to({"cursors": cursors, "turn": 0})
            else:
                raise UserError(other_layout(self.stored["layout"], live))
        return loader

    def layout(self, world_size: int, workers: int) -> dict[str, Any]:
        """Return what a place in the stream depends on, as plain data."""
        return {
            "processes": world_size,
            "workers": workers,
            "seed": self.seed,
            "index": self.index.digest,
            _PER_BLOCK: self.order.per_block,
            "groups": len(self.order.groups),
            "curation": self.rule.digest if self.rule else "",
        }

    def state(self) -> dict[str, Any]:
        """Return where the readers of all processes stand; every process must call it.

        With a rule also what this process has met and kept: the first one's is what is saved, and
        it alone reports it.
        """
        assert self.loader is not None
        own = self.loader.state()
        states: list[Any] = [own]
        if dist.is_available() and dist.is_initialized():
            states = [None] * dist.get_world_size()
            dist.all_gather_object(states, own)
        tally = {} if self.rule is None else {"tally": torch.from_numpy(self.tally.copy())}
        return {"layout": self.live, "states": states} | tally

    # --- the keep rate ------------------------------------------------------------------------

    def count(self, tallies: list[Tally]) -> None:
        """Add up what was met and kept, by shard."""
        for tally in tallies:
            self.tally[tally.shard] += tally.drawn, tally.kept

    def _go_on_counting(self, stored: Any) -> None:
        """Take the counts of a checkpoint; of other shards, or where it has none, begin anew."""
        if isinstance(stored, torch.Tensor) and stored.dtype == torch.int64:
            found = stored.cpu().numpy()
            if found.shape == self.tally.shape and (found >= 0).all():
                self.tally = found.copy()

    @property
    def keep_rate(self) -> float | None:
        """Share of the images met so far that was kept; None without a rule."""
        met, kept = self.tally.sum(0).tolist()
        return None if self.rule is None or not met else kept / met

    def write_keep_rates(self, folder: Path) -> None:
        """Write the keep rate of every shard met so far."""
        if self.rule is None:
            return
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["shard", "met", "kept", "rate"])
        for shard, (met, kept) in zip(self.index.shards, self.tally.tolist(), strict=True):
            if met:
                table.writerow([shard.path, met, kept, f"{kept / met:.4f}"])
        write_text(folder / "keep_rates.csv", text.getvalue())


def _check_place(stored: Any) -> None:
    """Refuse what a checkpoint says of the place in the shards where it is no place.

    Raises:
        UserError: It is none, or not of as many readers as it says.
    """

    layout: Any = stored.get("layout") if isinstance(stored, dict) else None
    states: Any = stored.get("states") if isinstance(stored, dict) else None

    def is_count(value: Any) -> bool:
        return isinstance(value, int) and 0 <= value < 1 << 53

    def is_state(state: Any) -> bool:
        cursors = state.get("cursors") if isinstance(state, dict) else None
        return (
            isinstance(cursors, list)
            and len(cursors) == max(1, layout["workers"])
            and all(isinstance(c, list) and len(c) == 2 and all(map(is_count, c)) for c in cursors)
            and is_count(state.get("turn"))
        )

    if not (
        isinstance(layout, dict)
        and all(is_count(layout.get(name)) for name in ("processes", "workers"))
        and all(is_count(layout.get(name)) and layout[name] for name in ("groups", _PER_BLOCK))
        and isinstance(states, list)
        and len(states) == layout["processes"]
        and all(map(is_state, states))
    ):
        raise UserError(
            "the checkpoint does not say where its readers stand in the shards: it is damaged, or "
            "no run on shards wrote it; start from its weights instead (model.backbone.weights)"
        )


def blocks_of_layout(layout: dict[str, Any]) -> int:
    """Return how many blocks a pass has in a layout."""
    return -(-layout["groups"] // layout[_PER_BLOCK])


def next_pass(states: list[dict[str, Any]], *, before: int, now: int) -> int:
    """Return the first block of the first pass that no reader has begun.

    Args:
        states: Where the readers stood.
        before: Blocks that a pass had then.
        now: Blocks that it has.
    """
    furthest = max(block for state in states for block, _ in state["cursors"])
    return (furthest // before + 1) * now


def other_layout(stored: dict[str, Any], live: dict[str, Any]) -> str:
    """Say what differs between two layouts, and what to do."""
    changed = [
        f"{name} {stored.get(name)} then, {value} now"
        for name, value in live.items()
        if stored.get(name) != value
    ]
    return (
        f"the checkpoint's place in the shards is of another layout ({'; '.join(changed)}): go on "
        "with the same, or set data.restart_pass true to begin the next pass with the new one"
    )
