"""How well do the class tokens tell kinds of images apart, while pretraining goes on?"""

from __future__ import annotations

from collections import Counter
from typing import Literal

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor

from pixio_lightning.data.sources import FolderSource, Source
from pixio_lightning.data.stream import HeldOutImages, collate
from pixio_lightning.errors import UserError

_TEMPERATURE = 0.07  # of the vote, Wu et al., 2018 (https://arxiv.org/abs/1805.01978)


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
    similarity = F.normalize(queries, dim=1) @ F.normalize(bank, dim=1).T
    weight, index = similarity.topk(min(k, len(bank)), dim=1)
    votes = torch.zeros(len(queries), int(bank_labels.max()) + 1, device=queries.device)
    votes.scatter_add_(1, bank_labels[index], (weight / _TEMPERATURE).exp())
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
    mean, std = bank.mean(dim=0), bank.std(dim=0).clamp_min(1e-6)
    x, q = (((f - mean) / std).double() for f in (bank, queries))
    target = F.one_hot(bank_labels).double()
    centre = target.mean(dim=0)
    gram = x.T @ x + penalty * len(x) * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    scores = q @ torch.linalg.solve(gram, x.T @ (target - centre)) + centre
    return (scores.argmax(dim=1) == labels).float().mean().item()


class OnlineProbe(L.Callback):
    """Log the accuracy of a frozen probe on the mean raw class token, beside the majority class.

    It runs off the training graph, every so many steps and at the end, on every process alike.

    Args:
        train: Folder with a sub-folder per class to learn from; None takes the data module's own
            images and classes (scenes: the kind of scene).
        val: Such a folder to be judged on.
        kind: `knn` or `linear` (closed-form ridge regression).
        every_n_steps: Optimiser steps between two probes.
        images: Images of each set, at most.
        k: Neighbours of `knn`.
    """

    def __init__(
        self,
        train: str | None = None,
        val: str | None = None,
        kind: Literal["knn", "linear"] = "knn",
        every_n_steps: int = 1000,
        images: int = 2000,
        k: int = 10,
    ) -> None:
        if (train is None) != (val is None):
            raise UserError("OnlineProbe needs both train and val, or neither")
        self.train, self.val, self.kind = train, val, kind
        self.every_n_steps, self.images, self.k = every_n_steps, images, k
        self._probed_step = -1

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: object
    ) -> None:
        if trainer.global_step % self.every_n_steps == 0:
            self._probe(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._probe(trainer, pl_module)

    def _probe(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.global_step == self._probed_step:
            return
        self._probed_step = trainer.global_step
        if self.train is None or self.val is None:
            train, val = trainer.datamodule.labelled
        else:
            train = FolderSource(self.train, key="OnlineProbe's train")
            val = FolderSource(self.val, key="OnlineProbe's val")
        classes = sorted({label for source in (train, val) for label in _labels(source)})
        if len(classes) < 2:
            raise UserError(f"OnlineProbe found {len(classes)} class of images; it needs two")
        module.eval()
        sets = [self._encode(source, classes, trainer, module) for source in (train, val)]
        module.train()
        (bank, bank_labels), (queries, labels) = sets
        if self.kind == "knn":
            accuracy = knn_accuracy(bank, bank_labels, queries, labels, k=self.k)
        else:
            accuracy = ridge_accuracy(bank, bank_labels, queries, labels)
        majority, _ = Counter(bank_labels.tolist()).most_common(1)[0]
        chance = (labels == majority).float().mean().item()
        values = {f"probe/{self.kind}": accuracy, "probe/majority": chance}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)

    def _encode(
        self, source: Source, classes: list[str], trainer: L.Trainer, module: L.LightningModule
    ) -> tuple[Tensor, Tensor]:
        """Return the mean raw class tokens `(M, C)` and classes `(M,)` of a source."""
        data = trainer.datamodule
        images = HeldOutImages(source, size=data.image_size, max_megapixels=data.max_megapixels)
        count = min(self.images, len(source))
        indices = [i * len(source) // count for i in range(count)]
        features, labels = [], []
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            for start in range(0, count, data.batch_size):
                chosen = indices[start : start + data.batch_size]
                batch = trainer.strategy.batch_to_device(collate([images[i] for i in chosen]))
                layer = module.backbone(batch["image"]).layers[-1]
                tokens = layer.raw_cls if layer.n_cls else layer.raw_tokens
                readable = batch["weight"] > 0
                features.append(tokens.float().mean(dim=1)[readable])
                known = torch.tensor(
                    [classes.index(source.label(i) or "") for i in chosen],
                    device=readable.device,
                )
                labels.append(known[readable])
        return torch.cat(features), torch.cat(labels)


def _labels(source: Source) -> set[str]:
    return {source.label(i) or "" for i in range(len(source))}
