"""How well do the class tokens tell kinds of images apart, while pretraining goes on?"""

from __future__ import annotations

from collections import Counter
from typing import Literal, get_args

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from pixio_lightning.data.samples import HeldOutSamples, spread
from pixio_lightning.data.sources import FolderSource
from pixio_lightning.data.stream import EvenShare, Loader
from pixio_lightning.errors import UserError, at_least, at_least_1, one_of, some_of
from pixio_lightning.models.probes import nearest_neighbours, ridge, vote
from pixio_lightning.training.base import BackboneModule
from pixio_lightning.training.callbacks.preemption import is_preempted

_TEMPERATURE = 0.07  # of the vote, Wu et al., 2018 (https://arxiv.org/abs/1805.01978)
Kind = Literal["knn", "linear"]


def knn_accuracy(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, labels: Tensor, *, k: int
) -> float:
    """Classify by a weighted vote of the nearest neighbours and return the share of hits.

    Args:
        bank: `(M, C)` features with known classes.
        bank_labels: int64 `(M,)`.
        queries: `(Q, C)` features to classify.
        labels: int64 `(Q,)`, their true classes.
        k: Neighbours that vote, with weight ``exp(cosine / 0.07)``.
    """
    similarity, index = nearest_neighbours(
        F.normalize(queries, dim=1), F.normalize(bank, dim=1), n=k
    )
    classes = int(bank_labels.max()) + 1
    votes = vote(similarity, bank_labels[index], num_classes=classes, temperature=_TEMPERATURE)
    return (votes.argmax(dim=1) == labels).float().mean().item()


def ridge_accuracy(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, labels: Tensor, *, penalty: float = 1e-2
) -> float:
    """Fit a linear classifier in closed form on standardised features; return its accuracy.

    Args:
        bank: `(M, C)` features with known classes.
        bank_labels: int64 `(M,)`.
        queries: `(Q, C)` features to classify.
        labels: int64 `(Q,)`, their true classes.
        penalty: Ridge penalty per sample.
    """
    fitted = ridge(bank, F.one_hot(bank_labels), penalties=(penalty,))
    scores = queries.float() @ fitted.weight + fitted.bias
    return (scores.argmax(dim=1) == labels).float().mean().item()


class OnlineProbe(L.Callback):
    """Log the accuracy of a frozen probe on the mean raw class token, beside the majority class.

    It runs off the training graph, every so many steps and at the end; the processes share the
    images. A run that is being pre-empted is not probed; one that goes on from there begins with
    what was left out.

    Args:
        train: Folder with a sub-folder per class to learn from; None takes the data module's own
            images and classes (scenes: the kind of scene).
        val: Such a folder to be judged on.
        kind: `knn` or `linear` (closed-form ridge regression).
        every_n_steps: Optimiser steps between two probes; 0 probes at the end only.
        images: Images of each set, at most.
        k: Neighbours of `knn`.

    Raises:
        UserError: Only one of the folders is given, or a number is too small.
    """

    def __init__(
        self,
        train: str | None = None,
        val: str | None = None,
        kind: Kind = "knn",
        every_n_steps: int = 1000,
        images: int = 2000,
        k: int = 10,
    ) -> None:
        if (train is None) != (val is None):
            raise UserError("OnlineProbe needs both train and val, or neither")
        at_least(0, **{"OnlineProbe's every_n_steps": every_n_steps})
        one_of("OnlineProbe's kind", kind, get_args(Kind))
        at_least_1(**{"OnlineProbe's images": images, "OnlineProbe's k": k})
        self.train, self.val, self.kind = train, val, kind
        self.every_n_steps, self.images, self.k = every_n_steps, images, k
        self._probed_step = -1
        self._sets: list[tuple[HeldOutSamples, Tensor]] | None = None

    @property
    def state_key(self) -> str:
        """Tell the probes of a run apart."""
        return f"{type(self).__qualname__} {self.kind} {self.train} {self.val}"

    def state_dict(self) -> dict[str, int]:
        """Return the step that was probed last."""
        return {"probed_step": self._probed_step}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue from there."""
        self._probed_step = state_dict["probed_step"]

    def on_train_start(self, trainer: L.Trainer, pl_module: BackboneModule) -> None:
        """Open the images; probe the step that a run was pre-empted at, if its turn had come."""
        self._sets = self._open(trainer)
        self._probe_in_turn(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: BackboneModule, *args: object
    ) -> None:
        self._probe_in_turn(trainer, pl_module)

    def _probe_in_turn(self, trainer: L.Trainer, module: BackboneModule) -> None:
        step = trainer.global_step  # 0 until the first accumulated batches have made a step
        if step and self.every_n_steps and step % self.every_n_steps == 0:
            self._probe(trainer, module)

    def on_train_end(self, trainer: L.Trainer, pl_module: BackboneModule) -> None:
        self._probe(trainer, pl_module)

    def _probe(self, trainer: L.Trainer, module: BackboneModule) -> None:
        if trainer.global_step == self._probed_step or is_preempted(trainer):
            return
        self._probed_step = trainer.global_step
        assert self._sets is not None
        with module.in_mode(training=False):
            (bank, bank_labels), (queries, labels) = (
                self._encode(images, known, trainer, module) for images, known in self._sets
            )
        if self.kind == "knn":
            accuracy = knn_accuracy(bank, bank_labels, queries, labels, k=self.k)
        else:
            accuracy = ridge_accuracy(bank, bank_labels, queries, labels)
        majority, _ = Counter(bank_labels.tolist()).most_common(1)[0]
        chance = (labels == majority).float().mean().item()
        values = {f"probe/{self.kind}": accuracy, "probe/majority": chance}
        row = max(trainer.global_step - 1, 0)  # where a loss of the same weights stands
        for logger in trainer.loggers:
            logger.log_metrics(values, step=row)

    def _open(self, trainer: L.Trainer) -> list[tuple[HeldOutSamples, Tensor]]:
        """Return images and classes `(M,)` of both sets."""
        data = trainer.datamodule
        if self.train is None or self.val is None:
            sources = data.labelled
        else:
            sources = (
                FolderSource(self.train, key="OnlineProbe's train"),
                FolderSource(self.val, key="OnlineProbe's val"),
            )
        names = [[source.label(i) or "" for i in range(len(source))] for source in sources]
        classes = {name: i for i, name in enumerate(sorted({*names[0], *names[1]}))}
        if len(classes) < 2:
            raise UserError(f"OnlineProbe found {len(classes)} class of images; it needs two")
        unknown = sorted({*names[1]} - {*names[0]})
        # Of one set that was divided, a small class may be held out as a whole.
        if unknown and (self.val is not None or len(unknown) == len({*names[1]})):
            have = f"{some_of(unknown)}, of which those to learn from, of "
            raise UserError(
                f"OnlineProbe is to be judged on images of {have}{some_of(sorted({*names[0]}))}, "
                "have none: give it folders of the same classes as train and val, or leave it out"
            )
        sets = []
        for source, labels in zip(sources, names, strict=True):
            indices = spread(len(source), self.images)
            found = torch.tensor([classes[labels[i]] for i in indices])
            sets.append((data.evaluated(source, indices), found))
        return sets

    def _encode(
        self,
        images: HeldOutSamples,
        labels: Tensor,
        trainer: L.Trainer,
        module: BackboneModule,
    ) -> tuple[Tensor, Tensor]:
        """Return the mean raw class tokens `(M, C)` and classes `(M,)` of what can be read.

        Every process encodes its share, which its workers decode, and gets what all have encoded.
        """
        data = trainer.datamodule
        share = EvenShare(len(images), rank=trainer.global_rank, world_size=trainer.world_size)
        loader = DataLoader(
            images, batch_size=data.batch_size, sampler=share, **data.loader_arguments
        )
        features, weights = [], []
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            # Uncounted: these images are not those of the run.
            for batch in Loader(loader, lambda bad, seen: None):
                batch = trainer.strategy.batch_to_device(batch)
                layer = module.probed_backbone(batch["image"]).layers[-1]
                tokens = layer.raw_cls if layer.n_cls else layer.raw_tokens
                features.append(tokens.float().mean(dim=1))
                weights.append(batch["weight"])
        encoded, weight = (
            module.gathered(torch.cat(part))[: len(images)] for part in (features, weights)
        )
        readable = weight > 0
        return encoded[readable], labels.to(readable.device)[readable]
