"""What runs in the process of an environment."""

from __future__ import annotations

import signal
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from pixio_heads.policy.rollout.environments import Environment
from pixio_heads.policy.rollout.play import BrokenEpisode, Episode, Trajectory, play
from pixio_lightning.errors import UserError

FIELDS = ("image", "proprio")


def serve(connection: Connection, environment: Environment, images: bool, timeout: float) -> None:
    """Answer commands until the other end is closed; what goes wrong is answered as a text.

    Where it plays by itself, and a step or the episode's beginning takes longer than `timeout`
    seconds, SIGALRM ends it.
    """
    # Signals go to the whole job: the parent saves its work, and then closes the other end.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    try:
        try:
            env = environment.make(images=images)
        except Exception as error:
            known = isinstance(error, UserError)
            connection.send(str(error) if known else f"{type(error).__name__}: {error}")
            return
        connection.send(None)
        episode = None
        while True:
            command, *arguments = connection.recv()
            try:
                if command == "begin":
                    episode = Episode(env, environment, arguments[0])
                    connection.send((_seen(episode.observation), None))
                elif command == "step":
                    assert episode is not None
                    episode.step(arguments[0])
                    ended = episode.outcome if episode.ended else None
                    connection.send((_seen(episode.observation), ended))
                else:
                    connection.send(_played(env, environment, timeout, *arguments))
            except Exception as error:
                known = isinstance(error, BrokenEpisode)
                connection.send(str(error) if known else f"{type(error).__name__}: {error}")
    except (EOFError, ConnectionError):
        pass
    finally:
        # Renderers that are left to the interpreter's exit print tracebacks.
        if "env" in locals():
            env.close()


def _played(
    env: Any, environment: Environment, timeout: float, seed: int, controller: Any, how: Any
) -> Trajectory:
    def watch() -> None:
        signal.setitimer(signal.ITIMER_REAL, timeout)

    watch()  # what begins an episode may hang as well
    try:
        return play(env, environment, seed, controller, before_step=watch, **how)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _seen(observation: dict[str, Any]) -> dict[str, Any]:
    return {
        "image": np.ascontiguousarray(observation["image"]),
        "proprio": np.asarray(observation["proprio"], np.float32),
    }
