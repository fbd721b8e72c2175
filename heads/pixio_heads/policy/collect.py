"""Demonstrations of scripted experts, and what experts and random actions reach; kept in the cache.

A folder of the cache holds a parquet for each episode, of a demonstration with its pictures
as PNG: what was killed goes on where it was, even in several processes, and what is there is not
played again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from pixio_heads.policy.demonstrations import Demonstration, png_frame
from pixio_heads.policy.rollout.environments import Environment
from pixio_heads.policy.rollout.play import Controller, Outcome, Trajectory
from pixio_heads.policy.rollout.pool import Pool
from pixio_lightning.data import digest_of
from pixio_lightning.errors import UserError
from pixio_lightning.files import default_cache, written_aside

VERSION = 2  # of how demonstrations are collected
# Experts that fail more often than this share are no experts.
_FAILURES = 0.5
_MORE = 1.05


def collect(
    environment: Environment,
    episodes: int,
    *,
    first_seed: int,
    noise: float,
    disturbance: float,
    after_success: int,
    processes: int,
    timeout: float,
) -> tuple[list[Demonstration], str]:
    """Return demonstrations of a task's expert, collected now where they are missing.

    Seeds count up from `first_seed`; an episode in which the expert fails is left out. One that
    breaks is played once more; broken again, it is named and counts as failed from then on, so that
    all processes and later calls learn from the same ones.

    Args:
        environment: The task.
        episodes: How many demonstrations.
        first_seed: Seed of the first.
        noise: Standard deviation of what is added to the executed actions; labels are without it.
        disturbance: Probability of random actions, see `play.play`.
        after_success: Steps that are kept after success.
        processes: Environments at once.
        timeout: Seconds that a step may take.

    Returns:
        The demonstrations in the order of their seeds, and a digest of them.

    Raises:
        UserError: The expert fails, or the task has none.
    """
    how = {"noise": noise, "disturbance": disturbance, "after_success": after_success}
    about = {"environment": environment.plain(), **how}
    digest = digest_of("demonstrations", VERSION, about)
    folder = default_cache() / "demonstrations" / f"{environment.task}-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "about.json").exists():
        with written_aside(folder / "about.json") as aside:
            aside.write_text(json.dumps(about, indent=1) + "\n")
    found: list[Path] = []
    with (
        Pool(environment, processes, timeout=timeout) as pool,
        tqdm(total=episodes, unit="demo", desc=environment.task, leave=False, delay=1) as bar,
    ):
        end = first_seed
        broken: dict[int, Trajectory] = {}
        while len(found) < episodes:
            # A few more than are missing, for the experts that fail.
            seeds = range(end, end + ceil(_MORE * (episodes - len(found))))
            end = seeds.stop
            bar.n = len(found)
            for _ in range(2):  # again what breaks, which need not be the episode's fault
                for seed, trajectory in _played(pool, folder, seeds, "expert", **how):
                    if trajectory.outcome.error:
                        broken[seed] = trajectory
                    bar.update(trajectory.outcome.success_any)
                if len(broken) > _FAILURES * (end - first_seed):
                    break  # it is not the episodes that are broken
            kept = {path: _kept(path) for path in map(partial(_file, folder), seeds)}
            found += [path for path, outcome in kept.items() if outcome and outcome.success_any]
            if len(found) < min(episodes, _FAILURES * (end - first_seed)):
                errors = [trajectory.outcome.error for trajectory in broken.values()]
                raise UserError(
                    f"the expert of {environment.task} succeeded in {len(found)} of "
                    f"{end - first_seed} episodes: "
                    + (errors[0] if errors else "it did not reach the goal in time")
                )
        for seed, trajectory in sorted(broken.items()):
            path = _file(folder, seed)
            if _kept(path) is None:
                print(
                    f"demonstration left out, broken twice: {trajectory.outcome.error} "
                    f"(remove {path}, and it is played again)",
                    flush=True,
                )
                _write(path, trajectory)
    demonstrations = [read(path) for path in found[:episodes]]
    return demonstrations, digest_of(digest, [demo.name for demo in demonstrations])


def _file(folder: Path, seed: int) -> Path:
    return folder / f"{seed:08d}.parquet"


def _played(
    pool: Pool, folder: Path, seeds: Sequence[int], controller: Controller, **how: Any
) -> Iterator[tuple[int, Trajectory]]:
    """Yield the episodes that are not kept yet, as they end; all that do not break are kept."""
    missing = [seed for seed in seeds if _kept(_file(folder, seed)) is None]
    for seed, trajectory in pool.play(missing, controller, **how):
        if not trajectory.outcome.error:
            _write(_file(folder, seed), trajectory)
        yield seed, trajectory


def _write(path: Path, trajectory: Trajectory) -> None:
    columns = {
        "image": pa.array(trajectory.images, pa.binary()),
        "proprio": pa.array(trajectory.proprio.tolist(), pa.list_(pa.float32())),
        "action": pa.array(trajectory.actions.tolist(), pa.list_(pa.float32())),
        "reward": trajectory.rewards,
        "success": trajectory.successes,
    }
    outcome = json.dumps(asdict(trajectory.outcome))
    table = pa.table(columns).replace_schema_metadata({"outcome": outcome})
    with written_aside(path) as aside:
        pq.write_table(table, aside, compression="none")


def _kept(path: Path) -> Outcome | None:
    """Return the outcome that was kept; None where there is none, or the file is damaged."""
    try:
        about = json.loads(pq.read_schema(path).metadata[b"outcome"])
        return Outcome(**{field.name: about[field.name] for field in fields(Outcome)})
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError):
        return None


def read(path: Path) -> Demonstration:
    """Read a collected demonstration.

    Raises:
        UserError: The file is damaged.
    """
    try:
        table = pq.read_table(path)
        rows = {
            name: np.array(table[name].to_pylist(), np.float32).reshape(len(table), -1)
            for name in ("proprio", "action")
        }
    except (OSError, pa.ArrowException, ValueError, KeyError):
        raise UserError(
            f"demonstration '{path}' of the cache is damaged: remove it, and it is collected again"
        ) from None
    frame = png_frame(table["image"].to_pylist())
    return Demonstration(path.stem, rows["proprio"], rows["action"], frame, int(path.stem))


def references(
    environment: Environment,
    seeds: Sequence[int],
    controller: Controller,
    *,
    processes: int,
    timeout: float,
) -> list[Outcome]:
    """Return what a controller reaches in the episodes of these seeds, played once and kept."""
    name = digest_of("references", VERSION, environment.plain(), controller)
    folder = default_cache() / "demonstrations" / f"{environment.task}-{controller}-{name}"
    known = {seed: _kept(_file(folder, seed)) for seed in seeds}
    missing = sum(outcome is None for outcome in known.values())
    with (
        Pool(environment, processes, images=False, timeout=timeout) as pool,
        tqdm(total=missing, unit="episode", desc=controller, leave=False, delay=1) as bar,
    ):
        # One that breaks is played again another time.
        for seed, trajectory in _played(pool, folder, seeds, controller):
            known[seed] = trajectory.outcome
            bar.update()
    return [outcome for seed in seeds if (outcome := known[seed])]
