"""Environments in processes of their own, one in each.

Two renderers in one process may overwrite each other's pictures, and numerical libraries that share
cores by threads are many times slower than one thread each. A process that is killed, raises or
hangs costs its episode and no other.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pixio_heads.policy.rollout import serving
from pixio_heads.policy.rollout.environments import Environment
from pixio_heads.policy.rollout.play import Controller, Outcome, Trajectory
from pixio_lightning.errors import UserError

# One thread in each process, and the renderer's too; set before anything is imported there.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LP_NUM_THREADS")
_GUARD = " (a script of your own needs `if __name__ == '__main__':` around what it runs)"
_STARTUP = 120.0  # seconds until a process has imported its simulator and made the environment

Act = Callable[[NDArray[np.uint8], NDArray[np.float32], NDArray[np.bool_]], NDArray[np.float32]]


class Run(NamedTuple):
    """An episode that a policy acted in: what came of it, and its pictures if they were kept."""

    outcome: Outcome
    frames: list[NDArray[np.uint8]]


class Pool:
    """Processes that each serve one environment.

    Args:
        environment: What they serve.
        count: How many.
        images: Whether pictures are drawn.
        timeout: Seconds that a step, or the beginning of an episode, may take; after them the
            process is replaced.
    """

    def __init__(
        self, environment: Environment, count: int, *, images: bool = True, timeout: float = 60.0
    ) -> None:
        self.environment, self.count, self.images = environment, count, images
        self.timeout = timeout
        # Not a fork of this process, whose threads and devices would come along.
        self._context = get_context("forkserver")
        # Imported once for all of them.
        self._context.set_forkserver_preload(
            ["pixio_heads.policy.rollout.serving", "pixio_heads.policy.tabletop"]
        )
        self._slots: list[tuple[Any, Connection]] = []
        self._ready = False

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes, which see that nobody asks them any more."""
        for _, connection in self._slots:
            connection.close()
        for process, _ in self._slots:
            process.join(5)
            process.kill()
        self._slots, self._ready = [], False

    # --- a policy in this process acts --------------------------------------------------------

    def run(self, seeds: Sequence[int], act: Act, *, keep_frames: int = 0) -> list[Run]:
        """Run episodes, as many at once as there are processes, all in step.

        Which row of a batch an episode has follows from the list of seeds alone, and a batch
        always has `count` rows: so a policy's rounding cannot differ from one run to another.

        Args:
            seeds: What the environments draw the episodes from.
            act: Called with images `(count, H, W, 3)`, proprioception `(count, P)` and whether an
                episode begins `(count,)`; returns actions `(count, A)`. Rows of ended episodes hold
                what was seen last.
            keep_frames: How many of the episodes, from the first, keep their pictures.
        """
        self._start()
        try:
            return self._run(seeds, act, keep_frames)
        except BaseException:  # answers are still on their way: nothing may read them
            self.close()
            raise

    def _run(self, seeds: Sequence[int], act: Act, keep_frames: int) -> list[Run]:
        runs: list[Run | None] = [None] * len(seeds)
        waiting = deque(enumerate(seeds))
        number: list[int | None] = [None] * self.count
        kept: dict[int, list[NDArray[np.uint8]]] = {i: [] for i in range(keep_frames)}
        seen: list[Any] = [None] * self.count
        fresh = np.zeros(self.count, bool)
        taken = [0] * self.count  # steps, to say where an episode broke
        while True:
            for slot in range(self.count):
                fresh[slot] = False
                if number[slot] is None and waiting:
                    number[slot], seed = waiting.popleft()
                    taken[slot], fresh[slot] = 0, True
                    self._send(slot, ("begin", seed))
            for slot, which in enumerate(number):
                if which is None:
                    continue
                answer = self._receive(slot)
                if isinstance(answer, str):
                    said = answer if answer.startswith("step ") else f"step {taken[slot]}: {answer}"
                    outcome = Outcome(steps=taken[slot], error=self._told(seeds[which], said))
                    runs[which], number[slot] = Run(outcome, kept.get(which, [])), None
                    continue
                seen[slot], ended = answer
                if which in kept:
                    kept[which].append(seen[slot]["image"])
                if ended is not None:
                    runs[which], number[slot] = Run(ended, kept.get(which, [])), None
            live = [slot for slot, which in enumerate(number) if which is not None]
            if not live:
                if not waiting:
                    return [run for run in runs if run is not None]
                continue
            rows = [seen[slot] or seen[live[0]] for slot in range(self.count)]
            images, proprio = (np.stack([row[name] for row in rows]) for name in serving.FIELDS)
            actions = act(images, proprio, fresh)
            for slot in live:
                taken[slot] += 1
                self._send(slot, ("step", actions[slot]))

    # --- a controller in the process acts -----------------------------------------------------

    def play(
        self, seeds: Sequence[int], controller: Controller, **how: Any
    ) -> Iterator[tuple[int, Trajectory]]:
        """Yield whole episodes with their seeds as they end, see `play.play`."""
        if not seeds:
            return
        self._start()
        try:
            yield from self._play(seeds, controller, how)
        except BaseException:  # answers are still on their way: nothing may read them
            self.close()
            raise

    def _play(
        self, seeds: Sequence[int], controller: Controller, how: dict[str, Any]
    ) -> Iterator[tuple[int, Trajectory]]:
        waiting = deque(seeds)
        busy: dict[Connection, tuple[int, int]] = {}
        idle = list(range(self.count))
        while waiting or busy:
            while idle and waiting:
                slot, seed = idle.pop(), waiting.popleft()
                self._send(slot, ("play", seed, controller, how))
                busy[self._slots[slot][1]] = slot, seed
            for connection in wait(list(busy)):  # where one hangs, the process ends itself
                slot, seed = busy.pop(connection)  # type: ignore[call-overload]
                answer = self._receive(slot)
                idle.append(slot)
                if isinstance(answer, str):
                    answer = Trajectory(Outcome(error=self._told(seed, answer)))
                yield seed, answer

    # --- processes ----------------------------------------------------------------------------

    def _start(self) -> None:
        if self._ready:
            return
        self._slots = [self._new() for _ in range(self.count)]
        for slot in range(self.count):
            self._greet(slot)
        self._ready = True

    def _new(self) -> tuple[Any, Connection]:
        here, there = self._context.Pipe()
        before = {name: os.environ.get(name) for name in _THREADS}
        os.environ |= dict.fromkeys(_THREADS, "1")
        try:
            process = self._context.Process(
                target=serving.serve,
                args=(there, self.environment, self.images, self.timeout),
                daemon=True,
            )
            process.start()
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
        there.close()
        return process, here

    def _greet(self, slot: int) -> None:
        """Wait until the environment is made.

        Raises:
            UserError: It cannot be.
        """
        answer = self._answer(slot, _STARTUP)
        if isinstance(answer, str):
            self.close()
            raise UserError(answer)

    def _send(self, slot: int, command: tuple[Any, ...]) -> None:
        with suppress(OSError):  # a dead process: found where its answer is waited for
            self._slots[slot][1].send(command)

    def _receive(self, slot: int) -> Any:
        """Return an answer, or as a text why there is none; then another process takes over."""
        answer = self._answer(slot, self.timeout)
        if isinstance(answer, str):  # of a broken environment nothing is used again
            process, connection = self._slots[slot]
            process.kill()
            connection.close()
            self._slots[slot] = self._new()
            self._greet(slot)
        return answer

    def _answer(self, slot: int, timeout: float) -> Any:
        process, connection = self._slots[slot]
        try:
            if connection.poll(timeout):
                return connection.recv()
            return f"no answer in {timeout:g} s"
        except (EOFError, OSError):
            process.join(5)
            if process.exitcode == -signal.SIGALRM:
                return f"no answer in {timeout:g} s"
            return f"its process ended with code {process.exitcode}{_GUARD * (not self._ready)}"

    def _told(self, seed: int, why: str) -> str:
        return f"{self.environment.task}, seed {seed}, {why}"
