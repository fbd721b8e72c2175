"""Classes of images: by a probe of frozen or tuned features, and by their nearest neighbours.

Shapes: B batch, C classes, D width of a token, K numbers of neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MetricCollection

from pixio_heads.classification import knn
from pixio_heads.classification.attentive import AttentiveClassifier
from pixio_heads.classification.base import ClassHead
from pixio_heads.classification.linear import Averaged, LinearClassifier
from pixio_heads.classification.metrics import (
    MeanAveragePrecision,
    accuracies,
    by_frequency,
    neighbour_accuracies,
)
from pixio_lightning.data import SampleData
from pixio_lightning.errors import UnsuitedBackbone, UserError, above_0, at_least_1, one_of
from pixio_lightning.models import Backbone, Features, Reads, nearest_neighbours, vote
from pixio_lightning.training import Batch, Optim, absent_classes

Pool = Literal["cls", "patches", "both", "attentive"]
_PROBES: dict[Pool, Callable[[int, int], nn.Module]] = {
    **{pool: partial(LinearClassifier, pool=pool) for pool in get_args(Averaged)},
    "attentive": AttentiveClassifier,
}
_READS: dict[Pool, Reads] = {"cls": "cls", "patches": "patches"}  # others read all tokens


class Classification(ClassHead):
    """One class of each image, or several: a linear or attentive probe, with cross-entropy.

    Images may be of several classes where the data says so; then every class is judged by itself,
    with binary cross-entropy, and the metric is mean average precision.

    Args:
        backbone: The encoder.
        pool: What is read of the features: the mean class token, the mean patch, or both, by a
            linear map; or all tokens through `attentive`, a cross-attention of learned queries.
        label_smoothing: Share of the truth that is spread over all classes in the training loss.
        optim: Optimiser and schedule.
        cache: Compute the features of a frozen backbone once.
        seed: Seed of drop path.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        pool: Pool = "cls",
        label_smoothing: float = 0.0,
        optim: Optim = Optim(lr=1e-3, weight_decay=0.0, betas=(0.9, 0.999)),  # noqa: B008
        cache: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(backbone, optim=optim, cache=cache, seed=seed)
        one_of("model.pool", pool, _PROBES)
        if pool in ("cls", "both") and not backbone.n_cls_tokens:
            raise UnsuitedBackbone(
                f"model.pool is {pool}, but {backbone.name} has no class token: set it to patches "
                "or attentive"
            )
        if not 0 <= label_smoothing < 1:
            raise UserError(f"model.label_smoothing is {label_smoothing}; expected 0 to below 1")
        self.pool, self.label_smoothing = pool, label_smoothing

    @property
    def reads(self) -> Reads:
        """The tokens that are pooled."""
        return _READS.get(self.pool, "tokens")

    @property
    def monitor(self) -> tuple[str, str]:
        """What best.ckpt is chosen by."""
        return ("val/mean_ap" if self.data_info.get("multilabel") else "val/top1", "max")

    def build(self, backbone: Backbone) -> nn.Module:
        """Return the classifier."""
        return _PROBES[self.pool](backbone.embed_dim, self.data_info["num_classes"])

    def forward(self, features: Features, batch: Batch) -> Tensor:
        """Return logits `(B, C)`, float32."""
        assert self.decoder is not None
        return self.decoder(features).float()

    def loss(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy, of one choice or of a choice for every class."""
        return {"loss": _cross_entropy(prediction, batch["target"], self.label_smoothing)}

    def validation_loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        """Return the same without smoothing, as losses smoothed otherwise do not compare."""
        return _cross_entropy(prediction, batch["target"], 0.0)

    @property
    def output_config(self) -> dict[str, Any]:
        """Return how logits become probabilities, and the classes in their order."""
        of_several = "none: the sigmoid of each is its probability"
        of_one = "none: their softmax is the probabilities"
        return {
            "values": "logits",
            "activation": of_several if self.data_info["multilabel"] else of_one,
            "class_names": list(self.data_info["class_names"]),
        }

    def metrics(self) -> MetricCollection:
        """Return top-1 and top-5 accuracy, or mean average precision."""
        if self.data_info.get("multilabel"):
            number = self.data_info["num_classes"]
            return MetricCollection({"mean_ap": MeanAveragePrecision(number)})
        return accuracies(self.data_info["num_classes"])

    @property
    def protocol(self) -> str:
        """How classes are told and what is seen of an image."""
        many = "any number of" if self.data_info["multilabel"] else "one of"
        return f"{many} {self.data_info['num_classes']} classes; {self.seen}"

    def probabilities(self, prediction: Tensor) -> Tensor:
        """Return `(B, C)`, which add up to 1 unless an image may be of several classes."""
        return prediction.sigmoid() if self.data_info["multilabel"] else prediction.softmax(dim=1)

    def fit_statistics(self, loader: Any) -> dict[str, Tensor]:
        """Return how frequent every class is among training images."""
        count, seen = torch.zeros(self.data_info["num_classes"]), 0
        for batch in loader:
            target = batch["target"]
            hot = target if target.ndim == 2 else F.one_hot(target, len(count))
            count += hot.sum(dim=0)
            seen += len(target)
        self.note(absent_classes(count.tolist(), self.data_info["class_names"], samples=seen))
        return {"frequency": count / seen}

    def baselines(self, batch: Batch) -> dict[str, Tensor]:
        """Return the most frequent classes first, for every image."""
        scores = by_frequency(self.statistics["frequency"])
        return {"majority": scores.expand(len(batch["target"]), -1)}


def _cross_entropy(logits: Tensor, target: Tensor, smoothing: float) -> Tensor:
    """Return that of classes `(B,)`, or binary that of `(B, C)`; a share of the truth is spread."""
    if target.ndim == 1:
        return F.cross_entropy(logits, target, label_smoothing=smoothing)
    smooth = target.float() * (1 - smoothing) + smoothing / 2
    return F.binary_cross_entropy_with_logits(logits, smooth)


class KNN(ClassHead):
    """The nearest neighbours of an image among the training set vote for its class.

    Nothing is trained. Images are compared by the mean class token of the last tapped block, raw or
    after the final norm; the features of the training set are computed before it is evaluated,
    every process encoding its share, and are in no checkpoint.

    Args:
        backbone: The encoder, frozen.
        k: Numbers of neighbours that vote, each judged by itself; `predict` takes the first.
        temperature: Votes weigh ``exp(cosine / temperature)``.
        bank: Training images that may be neighbours, at most, evenly spread; None for all.
        normed: Whether the token is taken after the encoder's final norm, as in the published k-NN
            of DINOv2 and DINOv3.
        seed: Recorded with the results; nothing is random.
    """

    shares_statistics = True

    def __init__(
        self,
        backbone: Backbone,
        *,
        k: tuple[int, ...] = (10, 20, 100, 200),
        temperature: float = 0.07,
        bank: int | None = None,
        normed: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(backbone, seed=seed)
        if not k or min(k) < 1 or len({*k}) < len(k):
            raise UserError(f"model.k is {list(k)}; expected numbers from 1 on, each once")
        above_0("model.temperature", temperature, "a number")
        at_least_1(**{"model.bank": bank})
        self.k, self.temperature, self.statistics_samples = k, temperature, bank
        self.normed = normed
        # Where the files of the bank lie, and of what is looked at; None where names are unique.
        self._bank_root: Path | None = None
        self._root: Path | None = None

    def build(self, backbone: Backbone) -> None:
        """Return nothing to train.

        Raises:
            UserError: Images may be of several classes, for which one vote says nothing.
        """
        if self.data_info.get("multilabel"):
            raise UserError("KNN votes for one class, but images of this data may be of several")

    def forward(self, features: Features, batch: Batch) -> Tensor:
        """Return each class's share of the votes `(B, K, C)`, for every number of neighbours."""
        bank, labels = self.statistics["bank"], self.statistics["labels"]
        similarity, index = nearest_neighbours(self._feature(features), bank, n=max(self.k) + 1)
        if "name" in batch:  # none is a neighbour of its own
            keys = knn.file_keys(self._root, batch["name"]).to(index.device)
            own = self.statistics["keys"][index] == keys[:, None]
            similarity = similarity.masked_fill(own, -torch.inf)
            order = own.int().argsort(dim=1, stable=True)
            similarity, index = similarity.gather(1, order), index.gather(1, order)
        return torch.stack(
            [
                vote(
                    similarity[:, :k],
                    labels[index[:, :k]],
                    num_classes=self.data_info["num_classes"],
                    temperature=self.temperature,
                )
                for k in self.k
            ],
            dim=1,
        )

    def _feature(self, features: Features) -> Tensor:
        return knn.feature(features, normed=self.normed)

    @property
    def output_config(self) -> dict[str, Any]:
        """Return the numbers of neighbours, and the classes, each in their order."""
        return {
            "values": "shares of the votes, for each number of neighbours and class",
            "neighbours": list(self.k),
            "class_names": list(self.data_info["class_names"]),
        }

    @property
    def reads(self) -> Reads:
        """Class tokens, or patches where there are none."""
        return "cls" if self.backbone.n_cls_tokens else "patches"

    def metrics(self) -> MetricCollection:
        """Return top-1 and top-5 accuracy for every number of neighbours."""
        return neighbour_accuracies(self.data_info["num_classes"], self.k)

    @property
    def protocol(self) -> str:
        """The vote, what is compared, with how many, and what is seen of an image."""
        bank = self.statistics_samples or "all"
        token = "normed" if self.normed else "raw"
        return (
            f"k-NN by cosine, T {self.temperature:g}, mean {token} class token (patch where there "
            f"is none), among {bank} training images; one of {self.data_info['num_classes']} "
            f"classes; {self.seen}"
        )

    def probabilities(self, prediction: Tensor) -> Tensor:
        """Return the shares of the votes of the first number of neighbours `(B, C)`."""
        return prediction[:, 0]

    def fit_statistics(self, loader: Any) -> dict[str, Tensor]:
        """Return features `(M, D)`, classes and keys `(M,)` of all processes' training images.

        And `majority`, scores of the classes `(C,)` by how frequent they are.
        """

        def known(batch: Batch) -> tuple[Tensor, ...]:
            # Half the memory, and finer than the bfloat16 that features are computed in.
            found = self._feature(self.encode(batch)).half()
            keys = knn.file_keys(self._bank_root, batch["name"]).to(found.device)
            return found, batch["target"], keys

        (bank, labels, keys), names = self.encoded(loader, known), self.data_info["class_names"]
        counts = labels.bincount(minlength=len(names))
        self.note(absent_classes(counts.tolist(), names, samples=len(labels)))
        return {"bank": bank, "labels": labels, "keys": keys, "majority": by_frequency(counts)}

    def baselines(self, batch: Batch) -> dict[str, Tensor]:
        """Return the most frequent classes of the bank first, for every image."""
        scores = self.statistics["majority"]
        return {"majority": scores.expand(len(batch["target"]), len(self.k), -1)}

    def on_predict_start(self) -> None:
        """Encode the training set, which nothing stored."""
        super().on_predict_start()
        self._begin("predict")

    def on_validation_start(self) -> None:
        """Encode the training set, if that is not done."""
        self._begin("val")

    def on_test_start(self) -> None:
        """Encode the training set, if that is not done."""
        self._begin("test")

    def _begin(self, split: str) -> None:
        data = self.trainer.datamodule
        if isinstance(data, SampleData):
            if split != "predict":
                data.refuse_shared(split)
            self._bank_root, self._root = (
                getattr(data.samples_of(s), "root", None) for s in ("train", split)
            )
        super().on_fit_start()
