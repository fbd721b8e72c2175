"""Distillation: smaller encoders learn the tokens of a larger one that is frozen.

Shapes: B batch, K class tokens, N = h*w patches, n visible, D width of the teacher.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torchmetrics import SumMetric

from pixio_lightning.errors import UserError, one_of
from pixio_lightning.keyed import Purpose, RandomKey, fold, key_of
from pixio_lightning.models.backbone import Backbone
from pixio_lightning.models.masking import block_mask, count_blocks
from pixio_lightning.models.weights.licences import distilled
from pixio_lightning.pretraining.baselines import beside_baselines, digits
from pixio_lightning.pretraining.pretraining import Pretraining
from pixio_lightning.pretraining.student import ProjectedBackbone, Student, check_student
from pixio_lightning.pretraining.token_loss import (
    Distance,
    Distilled,
    TargetMeans,
    Weighting,
    distillation_loss,
    match,
)
from pixio_lightning.pretraining.token_panel import token_panel
from pixio_lightning.training import visualize
from pixio_lightning.training.checkpoints.running_mean import RunningMean
from pixio_lightning.training.optim import Optim, Part
from pixio_lightning.training.precision import full_precision
from pixio_lightning.training.run_folder import Metrics

# What needs no looking: logged as val/NAME, and told under these titles.
_BASELINES = {"constant": "best constant tokens", "position": "best tokens of each place"}


class Distillation(Pretraining):
    """Train students on the tokens of a frozen backbone, the teacher (Pixio's own smaller models).

    The teacher sees each batch once, whole, without a gradient; its target is what its last block
    puts out before the final norm. A student sees it under a mask of its own; its normed tokens go
    through a projector of its own and are held against the target at the same places (arXiv
    2512.15715). Nothing is shared among students but the teacher's pass: the start,
    masks and drop path of each are keyed by its name, the gradient of a sum is that of its terms,
    AdamW looks at one parameter at a time, and gradients are clipped for each. So one that is
    trained beside others is, on a processor bit for bit, the one that is trained alone.

    A checkpoint holds every student as an ordinary backbone: `weights` is the file, or
    `FILE:STUDENT` where it holds several. The teacher is held by its digest.

    Args:
        backbone: The teacher; `layers` may name an earlier block than its last. With `compile` the
            students are compiled, too.
        students: By name.
        loss: How far a token is from its target: one minus the cosine, or the mean absolute or
            squared difference.
        weighting: `halves`: class tokens and patches count half each; `tokens`: every token the
            same.
        optim: Optimiser and schedule of students without their own.
        seed: Seed of start, masks and drop path.

    Raises:
        UserError: The teacher is trained, or random without a seed that asks for it; a student is
            frozen, has another grid of tokens or a name that cannot be used; or there is none.
    """

    model_as_trained = ("loss", "weighting", "backbone.layers")

    def __init__(
        self,
        backbone: Backbone,
        students: dict[str, Student],
        *,
        loss: Distance = "cosine",
        weighting: Weighting = "halves",
        optim: Optim = Optim(),  # noqa: B008 (frozen)
        seed: int = 0,
    ) -> None:
        super().__init__(backbone, optim=optim, seed=seed)
        one_of("model.loss", loss, get_args(Distance))
        one_of("model.weighting", weighting, get_args(Weighting))
        _check_teacher(backbone)
        if not students:
            raise UserError("there is nothing to train: give model.students, by name")
        for name, student in students.items():
            check_student(name, student, backbone)
            own = student.backbone
            own.licence = distilled(own.licence, backbone.name, backbone.licence)
        self.students, self.loss, self.weighting = students, loss, weighting
        # Not MeanMetric: it would wait for the device, or, told not to, drop the weights.
        sums = [SumMetric(nan_strategy="disable") for _ in range(len(students) + 1)]
        self._val: Any = nn.ModuleList(sums)  # of each student, and of the weights
        means = [RunningMean() for _ in students]
        self._train: Any = nn.ModuleList(means if len(means) > 1 else [])
        self._targets = TargetMeans(loss)

    # --- construction -------------------------------------------------------------------------

    def check_mask(self, grid: tuple[int, int]) -> None:
        """Refuse a grid of tokens that are not whole blocks of a student's mask, which is named."""
        for name, student in self.students.items():
            self._blocks(name, student, grid)

    @property
    def protocol(self) -> str:
        """How far tokens are from the teacher's, and how much of an image each student sees."""
        hidden = ", ".join(f"{s.mask_ratio:.4g} from {n}" for n, s in self.students.items())
        return f"{self.loss} distance, weighting {self.weighting}; hidden: {hidden}"

    def build(self, backbone: Backbone) -> nn.ModuleDict:
        """Return the students; each starts from random numbers of its own."""
        return nn.ModuleDict(
            {name: self._start(name, s.backbone, backbone) for name, s in self.students.items()}
        )

    def _start(self, name: str, student: Backbone, teacher: Backbone) -> ProjectedBackbone:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(fold(self.seed, key_of(name)))
            return ProjectedBackbone(student, teacher.embed_dim)

    @property
    def _models(self) -> dict[str, Any]:
        assert isinstance(self.decoder, nn.ModuleDict), "configure_model builds the students"
        return dict(self.decoder.items())

    @property
    def probed_backbone(self) -> Backbone:
        """The first student's."""
        return next(iter(self.students.values())).backbone

    @property
    def parts(self) -> list[Part]:
        """Every student with its optimiser's settings."""
        return [
            Part(self._models[name], s.optim or self.optim, s.backbone.blocks_run)
            for name, s in self.students.items()
        ]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Describe the students, so that each can be read as a backbone."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["pixio"]["students"] = {
            name: student.backbone.identity for name, student in self.students.items()
        }

    # --- a batch ------------------------------------------------------------------------------

    def forward(self, images: Tensor, random_key: RandomKey | None) -> Distilled:
        """Encode images once with the teacher, and with every student under its mask.

        Args:
            images: uint8 `(B, 3, H, W)`.
            random_key: Random key for masks and drop path; None hides nothing.
        """
        with torch.no_grad():
            teacher = self.backbone(images).layers[-1]
        assert teacher.grid is not None, "the teacher sees all patches"
        matches = {}
        for name, student in self.students.items():
            own = None
            if random_key is not None:
                own = random_key._replace(seed=fold(random_key.seed, key_of(name)))
            keep = self._keep(name, student, teacher.grid, own)
            tokens = self._models[name](images, keep, own)
            matches[name] = match(tokens, student.backbone.n_cls_tokens, teacher, keep)
        return Distilled(teacher, matches)

    def _keep(
        self, name: str, student: Student, grid: tuple[int, int], random_key: RandomKey | None
    ) -> Tensor | None:
        """Return the patches `(B, n)` that a student sees; None for all."""
        blocks = self._blocks(name, student, grid)
        if random_key is None or not blocks:
            return None
        noise = random_key.uniform(blocks, Purpose.MASK)
        return block_mask(noise, grid=grid, block=student.mask_grid, ratio=student.mask_ratio).keep

    def _blocks(self, name: str, student: Student, grid: tuple[int, int]) -> int:
        """Return how many blocks of patches are hidden or not; 0 where nothing is hidden."""
        if not student.mask_ratio:
            return 0
        try:
            return count_blocks(grid, student.mask_grid, student.mask_ratio)[0]
        except UserError as error:
            text = str(error).replace("model.mask", f"model.students.{name}.mask")
            raise UserError(text) from None

    def _losses(self, result: Distilled) -> dict[str, Tensor]:
        """Return each student's losses `(B,)`, without autocast."""
        with full_precision(self.device):
            return {
                name: distillation_loss(found, self.loss, self.weighting)
                for name, found in result.matches.items()
            }

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the sum of the students' losses: each gets the gradient of its own."""
        result = self(batch["image"], RandomKey(batch["key"], self.seed, self.global_step))
        losses = [loss.mean() for loss in self._losses(result).values()]
        for metric, loss in zip(self._train, losses, strict=False):  # none for one student alone
            metric.update(loss.detach())
        total = torch.stack(losses).sum()
        self.log_training(total / len(losses))
        return total

    def training_values(self) -> dict[str, Tensor]:
        """Return the mean training loss of each of several students."""
        values = {}
        for name, metric in zip(self.students, self._train, strict=False):
            values[f"train/{name}"] = metric.compute()
            metric.reset()
        return values

    # --- evaluation ---------------------------------------------------------------------------

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Accumulate the losses of held-out images under fixed masks, and their baselines."""
        weight = batch["weight"]
        result = self(batch["image"], self.fixed_draw(batch))
        for metric, loss in zip(self._val, self._losses(result).values(), strict=False):
            metric.update(loss * weight)
        self._val[-1].update(weight)
        with full_precision(self.device):
            self._targets.add(result.teacher, weight)

    test_step = validation_step

    @property
    def meters(self) -> Iterable[Any]:
        """The students' losses, the weights, and what baselines need of the targets."""
        return (*self._val, self._targets)

    def on_validation_epoch_end(self) -> None:
        """Log `val/loss`, the mean of all students, beside constants that do not look."""
        *sums, weight = [metric.compute() for metric in self._val]
        losses = {name: s / weight for name, s in zip(self.students, sums, strict=True)}
        values = {"loss": torch.stack(list(losses.values())).mean()}
        values |= losses if len(losses) > 1 else {}
        if (targets := self._targets.sums()) is not None:
            values |= self._constants(self.trainer.strategy.reduce(targets, reduce_op="sum"))
        self.log_evaluation(values)

    on_test_epoch_end = on_validation_epoch_end

    def _constants(self, sums: Tensor) -> dict[str, Tensor]:
        """Return the losses of the best constants, means over the students."""
        found = [
            self._targets.losses(
                sums,
                n_cls=student.backbone.n_cls_tokens,
                teacher_cls=self.backbone.n_cls_tokens,
                weighting=self.weighting,
            )
            for student in self.students.values()
        ]
        return {
            name: torch.stack([losses[name] for losses in found]).mean().float()
            for name in _BASELINES
        }

    def drawn(self, batch: dict[str, Any]) -> tuple[visualize.Panel, list[str]]:
        """Draw the teacher's tokens beside the students', of which nothing is hidden.

        Returns how far each student's are from it.
        """
        result = self(batch["image"], None)
        losses = {name: loss.tolist() for name, loss in self._losses(result).items()}
        texts = [
            "loss of " + ", ".join(f"{name} {loss[i]:.3f}" for name, loss in losses.items())
            for i in range(len(batch["image"]))
        ]
        return token_panel(batch["image"], result, self.loss), texts

    def facts(self) -> dict[str, str]:
        """Return what each student is, and how much of an image it sees."""
        told = {}
        for name, student in self.students.items():
            backbone = student.backbone
            size = sum(p.numel() for p in backbone.parameters()) / 1e6
            seen = f"{1 - student.mask_ratio:.0%} of an image seen, drop path {backbone.drop_path}"
            rate = student.optim and (student.optim.lr or student.optim.blr)
            own = f", {'lr' if student.optim.lr else 'blr'} {rate}" if student.optim else ""
            told[f"student {name}"] = f"{backbone.name}, {size:.1f} M parameters, {seen}{own}"
        return told

    def report(self, metrics: Metrics) -> dict[str, str]:
        """Return the held-out loss at the start and the end, beside what needs no looking."""
        facts = beside_baselines(metrics, _BASELINES)
        for name in self.students if len(self.students) > 1 else ():
            if found := metrics.first_and_last(f"val/{name}"):
                facts[f"student {name}"] = f"first {digits(found[0])}, last {digits(found[1])}"
        return facts


def _check_teacher(teacher: Backbone) -> None:
    if not teacher.frozen:
        raise UserError("model.backbone is the teacher: set model.backbone.tune to frozen")
    if teacher.weights == "random":
        raise UserError(
            "the teacher's weights are random, and so would be what is learned: give "
            "model.backbone.weights, or random:SEED to try the machinery out"
        )
