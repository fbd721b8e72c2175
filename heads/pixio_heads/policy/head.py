"""Policy: imitate demonstrations from frozen or fine-tuned features, and be judged by acting.

Shapes: B samples or episodes, V frames of a history, P numbers of proprioception, A parts of an
action, N environments at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import MeanSquaredError, MetricCollection

from pixio_heads.policy import picture
from pixio_heads.policy.episode_log import EpisodeLog, Film
from pixio_heads.policy.episodes import row
from pixio_heads.policy.metrics import EpisodeMetrics
from pixio_heads.policy.model import Fusion, Observe, PolicyNet, Token, check_inputs
from pixio_heads.policy.rollout.environments import Environment
from pixio_heads.policy.rollout.pool import Pool, Run
from pixio_heads.policy.statistics import (
    from_proprio,
    learned_scale,
    normalized,
    statistics_of,
    unevenness,
    unscaled,
)
from pixio_lightning.errors import (
    UnsuitedBackbone,
    UserError,
    above_0,
    at_least,
    one_of,
    refuse_unread,
)
from pixio_lightning.models import Backbone, Features, Reads
from pixio_lightning.training import Batch, Head, Optim, Panel

_UNKNOWN = "demonstrations of which the checkpoint says nothing"
_READS: dict[str, Reads] = {"cls": "cls", "first_cls": "cls"}


class Policy(Head):
    """Behaviour cloning: a small network from features of the last frames to an action.

    It is trained on demonstrations, and judged by the share of episodes of a simulator in which it
    does the task, acting by itself; or, without a simulator, by the actions that it would have
    taken in demonstrations it has not seen.

    Args:
        backbone: The encoder.
        observe: What the policy looks at: the backbone's features; nothing but the robot's own
            state (`blind`); or the pixels through a small convolution net that is trained with it
            (`conv`). The last two are controls, which do not use the backbone, and so no `token`;
            the first has no frames for `fusion`.
        token: What is read of the features of a frame: the mean class token (`cls`), the first one
            (`first_cls`), the mean patch (`patches`), positions of learned maps (`keypoints`), or
            what one learned query attends to (`attention`).
        fusion: How frames are joined: differences and the last (`flare`), `concat`, or `last`.
        proprio: Whether the robot's own state is read.
        hidden: Width of the hidden layers.
        depth: How many there are.
        batch_norm: Whether the network's input is normalised by its batch.
        normalize_actions: Whether actions are scaled by their mean and deviation in training.
        videos: Episodes of each evaluation that are kept as videos.
        timeout: Seconds a simulator may take for a step, or to begin an episode.
        optim: Optimiser and schedule.
        cache: Compute the features of a frozen backbone once for each frame.
        seed: Seed of drop path.
    """

    data_attributes = ("history", "proprio_dim", "action_dim")
    same_as_trained = data_attributes
    table = "actions"
    evaluation_attributes = ("environment", "processes")
    model_as_trained = (
        *Head.model_as_trained,
        *("observe", "token", "fusion", "proprio", "normalize_actions"),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        observe: Observe = "backbone",
        token: Token = "cls",
        fusion: Fusion = "flare",
        proprio: bool = True,
        hidden: int = 256,
        depth: int = 3,
        batch_norm: bool = True,
        normalize_actions: bool = False,
        videos: int = 4,
        timeout: float = 60.0,
        optim: Optim = Optim(  # noqa: B008 (frozen)
            lr=1e-3, weight_decay=0.0, betas=(0.9, 0.999), warmup=0, schedule="constant"
        ),
        cache: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(backbone, optim=optim, cache=cache, seed=seed)
        choices = {"observe": (observe, Observe), "token": (token, Token)}
        for key, (value, known) in (choices | {"fusion": (fusion, Fusion)}).items():
            one_of(f"model.{key}", value, get_args(known))
        at_least(1, **{"model.hidden": hidden})
        at_least(0, **{"model.depth": depth, "model.videos": videos})
        above_0("model.timeout", timeout, "seconds")
        if observe == "backbone" and token in _READS and not backbone.n_cls_tokens:
            raise UnsuitedBackbone(
                f"model.token is {token}, but {backbone.name} has no class token: "
                "set it to patches, keypoints or attention"
            )
        if observe == "blind" and not proprio:
            raise UserError("a blind policy without model.proprio knows nothing: set it to true")
        if observe != "backbone" and not backbone.frozen:
            raise UserError(
                f"model.observe is {observe}, which does not use the backbone: set "
                "model.backbone.tune to frozen"
            )
        self.observe, self.token, self.fusion, self.proprio = observe, token, fusion, proprio
        self.hidden, self.depth, self.batch_norm = hidden, depth, batch_norm
        self.normalize_actions, self.videos, self.timeout = normalize_actions, videos, timeout
        self.films: list[Film] = []
        self._pool: Pool | None = None

    # --- what depends on whether there is a simulator -----------------------------------------

    @property
    def acts(self) -> bool:
        """Whether the policy is judged by acting."""
        return bool(self.evaluation_info.get("environment"))

    @property
    def looks(self) -> bool:
        """Whether the policy looks at pictures."""
        return self.observe != "blind"

    @property
    def monitor(self) -> tuple[str, str]:
        """What best.ckpt is chosen by."""
        return ("val/success", "max") if self.acts else ("val/action_error", "min")

    @property
    def baseline_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """What stands beside a result."""
        if not self.acts:
            return ("mean_action", "from_proprio") if self._proprio_dim else ("mean_action",)
        has_expert = self.evaluation_info["environment"]["kind"] != "gym"
        return ("expert", "random_actions") if has_expert else ("random_actions",)

    def metrics(self) -> MetricCollection:
        """Return rates of success, or the error of actions."""
        error = MetricCollection({"action_error": MeanSquaredError().set_dtype(torch.float64)})
        return MetricCollection([EpisodeMetrics()]) if self.acts else error

    @property
    def protocol(self) -> str:
        """What a policy learned from, what an episode is, and how it is judged."""
        judged = "error of actions in held-out demonstrations, in units of their deviation"
        if self.acts:
            environment = Environment(**self.evaluation_info["environment"])
            judged = f"closed loop, deterministic actions; {environment}; success at the last step"
        return f"{judged}; learned from {self.data_info['learned_from']}"

    def remember(self, about: dict[str, Any]) -> None:
        """Take what a checkpoint says of its training; the data at hand may be others."""
        super().remember(about)
        self.data_info["learned_from"] = about.get("facts", {}).get("learned_from", _UNKNOWN)

    def read_data_attributes(self, data: Any) -> None:
        """Take what the policy must know; refuse keys of a simulator where there is none."""
        super().read_data_attributes(data)
        self.data_info.setdefault("learned_from", getattr(data, "learned_from", _UNKNOWN))
        if not self.acts:
            played = "the data has no simulator, so that no episode is played"
            refuse_unread("model.videos", self.videos, 4, played)
            refuse_unread("model.timeout", self.timeout, 60.0, played)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note demonstrations that its weights, trained further, learn from only now."""
        super().on_load_checkpoint(checkpoint)
        if self.attached is None or self.trainer.state.fn != "fit":
            return
        then = str(self.data_info["learned_from"])
        now = getattr(self.attached.datamodule, "learned_from", then)
        if then != now and not then.endswith(f", then {now}"):
            self.data_info["learned_from"] = f"{then}, then {now}"

    # --- the network --------------------------------------------------------------------------

    @property
    def reads(self) -> Reads:
        """The tokens that are read of the features."""
        return _READS.get(self.token, "patches") if self.observe == "backbone" else "nothing"

    def configure_model(self) -> None:
        """Ask the data what the policy must know, then load and build.

        Raises:
            UserError: A policy that acts was to be sharded.
        """
        self.require_data_attributes()
        if self.acts and self.device_mesh is not None:
            # Episodes last differently long: processes would gather parameters unequally often.
            raise UserError(
                "a policy that is judged in a simulator cannot be sharded: leave with/fsdp out "
                "(trainer.strategy ddp runs on many devices)"
            )
        super().configure_model()

    @property
    def _proprio_dim(self) -> int:
        """Numbers of proprioception P that are read."""
        return self.data_info["proprio_dim"] if self.proprio else 0

    def build(self, backbone: Backbone) -> PolicyNet:
        """Return the network."""
        info = self.data_info
        if self.observe == "blind" and not self._proprio_dim:
            raise UserError("model.observe is blind, but the data knows nothing of the robot")
        return PolicyNet(
            backbone.embed_dim,
            history=info["history"],
            proprio=self._proprio_dim,
            actions=info["action_dim"],
            observe=self.observe,
            token=self.token,
            fusion=self.fusion,
            hidden=self.hidden,
            depth=self.depth,
            batch_norm=self.batch_norm,
        )

    def forward(self, features: Features, batch: Batch) -> Tensor:
        """Return actions `(B, A)`, normalised where training is."""
        assert self.decoder is not None
        seen = batch["image"] if self.observe == "conv" else None
        images = None if seen is None else seen.reshape(-1, *seen.shape[-3:])
        proprio = batch["proprio"] if self._proprio_dim else None
        return self.decoder(features, images, proprio)

    def loss(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the mean squared error of the actions."""
        action = batch["action"]
        if self.normalize_actions:
            action = normalized(action, self.statistics, learned=True)
        return {"loss": F.mse_loss(prediction, action)}

    def validation_loss(self, prediction: Any, batch: Batch) -> Tensor | None:
        """Return nothing: episodes have no loss, and the error of actions is a metric."""
        return None

    def fit_statistics(self, loader: Any) -> dict[str, Tensor]:
        """Return the scale of actions, and a linear map to them; see `statistics_of`."""
        seen = [(batch["action"], batch["proprio"]) for batch in loader]
        actions, proprio = (torch.cat(part) for part in zip(*seen, strict=True))
        if not self.normalize_actions:
            self.note(unevenness(actions))
        return statistics_of(actions, proprio)

    def kept_statistics(self) -> dict[str, Tensor]:
        """Return the scale that the weights give actions in."""
        return learned_scale(self.statistics) if self.normalize_actions and self.statistics else {}

    def _taken(self, actions: Tensor) -> Tensor:
        """Return what the network gives as the actions that are taken."""
        return unscaled(actions, self.statistics) if self.normalize_actions else actions

    def scored(self, prediction: Any, batch: Batch) -> tuple[Any, ...]:
        """Return outcomes of episodes, or actions in units of their deviation."""
        if self.acts:
            return prediction, batch["of_demonstration"].bool()
        return tuple(normalized(a, self.statistics) for a in (prediction, batch["action"]))

    def baselines(self, batch: Batch) -> dict[str, Any]:
        """Return what experts and random actions reach; or the mean action, and a linear map's."""
        if self.acts:
            known = {"expert": "expert", "random_actions": "random"}
            return {name: batch[known[name]] for name in self.baseline_names}
        found = {"mean_action": self.statistics["mean"].expand_as(batch["action"])}
        if "from_proprio" in self.baseline_names:
            found["from_proprio"] = from_proprio(self.statistics, batch["proprio"])
        return found

    # --- acting -------------------------------------------------------------------------------

    def predicted(self, batch: Batch) -> Any:
        """Return actions for histories, or what comes of acting in episodes.

        Raises:
            UserError: A batch is neither.
        """
        if "seed" not in batch:
            history = self.data_info["history"] if self.looks else 0
            check_inputs(batch, history=history, proprio=self._proprio_dim)
            return self._taken(super().predicted(batch))
        weight = batch.get("weight", torch.ones(len(batch["seed"])))
        real = [i for i, kept in enumerate(weight.tolist()) if kept > 0]
        names = batch.get("name", [str(int(seed)) for seed in batch["seed"]])
        # Of all processes together no more than `videos` episodes.
        share = self.videos // self._world + (self.global_rank < self.videos % self._world)
        room = max(0, share - len(self.films))
        runs = self.play([int(batch["seed"][i]) for i in real], keep_frames=min(room, len(real)))
        outcomes = torch.zeros(len(weight), 5)
        for i, run in zip(real, runs, strict=True):
            outcomes[i] = torch.from_numpy(row(run.outcome))
            frames = np.stack(run.frames) if run.frames else None
            self.films.append(Film(names[i], run.outcome, frames))
        return outcomes.to(self.device)

    @property
    def _world(self) -> int:
        return self.trainer.world_size if self.attached is not None else 1

    def play(self, seeds: list[int], *, keep_frames: int = 0) -> list[Run]:
        """Act in episodes that an environment draws from seeds; see `Pool.run`."""
        environment = Environment(**self.evaluation_info["environment"])
        count = self.evaluation_info["processes"]
        if self._pool is None or (self._pool.environment, self._pool.count) != (environment, count):
            self._close()
            self._pool = Pool(environment, count, timeout=self.timeout)
        past: Tensor | None = None

        def act(
            images: NDArray[np.uint8], proprio: NDArray[np.float32], fresh: NDArray[np.bool_]
        ) -> NDArray[np.float32]:
            nonlocal past
            actions, past = self._act(images, proprio, fresh, past)
            return actions

        with torch.no_grad():
            return self._pool.run(seeds, act, keep_frames=keep_frames)

    def _act(
        self,
        images: NDArray[np.uint8],
        proprio: NDArray[np.float32],
        fresh: NDArray[np.bool_],
        past: Tensor | None,
    ) -> tuple[NDArray[np.float32], Tensor | None]:
        """Return actions `(N, A)`, and the vectors of the history that the next step reads."""
        assert self.decoder is not None
        pictures = torch.from_numpy(images).movedim(-1, 1).contiguous().to(self.device)
        state = torch.from_numpy(proprio).to(self.device)
        reads = self.reads != "nothing"
        features = self.encode_images(pictures) if reads else self.encode({})
        net: Any = self.decoder
        vectors = net.read(features, pictures)
        if vectors is not None:
            # An episode's first frame stands for those before it.
            now = vectors[:, None]
            begin = now.expand(-1, self.data_info["history"] - 1, -1)
            first = torch.from_numpy(fresh).to(self.device)[:, None, None]
            past = begin if past is None else torch.where(first, begin, past)
            vectors = torch.cat([past, now], dim=1)
        actions = self._taken(net.act(vectors, state))
        return actions.cpu().numpy(), None if vectors is None else vectors[:, 1:]

    def teardown(self, stage: str) -> None:
        """End the environments' processes."""
        self._close()

    def _close(self) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    # --- what is kept of episodes -------------------------------------------------------------

    def configure_callbacks(self) -> list[L.Callback]:
        """Keep a table and videos of the episodes of every evaluation, too."""
        return [*super().configure_callbacks(), EpisodeLog()]

    def picture(self, batches: list[Batch], predictions: list[Any]) -> Panel | None:
        """Draw episodes as rows of frames; without a simulator, nothing."""
        films = [film for film in self.films if film.frames is not None]
        self.films = []
        return picture.sheet(films) if films else None

    def write(self, prediction: Any, batch: Batch, folder: Path) -> None:
        """Write the episodes' videos and table, or the actions of the first demonstrations."""
        if self.acts:
            return  # EpisodeLog writes them
        kinds = [f"{k}_{i}" for k in ("action", "demonstrated") for i in range(prediction.shape[1])]
        both = torch.cat([prediction, batch["action"]], dim=1).tolist()
        rows = [(n, *(f"{v:.6g}" for v in row)) for n, row in zip(batch["name"], both, strict=True)]
        self.add_to_table(folder, ["name", *kinds], rows)

    def predictions_text(self, folder: Path) -> str:
        """Return where the episodes are, or the actions."""
        if self.acts:
            return f"episodes: {folder / 'episodes.csv'} and {folder / 'episodes'}"
        return super().predictions_text(folder)
