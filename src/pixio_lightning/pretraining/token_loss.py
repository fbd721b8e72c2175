"""How a student's tokens are held against its teacher's, and what needs no looking.

Shapes: B batch, K class tokens of the teacher, k pairs of class tokens, N patches, n visible ones,
D width of the teacher.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pixio_lightning.models.features import Layer
from pixio_lightning.models.masking import gather_tokens
from pixio_lightning.models.probes import in_float64
from pixio_lightning.training.precision import to_float32

Distance = Literal["cosine", "l1", "mse"]
Weighting = Literal["halves", "tokens"]


class Match(NamedTuple):
    """A student's tokens beside the teacher's.

    Attributes:
        cls: `(B, k, D)`, the student's class tokens; k is 0 where either has none.
        target_cls: The teacher's.
        patches: `(B, n, D)`, the student's patches.
        target_patches: The teacher's, at the same places.
    """

    cls: Tensor
    target_cls: Tensor
    patches: Tensor
    target_patches: Tensor


class Distilled(NamedTuple):
    """One pass of the teacher and of all students.

    Attributes:
        teacher: The teacher's last block, of all patches.
        matches: Each student's tokens beside the teacher's.
    """

    teacher: Layer
    matches: dict[str, Match]


def match(tokens: Tensor, n_cls: int, teacher: Layer, keep: Tensor | None) -> Match:
    """Put a student's tokens beside the teacher's.

    Equally many class tokens are matched by index, other numbers mean against mean.

    Args:
        tokens: `(B, n_cls + n, D)`, the student's tokens in the teacher's width.
        n_cls: How many of them are class tokens.
        teacher: The teacher's last block, of which the tokens before the final norm are taken.
        keep: int64 `(B, n)`, the patches that the student saw; None is all.
    """
    target = teacher.raw_tokens[:, teacher.n_cls :]
    if keep is not None:
        target = gather_tokens(target, keep)
    ours, theirs = tokens[:, :n_cls], teacher.raw_cls
    if not n_cls or not teacher.n_cls:
        ours, theirs = ours[:, :0], theirs[:, :0]
    elif n_cls != teacher.n_cls:
        ours, theirs = ours.mean(dim=1, keepdim=True), theirs.mean(dim=1, keepdim=True)
    return Match(*to_float32((ours, theirs, tokens[:, n_cls:], target)))


def distances(tokens: Tensor, targets: Tensor, kind: Distance) -> Tensor:
    """Return how far tokens are from their targets: `(B, n, D)` twice to `(B, n)`.

    One minus the cosine, or the mean absolute or squared difference.
    """
    if kind == "cosine":
        return 1 - F.cosine_similarity(tokens, targets, dim=-1)
    difference = tokens - targets
    return (difference.abs() if kind == "l1" else difference.square()).mean(dim=-1)


def distillation_loss(found: Match, kind: Distance, weighting: Weighting) -> Tensor:
    """Return the loss of each image `(B,)`; the inputs' precision is the loss's.

    Args:
        found: What `match` returned.
        kind: How far a token is from its target.
        weighting: `halves`: class tokens count as much as patches; `tokens`: each token the same.
    """
    pairs = [(found.patches, found.target_patches)]
    if found.cls.shape[1]:
        pairs.append((found.cls, found.target_cls))
    parts = [distances(ours, theirs, kind) for ours, theirs in pairs]
    if weighting == "tokens":
        return torch.cat(parts, dim=1).mean(dim=1)
    return torch.stack([part.mean(dim=1) for part in parts]).mean(dim=0)


class TargetMeans:
    """The best that can be done without looking at an image, over all images that were added.

    A constant token for each class token, and one for all patches or one for each place. The mean
    does best by the squared difference, leaving the variance, and the mean direction by the
    cosine: that of unit vectors u with a constant c is at most the length of their mean, since
    mean(u . c) = mean(u) . c. The medians that the absolute difference asks for are no sums.

    Args:
        kind: As in `distances`.
    """

    def __init__(self, kind: Distance) -> None:
        self.kind = kind
        self._sums: Tensor | None = None

    def add(self, teacher: Layer, weight: Tensor) -> None:
        """Take in the teacher's tokens of a batch, each image with its weight `(B,)`."""
        if self.kind == "l1":
            return
        raw = in_float64(teacher.raw_tokens)  # a variance is left of the difference of two sums
        # The mean class token, for students of another number of them, stands behind the others.
        k = teacher.n_cls
        mean = raw[:, :k].mean(dim=1, keepdim=True) if k else raw[:, :0]
        targets = torch.cat([raw[:, :k], mean, raw[:, k:]], dim=1)
        if self.kind == "cosine":
            targets = F.normalize(targets, dim=-1)
        # Of each token the sum, the mean square over its channels, and the weight.
        square = targets.square().mean(dim=-1, keepdim=True)
        values = torch.cat([targets, square, torch.ones_like(square)], dim=-1)
        sums = (values * in_float64(weight)[:, None, None]).sum(dim=0)
        self._sums = sums if self._sums is None else self._sums + sums

    def reset(self) -> None:
        """Forget all that was added."""
        self._sums = None

    def sums(self) -> Tensor | None:
        """Return what was added, which adds up over processes; None of nothing."""
        return self._sums

    def losses(
        self, sums: Tensor, *, n_cls: int, teacher_cls: int, weighting: Weighting
    ) -> dict[str, Tensor]:
        """Return the losses of the best constants for a student: one token, and one at each place.

        Args:
            sums: Of all processes.
            n_cls: The student's number of class tokens.
            teacher_cls: The teacher's.
            weighting: As in `distillation_loss`.
        """
        k = teacher_cls
        patches = sums[k + (k > 0) :]
        cls = sums[:0] if not n_cls or not k else sums[:k] if n_cls == k else sums[k : k + 1]
        of_cls = [self._left(cls)] if len(cls) else []
        found = {}
        for name, rows in (("constant", patches.mean(dim=0, keepdim=True)), ("position", patches)):
            of_patches = self._left(rows).expand(len(patches))
            parts = [of_patches, *of_cls]
            found[name] = (
                torch.cat(parts).mean()
                if weighting == "tokens"
                else torch.stack([part.mean() for part in parts]).mean()
            )
        return found

    def _left(self, sums: Tensor) -> Tensor:
        """Return the loss that the best constant of each row leaves: `(rows,)`."""
        means = sums / sums[:, -1:]
        centre, square = means[:, :-2], means[:, -2]
        if self.kind == "cosine":
            return 1 - centre.norm(dim=-1)
        return square - centre.square().mean(dim=-1)
