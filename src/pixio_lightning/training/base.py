"""BackboneModule: what every LightningModule around a Backbone shares.

Construction on the meta device and loading in `configure_model`, sharding, the optimiser, and
what a checkpoint holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pixio_lightning.data.batches import weighted
from pixio_lightning.errors import UserError, visible_lines
from pixio_lightning.files import output_path
from pixio_lightning.models.backbone import Backbone
from pixio_lightning.models.blocks import blocks_of, compile_blocks
from pixio_lightning.training import optim as optimisation
from pixio_lightning.training import strategy as sharding
from pixio_lightning.training import visualize
from pixio_lightning.training.checkpoints.fill import refuse_thawed
from pixio_lightning.training.checkpoints.finite import first_not_finite, not_finite
from pixio_lightning.training.checkpoints.running_mean import RunningMean, begin
from pixio_lightning.training.checkpoints.stored import StoredModule
from pixio_lightning.training.optim import Optim, Part
from pixio_lightning.training.precision import taken_by
from pixio_lightning.training.run_folder import Metrics


class BackboneModule(StoredModule):
    """A LightningModule that owns a backbone and, once configured, one decoder.

    It owns no bare parameter and calls both through their forward, so that DDP, FSDP and
    torch.compile find what they expect.

    Args:
        backbone: The encoder.
        optim: Optimiser and schedule.
    """

    # What best.ckpt is chosen by: a logged metric, and whether less or more is better.
    monitor: tuple[str, str] = ("val/loss", "min")
    # Whether an evaluation looks for the run folder's checkpoint.
    resumes = True
    # Whether the backbone itself is what is trained: then a run that names no precision takes the
    # one its device is fastest in. What is measured on a backbone does not depend on the device.
    pretrains = False

    def __init__(self, backbone: Backbone, *, optim: Optim) -> None:
        super().__init__()
        self.backbone = backbone
        self.optim = optim
        self.decoder: nn.Module | None = None
        self.config: dict[str, Any] = {}
        self._configured = False
        self._settings: list[dict[str, Any]] = []
        self._shown: dict[str, Path] = {}  # pictures of predictions by their labels
        self._train_loss = RunningMean()

    @property
    def trains(self) -> bool:
        """Whether there is anything to train."""
        return True

    def build(self, backbone: Backbone) -> nn.Module | None:
        """Return the module to train beside the backbone, sized by it; None for none."""
        raise NotImplementedError

    def read_data_attributes(self, data: Any) -> None:
        """Take from a data module what must be known of it, or refuse it.

        Raises:
            UserError: Its images have other channels than the backbone takes.
        """
        given, taken = getattr(data, "channels", None), self.backbone.channels
        if given not in (None, taken):
            raise UserError(
                f"the backbone takes images of {taken} channels (backbone.model_args.in_chans, or "
                f"what its weights are made for), but {type(data).__name__} gives {given}: leave "
                "in_chans out, or give data of your own that says channels"
            )

    def require_of(self, data: Any) -> None:
        """Take from a data module all that must be known of it; raises as that does."""
        self.read_data_attributes(data)

    def facts(self) -> dict[str, str]:
        """Return what to say of a run's model beside its backbone, by name."""
        return {}

    def training_values(self) -> dict[str, Tensor]:
        """Return what to log of the batches since it was asked last, beside their mean loss."""
        return {}

    def report(self, metrics: Metrics) -> dict[str, str]:
        """Return what to say of a finished run, by name."""
        return {}

    def predictions_text(self, folder: Path) -> str:
        """Return what to say once `predict` has written its files."""
        return f"predictions: {folder / 'predictions'}"

    def note(self, text: str) -> None:
        """Print a line, once for all processes; nothing where it is empty."""
        if text and (self.attached is None or self.trainer.is_global_zero):
            print(visible_lines(text), flush=True)

    def show(
        self,
        folder: Path,
        name: str,
        panel: visualize.Panel,
        *,
        suffix: str = "_colour.png",
        label: str = "",
    ) -> None:
        """Write the picture of a prediction, which is also shown on the contact sheet.

        Args:
            folder: Where predictions go.
            name: Of the sample.
            panel: The picture.
            suffix: What is put behind the name.
            label: What stands above it on the sheet; the name by default.
        """
        path = output_path(folder, name, suffix)
        visualize.write(path, panel)
        if len(self._shown) < visualize.ON_A_SHEET:
            self._shown[label or name] = path

    def on_predict_start(self) -> None:
        """Begin a contact sheet."""
        self._shown = {}

    def on_predict_end(self) -> None:
        """Show the first pictures on one sheet, `predictions.png` in the run folder."""
        if len(self._shown) > 1 and self.trainer.is_global_zero:
            path = Path(self.trainer.default_root_dir) / "predictions.png"
            visualize.save(path, visualize.contact_sheet(self._shown))
            self.note(f"the first {len(self._shown)} on one sheet: {path}")

    @property
    def meters(self) -> Iterable[Any]:
        """What an evaluation adds up, and can be `reset`."""
        return ()

    def on_validation_epoch_start(self) -> None:
        """Begin with nothing: an evaluation before may have been broken off."""
        for meter in self.meters:
            meter.reset()

    on_test_epoch_start = on_validation_epoch_start

    @contextmanager
    def in_mode(self, *, training: bool) -> Iterator[None]:
        """Be in training or evaluation mode, then every part as it was."""
        before = [(part, part.training) for part in self.modules()]
        self.train(training)
        try:
            yield
        finally:
            for part, was in before:
                part.training = was

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Move a batch, in float32 what is in float64 where the device has none."""
        batch = batch if self.trainer.training else weighted(batch)
        return super().transfer_batch_to_device(taken_by(device, batch), device, dataloader_idx)

    def configure_model(self) -> None:
        """Load the backbone and build the decoder, once; shard both where the strategy asks.

        Raises:
            UserError: A frozen backbone was to be sharded; or the training would stay in a process
                that ends with it.
        """
        begin(self)
        if self.fitting and not self.config:  # a run of the command line is in its folder
            sharding.refuse_handed_back(self.trainer.strategy)
        if self._configured:
            return
        if self.device_mesh is not None and self.backbone.frozen:
            # Its checkpoint is a folder that is read key by key, where a frozen backbone has none.
            raise UserError(
                "with/fsdp shards what is trained, but the backbone is frozen: leave it out "
                "(trainer.strategy ddp runs on many devices), or set model.backbone.tune"
            )
        self._configured = True
        if self.device_mesh is None:
            self._build()
        else:
            # The strategy's mesh, not the module's: ShardedStrategy lays its own.
            strategy = self.trainer.strategy
            mesh = strategy.device_mesh["data_parallel"]
            sharding.build_once(self._build, self.trainer)
            policy = sharding.mixed_precision(self.trainer.precision, mesh.device_type)
            for module in (self.backbone, self.decoder):
                sharding.distribute(module, mesh, policy=policy, device=strategy.root_device)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move the module.

        Raises:
            UserError: It would be cast to half precision: metres and labels of a batch would lose
                their digits too.
        """
        dtype = fn(torch.empty(0, dtype=torch.float32, device="cpu")).dtype
        if dtype.itemsize < torch.float32.itemsize:
            raise UserError(
                f"{type(self).__name__} keeps its weights in float32, not {dtype}: half precision "
                "is trainer.precision bf16-mixed, or torch.autocast around `predict`"
            )
        return super()._apply(fn, recurse)

    def _build(self, *, empty: bool = False) -> None:
        """Load the backbone and build the decoder; empty: without values, on the meta device."""
        # Not on the device: one seed is the same start on all of them, sharded or not.
        with torch.device("meta" if empty else "cpu"):
            if empty:
                self.backbone.load_empty()
            else:
                self.backbone.load()
            self.decoder = self.build(self.backbone)
        if self.backbone.compile_blocks and self.decoder is not None:
            compile_blocks(blocks_of(self.decoder))

    @property
    def parts(self) -> list[Part]:
        """What is trained; of several parts each has settings, and is clipped, on its own."""
        return [Part(self, self.optim, self.backbone.blocks_run)]

    def configure_optimizers(self) -> dict[str, Any]:
        """Build AdamW and its schedule from `optim`, the global batch and the number of steps."""
        built = optimisation.build(
            self.parts,
            global_batch=self.global_batch,
            total_steps=self.trainer.max_steps,
            # A fused step would undo float16's loss scaling only after gradients were clipped.
            fused=self.trainer.precision != "16-mixed",
        )
        if built:
            self._settings = optimisation.settings(built["optimizer"])
        return built

    def on_train_start(self) -> None:
        """Be in training mode; let the configuration win over a checkpoint's rates and decay.

        Raises:
            UserError: The frozen backbone is to be trained.
        """
        refuse_thawed(self.backbone)
        if not self.training:  # as `load` returns it: Lightning keeps every module's mode
            self.train()
        schedules = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        # Those of a `configure_optimizers` of one's own are its own to keep.
        if type(self).configure_optimizers is BackboneModule.configure_optimizers:
            optimisation.apply_settings(self.trainer.optimizers, schedules, self._settings)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients of a step as `trainer.gradient_clip_val` says.

        Lightning's own refuses fused optimisers under any mixed precision, for the sake of loss
        scaling, which bfloat16 has none of.
        """
        by_value = gradient_clip_algorithm == "value"
        clip: Any = nn.utils.clip_grad_value_ if by_value else nn.utils.clip_grad_norm_
        for part in self.parts if gradient_clip_val else ():
            clip(part.module.parameters(), gradient_clip_val)

    @property
    def global_batch(self) -> int:
        """Images per optimiser step over all processes."""
        data = getattr(self.trainer, "datamodule", None)
        if data is None or not hasattr(data, "batch_size"):
            raise UserError("the data module must have batch_size, from which lr is scaled")
        return data.batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches

    @property
    def probed_backbone(self) -> Any:
        """The backbone that probes look at while it is trained."""
        return self.backbone

    def gathered(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes in the order of the data, of which each has every n-th.

        All have as many, because the last ones are filled up.
        """
        if self.trainer.world_size == 1:
            return rows
        return self.all_gather(rows).transpose(0, 1).flatten(0, 1)

    def log_training(self, loss: Tensor) -> None:
        """Take in the loss of a batch; `optimizer_step` logs the mean of all since it last did."""
        self._train_loss.update(loss.detach())

    def log_evaluation(self, values: Mapping[str, Any]) -> None:
        """Log what an evaluation has measured, as `val/NAME` or `test/NAME`."""
        stage = "test" if self.trainer.testing else "val"
        named = {f"{stage}/{name}": value for name, value in values.items()}
        fitting = self.trainer.state.fn == "fit"
        for logger in self.loggers if fitting else ():
            # In the row of the step before; the pass before the first one begins the curve.
            row = max(self.global_step - 1, 0)
            logger.log_metrics({name: float(value) for name, value in named.items()}, step=row)
            logger.save()
        if not self.trainer.sanity_checking:
            for name, value in named.items():
                self.log(name, value, logger=not fitting, sync_dist=True)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take a step; every `log_every_n_steps`, log the mean loss and the highest rate.

        Here, because every batch that is accumulated has been seen, and nothing of the step has
        been saved: a run killed after the save would come back without this row.

        Raises:
            UserError: The mean loss is not finite; or parameters were added to the optimiser.
        """
        for config in self.trainer.lr_scheduler_configs:
            optimisation.refuse_added(config.scheduler)
        super().optimizer_step(*args, **kwargs)
        # Logging every step costs half a millisecond and, on a GPU, a synchronisation.
        step, every = self.global_step + 1, self.trainer.log_every_n_steps
        if not every or step % every:  # 0 never logs, as Lightning has it
            return
        mean = self._train_loss.compute()
        self._train_loss.reset()
        if not torch.isfinite(mean):
            raise self._not_finite(f"the training loss is {mean.item()}", step)
        # The rate of the head; layer decay gives the first group, the patches, a fraction of it.
        # Of the optimiser: a scheduler from a checkpoint still tells that of its own run.
        rate = max(group["lr"] for one in self.trainer.optimizers for group in one.param_groups)
        of_data = getattr(getattr(self.trainer, "datamodule", None), "training_values", dict)
        values = {"train/loss": mean, "train/lr": rate} | self.training_values() | of_data()
        self.log_dict(values, logger=False)
        for logger in self.loggers:
            logger.log_metrics({k: float(v) for k, v in values.items()}, step=self.global_step)

    def _not_finite(self, what: str, step: int) -> UserError:
        last = Path(self.trainer.default_root_dir) / "last.ckpt"
        return not_finite(what, step, last)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Describe the model, see `StoredModule`.

        Raises:
            UserError: A weight or a state of the optimiser is not finite: no such thing is saved.
        """
        self._refuse_not_finite()
        super().on_save_checkpoint(checkpoint)

    def _refuse_not_finite(self) -> None:
        trainer = self.attached
        if trainer is None or not trainer.optimizers:
            return
        bad = first_not_finite(self, trainer.optimizers)
        if trainer.strategy.reduce_boolean_decision(bad is not None, all=False):
            where = f"{bad or 'a weight on another process'} is not finite"
            raise self._not_finite(where, trainer.global_step)
