"""PolicyData: demonstrations to learn from, and episodes of a simulator to be judged in."""

from __future__ import annotations

import math
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from pixio_heads.policy import collect, gym
from pixio_heads.policy.demonstrations import Demonstration, DemonstrationSamples
from pixio_heads.policy.episodes import EpisodeSamples, Start
from pixio_heads.policy.rollout.environments import SHAPES, Environment, versions_of
from pixio_heads.policy.rollout.options import options_of
from pixio_heads.policy.rollout.play import Outcome
from pixio_lightning.data import (
    HeldOutSamples,
    SampleData,
    Samples,
    TrainingSamples,
    digest_of,
    existing_folder,
)
from pixio_lightning.errors import UserError, at_least, at_least_1, one_of

TABLETOP = {"reach": 40, "push": 80, "pick_place": 80}  # tasks, and steps of an episode
METAWORLD = {  # it goes no further than that
    name: 500
    for name in (
        *("assembly-v3", "bin-picking-v3", "button-press-topdown-v3"),
        *("drawer-open-v3", "hammer-v3"),
    )
}
_LONGEST = 1000  # steps of an episode that nothing else ends
_SIMULATED = {"scenes": "tabletop", "metaworld": "metaworld", "gym": "gym"}
_OTHERS = re.compile(r"-v\d+$|^ID$")  # what the other simulators call a task
# Seeds of demonstrations count up from here, and those of evaluations from there.
_DEMONSTRATIONS = 10_000_000
_EVALUATIONS = {"val": 20_000_000, "test": 30_000_000, "predict": 20_000_000}
# The splits that a stage of the trainer reads.
_READ = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}
_TIMEOUT = 60.0  # seconds a simulator may take for a step where no policy says how many


class PolicyData(SampleData):
    """Demonstrations, and the episodes in which a policy that imitates them is judged.

    A training sample is a history of frames, the robot's own state and the action that followed.
    Demonstrations of a simulator's scripted expert are collected on first use and kept. Where the
    demonstrations are files without a simulator, the last tenth of all of them is held out, however
    many are learned from, and the policy is judged by the actions it would have taken.

    Args:
        source: `scenes`, the table top that is built in; `metaworld`; `gym`, any environment that
            gymnasium knows by its id, with demonstrations at `path`; `lerobot`, a data set folder;
            `cortexbench`, pickles of CortexBench.
        path: Folder of the demonstrations, in the LeRobot layout, or file of CortexBench.
        task: Of the table top `reach`, `push` or `pick_place`; of Meta-World as `drawer-open-v3`;
            of gymnasium the environment's id.
        options: What else the environment takes: `difficulty` of the table top; `camera` and
            `shadows` of Meta-World; of gymnasium `image` and `proprio`, keys of what is observed,
            and whatever `gymnasium.make` takes.
        demonstrations: How many to learn from.
        noise: Standard deviation of what is added to the actions that an expert executes; labels
            are without it.
        disturbance: Probability, at every step of an expert, that a few random actions are executed
            from there on, from which it recovers.
        after_success: Steps of a demonstration that are kept after the task is done.
        history: Frames that the policy sees, the last one now.
        image_size: Side of the pictures in pixels.
        horizon: Steps after which an episode ends, no more than the simulator has; None takes the
            task's own (of gymnasium `max_episode_steps` of the options, if given), or 1000 where an
            environment of gymnasium has none.
        stop_at_success: Whether it ends when the task is done.
        episodes: Evaluation episodes from starts of their own.
        demonstration_starts: And from the starts of demonstrations, reported apart.
        processes: Environments that run at once, each in a process of its own.
        camera: Of a LeRobot data set with several cameras, the one to look through.
        trust_pickle: Read the arrays in a pickle of `cortexbench`; nothing else in it is run.
        loading: Of every data module: see `SampleData`.
    """

    sources = ("scenes", "metaworld", "gym", "lerobot", "cortexbench")
    made = ("scenes", "metaworld")
    incidental = ("seed", "processes", "episodes", "demonstration_starts", "trust_pickle")

    def __init__(
        self,
        source: str = "scenes",
        path: str | None = None,
        *,
        task: str = "reach",
        options: dict[str, Any] | None = None,
        demonstrations: int = 25,
        noise: float = 0.1,
        disturbance: float = 0.0,
        after_success: int = 5,
        history: int = 3,
        image_size: int = 64,
        horizon: int | None = None,
        stop_at_success: bool = True,
        episodes: int = 50,
        demonstration_starts: int = 0,
        processes: int = 4,
        camera: str | None = None,
        trust_pickle: bool = False,
        **loading: Any,
    ) -> None:
        super().__init__(source, path, **loading)
        at_least_1(**{"data.demonstrations": demonstrations, "data.history": history})
        at_least_1(**{"data.episodes": episodes, "data.processes": processes})
        at_least_1(**{"data.horizon": horizon})
        at_least(16 if source == "scenes" else 1, **{"data.image_size": image_size})
        at_least(0, **{"data.demonstration_starts": demonstration_starts})
        at_least(0, **{"data.after_success": after_success})
        if not 0 <= noise < math.inf:
            raise UserError(f"data.noise is {noise:g}, but expected a deviation, 0 or more")
        if not 0 <= disturbance <= 1:
            raise UserError(
                f"data.disturbance is {disturbance:g}, but expected a probability, 0 to 1"
            )
        if demonstration_starts > demonstrations:
            raise UserError(
                f"data.demonstration_starts is {demonstration_starts}, but there are only "
                f"{demonstrations} data.demonstrations"
            )
        self.read_by(
            "metaworld",
            noise=noise,
            disturbance=disturbance,
            after_success=after_success,
            demonstration_starts=demonstration_starts,
        )
        self.read_by("metaworld", "gym", task=task, options=options, horizon=horizon)
        played = {"stop_at_success": stop_at_success, "episodes": episodes, "processes": processes}
        self.read_by("metaworld", "gym", **played)
        if source == "metaworld" and camera is not None:
            raise UserError(
                f"data.camera is {camera}, but data.source is metaworld, whose camera is "
                "data.options.camera: set that"
            )
        self.read_by("lerobot", "gym", camera=camera)
        self.read_by("cortexbench", trust_pickle=trust_pickle)
        self.task, self.options = task, options or {}
        self.noise, self.disturbance, self.after_success = noise, disturbance, after_success
        self.demonstrations, self.history, self.image_size = demonstrations, history, image_size
        self.episodes, self.demonstration_starts = episodes, demonstration_starts
        self.processes, self.camera, self.trust_pickle = processes, camera, trust_pickle
        if source == "scenes" and task not in TABLETOP and _OTHERS.search(task):
            # An overlay puts the built-in world in place of a recipe's simulator.
            print(f"data.source is scenes, which have no task {task}: taking reach", flush=True)
            self.task = task = "reach"
            self.options = {}
        known = {"scenes": TABLETOP, "metaworld": METAWORLD}.get(source, {})
        if known:
            one_of("data.task", task, known)
        self._environment = None
        if source in _SIMULATED:
            kind = _SIMULATED[source]
            options = options_of(kind, self.options)
            ends, hint = known.get(task), ""
            if kind == "gym":
                with suppress(UserError):  # told as soon as it is made
                    ends = gym.longest(task, options)
                hint = f": set data.options.max_episode_steps to {horizon}"
            steps = horizon or ends or _LONGEST
            if kind != "tabletop" and steps > (ends or steps):
                name = task if kind == "gym" else "Meta-World"
                raise UserError(
                    f"data.horizon is {steps}, but {name} ends after {ends} steps{hint}"
                )
            versions = versions_of(kind, task)
            self._environment = Environment(
                kind, task, image_size, steps, stop_at_success, options, versions
            )
        self._read: tuple[list[Demonstration], str] | None = None

    # --- what a head is told ------------------------------------------------------------------

    @property
    def environment(self) -> dict[str, Any]:
        """Where episodes are played, as plain data; empty without a simulator."""
        return self._environment.plain() if self._environment else {}

    @property
    def proprio_dim(self) -> int:
        """Numbers that the robot knows of itself."""
        return self._shape()[0]

    @property
    def action_dim(self) -> int:
        """Parts of an action."""
        return self._shape()[1]

    def _shape(self) -> tuple[int, int]:
        # Known without a demonstration, so that a recipe is checked before any is collected.
        if self._environment is not None and self._environment.kind in SHAPES:
            return SHAPES[self._environment.kind]
        first = self._demonstrations()[0][0]
        return first.proprio.shape[1], first.actions.shape[1]

    @property
    def dataset(self) -> str:
        """What records call the data that a policy is judged by."""
        if self._environment is None:
            held_out = f"{len(self._parts()[1])} demonstrations held out"
            return f"{self.source} {self.path}, {held_out}; {self._pictures()}"
        starts = f"{self.episodes} episodes"
        if self.demonstration_starts:
            starts += f", {self.demonstration_starts} from starts of demonstrations ({self._how})"
        return f"{self._environment}; {starts}"

    @property
    def learned_from(self) -> str:
        """What records call the demonstrations that a policy learns from here."""
        if self._environment is None:
            number = len(self._parts()[0])
            return f"{number} demonstrations of {self.source} {self.path}, {self._pictures()}"
        if self.source == "gym":  # whose files may hold fewer than are asked for
            number = min(self.demonstrations, len(self._demonstrations()[0]))
            return f"{number} demonstrations of {self.path}, {self._pictures()}"
        how = f"{self._how}, {self.after_success} steps after success"
        return f"{self.demonstrations} demonstrations of {self._environment} ({how})"

    @property
    def _how(self) -> str:
        return f"noise {self.noise:g}, disturbance {self.disturbance:g}"

    def _pictures(self) -> str:
        """Return which pictures of files are looked at, and how large, for records."""
        size = f"{self.image_size} px"
        if self.source == "cortexbench":
            return size
        from pixio_heads.policy import lerobot

        folder = existing_folder(self.path or "", key="data.path")
        return f"{lerobot.read_layout(folder).camera(self.camera)}, {size}"

    # --- samples ------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Collect what a simulator gives, once, in one process."""
        if self._environment is None:
            return
        stage = "fit" if self.trainer is None else self.trainer.state.fn.value
        for split in _READ[stage]:
            self.samples_of(split)
        if stage in ("validate", "test") and not self._of_policy("data_info", {}):
            self.samples_of("train")  # a policy that no checkpoint brought takes statistics of it

    def _of_policy(self, name: str, default: Any) -> Any:
        """Return an attribute of the policy that is trained or judged with the data."""
        module = None if self.trainer is None else self.trainer.lightning_module
        return getattr(module, name, default)

    def training_set(self) -> TrainingSamples:
        """Return the training samples; no picture is read for a policy that does not look."""
        samples = super().training_set()
        samples.frames = samples.frames if self._of_policy("looks", True) else None
        return samples

    def evaluation_set(self, stage: str) -> HeldOutSamples:
        """Return the samples of a stage, in the same way."""
        samples = super().evaluation_set(stage)
        samples.frames = samples.frames if self._of_policy("looks", True) else None
        return samples

    def part_of(self, stage: str) -> str:
        """Return the split that a stage reads: a simulator has episodes of its own for each."""
        return stage if self._environment is not None else super().part_of(stage)

    def open(self, split: str) -> Samples:
        """Return the steps of the demonstrations, or the episodes to evaluate in."""
        played = split != "train" and self._environment is not None
        unread = played and self.source != "gym" and not self.demonstration_starts
        demonstrations, digest = ([], "") if unread else self._demonstrations()
        if split == "train" or self._environment is None:
            chosen, part = demonstrations, split
            if self._environment is None and split == "predict":
                chosen = demonstrations[: self.demonstrations]
            elif self._environment is None:
                chosen = self._parts()[split != "train"]
                if len(demonstrations) < 2:
                    raise UserError(
                        f"data.path '{self.path}' has one demonstration: expected two at least, "
                        "one to learn from and one that is held out"
                    )
                part = f"{'train' if split == 'train' else 'val'}{len(chosen)}"
            return DemonstrationSamples(
                chosen, history=self.history, size=self.image_size, digest=f"{digest}{part}"
            )
        if self.source == "gym":
            self._refuse_others(demonstrations[0])
        first = _EVALUATIONS[split]
        fresh = list(range(first, first + self.episodes))
        known = [demo.seed for demo in demonstrations if demo.seed is not None]
        again = known[: self.demonstration_starts]
        outcomes = [self._references([*fresh, *again], name) for name in ("expert", "random")]
        starts = [
            Start(seed, i >= len(fresh), expert, random)
            for i, (seed, expert, random) in enumerate(
                zip([*fresh, *again], *outcomes, strict=True)
            )
        ]
        return EpisodeSamples(starts, digest_of(self.environment))

    def _refuse_others(self, demonstration: Demonstration) -> None:
        """Raise a UserError if a demonstration was not given in the environment.

        What `image` and `proprio` of the options choose is to be what was recorded.
        """
        assert self._environment is not None
        env: Any = self._environment.make(images=False)
        expected = {
            "numbers of proprioception": env.observation_space["proprio"].shape[0],
            "parts of an action": env.action_space.shape[0],
        }
        env.close()
        found = (demonstration.proprio.shape[1], demonstration.actions.shape[1])
        for (what, there), here in zip(expected.items(), found, strict=True):
            if there != here:
                raise UserError(
                    f"data.path '{self.path}' has {here} {what}, but {self.task} has {there}: "
                    "they are of another environment, or data.options.proprio chooses other keys"
                )

    def _parts(self) -> tuple[list[Demonstration], list[Demonstration]]:
        """Return the demonstrations of files to learn from, and those that are held out.

        None is held out of a single one, which can only be predicted.
        """
        every = self._demonstrations()[0]
        if len(every) < 2:
            return every, []
        held_out = max(1, len(every) // 10)
        return every[:-held_out][: self.demonstrations], every[-held_out:]

    def names_of(self, split: str) -> list[str] | None:
        """Return the demonstrations of files in a split; a simulator has episodes apart."""
        if self._environment is not None:
            return None
        return [demo.name for demo in self._parts()[split != "train"]]

    def _references(self, seeds: list[int], controller: Any) -> list[Any]:
        assert self._environment is not None
        if controller == "expert" and self.source == "gym":
            return [Outcome()] * len(seeds)  # it has none, and none is reported
        timeout = self._of_policy("timeout", _TIMEOUT)
        return collect.references(
            self._environment, seeds, controller, processes=self.processes, timeout=timeout
        )

    def _demonstrations(self) -> tuple[list[Demonstration], str]:
        if self._read is None:
            self._read = self._open_demonstrations()
        return self._read

    def _open_demonstrations(self) -> tuple[list[Demonstration], str]:
        if self._environment is not None and self.source != "gym":
            return collect.collect(
                self._environment,
                self.demonstrations,
                first_seed=_DEMONSTRATIONS,
                noise=self.noise,
                disturbance=self.disturbance,
                after_success=self.after_success,
                processes=self.processes,
                timeout=self._of_policy("timeout", _TIMEOUT),
            )
        if self.source == "cortexbench":
            from pixio_heads.policy import cortexbench

            file = Path(self.path or "")
            return cortexbench.read(file, limit=None, trusted=self.trust_pickle)
        from pixio_heads.policy import lerobot

        folder = existing_folder(self.path or "", key="data.path")
        # Without a simulator all are read, to hold out the same ones; pictures when asked for.
        limit = self.demonstrations if self._environment else None
        return lerobot.read(
            folder,
            limit=limit,
            camera=self.camera,
            size=self.image_size,
            max_megapixels=self.max_megapixels,
        )
