"""BackboneModule: what every LightningModule around a Backbone shares.

Construction on the meta device and loading in `configure_model`, sharding, the optimiser, and
what a checkpoint holds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torchmetrics import MeanMetric

from pixio_lightning import optim as optimisation
from pixio_lightning.backbone import Backbone
from pixio_lightning.errors import UserError
from pixio_lightning.optim import Optim
from pixio_lightning.run_folder import Metrics


class BackboneModule(L.LightningModule):
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

    def __init__(self, backbone: Backbone, *, optim: Optim) -> None:
        super().__init__()
        self.backbone = backbone
        self.optim = optim
        self.decoder: nn.Module | None = None
        self.config: dict[str, Any] = {}
        self._configured = False
        # "disable": looking for NaN in every step would wait for the device.
        self._train_loss = MeanMetric(nan_strategy="disable")

    def build(self, backbone: Backbone) -> nn.Module | None:
        """Return the module to train beside the backbone, sized by it; None for none."""
        raise NotImplementedError

    def report(self, metrics: Metrics) -> dict[str, str]:
        """Return what to say of a finished run, by name."""
        return {}

    def predicted(self, folder: Path) -> str:
        """Return what to say once `predict` has written its files."""
        return f"predictions: {folder / 'predictions'}"

    def configure_model(self) -> None:
        """Load the backbone and build the decoder, once; shard both where the strategy asks.

        Raises:
            UserError: A frozen backbone was to be sharded.
        """
        if self._configured:
            return
        if self.device_mesh is not None and self.backbone.frozen:
            # Its checkpoint is a folder that is read key by key, where a frozen backbone has none.
            raise UserError(
                "with/fsdp shards what is trained, but the backbone is frozen: leave it out "
                "(trainer.strategy ddp runs on many devices), or set model.backbone.tune"
            )
        self._configured = True
        self.backbone.load()
        self.decoder = self.build(self.backbone)
        if self.backbone.compile_blocks and self.decoder is not None:
            for block in blocks_of(self.decoder):
                block.compile()
        if self.device_mesh is not None:
            # The strategy's mesh, not the module's: ShardedStrategy lays its own.
            mesh = self.trainer.strategy.device_mesh["data_parallel"]
            for module in (self.backbone, self.decoder):
                shard(module, mesh)

    def configure_optimizers(self) -> dict[str, Any]:
        """Build AdamW and its schedule from `optim`, the global batch and the number of steps."""
        return optimisation.build(
            self,
            self.optim,
            global_batch=self.global_batch,
            total_steps=self.trainer.max_steps,
            depth=self.backbone.depth,
        )

    @property
    def global_batch(self) -> int:
        """Images per optimiser step over all processes."""
        data = getattr(self.trainer, "datamodule", None)
        if data is None or not hasattr(data, "batch_size"):
            raise UserError("the data module must have batch_size, from which lr is scaled")
        return data.batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches

    @property
    def backbone_digest(self) -> str:
        """Hash of the backbone's tensors; of a frozen one as they were read."""
        return self.backbone.digest

    def log_training(self, loss: Tensor) -> None:
        """Take in the loss of a step and, every `log_every_n_steps`, log their mean and the rate.

        Raises:
            UserError: The mean is not finite.
        """
        self._train_loss.update(loss.detach())
        # Logging every step costs half a millisecond and, on a GPU, a synchronisation.
        if (self.global_step + 1) % self.trainer.log_every_n_steps:
            return
        mean = self._train_loss.compute()
        self._train_loss.reset()
        if not torch.isfinite(mean):
            raise UserError(
                f"the training loss is {mean.item()} at step {self.global_step + 1}; the last "
                "checkpoint is from before: lower model.optim's learning rate or warm up longer"
            )
        values = {"train/loss": mean, "train/lr": self.lr_schedulers().get_last_lr()[0]}
        self.log_dict(values, logger=False)
        # To the loggers at once: Lightning writes after the step's checkpoint, so that a run killed
        # in between would come back without this row.
        for logger in self.loggers:
            logger.log_metrics({k: float(v) for k, v in values.items()}, step=self.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Describe the model in plain data; leave a frozen backbone's tensors out."""
        checkpoint["pixio"] = {
            "class": f"{type(self).__module__}:{type(self).__qualname__}",
            "config": self.config,
            "backbone": self.backbone.identity,
        }
        if self.backbone.frozen:
            checkpoint["pixio"]["backbone_digest"] = self.backbone_digest
            checkpoint["state_dict"] = {
                name: tensor
                for name, tensor in checkpoint["state_dict"].items()
                if not name.startswith("backbone.")
            }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put a frozen backbone's live tensors back, so that loading stays strict.

        Raises:
            UserError: The checkpoint was trained on another frozen backbone.
        """
        stored = checkpoint.get("pixio", {}).get("backbone_digest")
        if stored is None:
            return
        self.configure_model()
        live: dict[str, Tensor] = self.backbone.vit.state_dict()
        if self.backbone_digest != stored:
            raise UserError(
                f"the checkpoint's head was trained on a frozen backbone with digest {stored}, "
                f"but weights '{self.backbone.weights}' have {self.backbone_digest}; "
                "give the backbone it was trained on"
            )
        checkpoint["state_dict"] |= {f"backbone.vit.{k}": v for k, v in live.items()}


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """Return the transformer blocks of a backbone or decoder, outermost `blocks` lists only."""
    return [
        block
        for name, child in module.named_modules()
        if name.split(".")[-1] == "blocks" and isinstance(child, (nn.ModuleList, nn.Sequential))
        for block in child
    ]


def shard(module: nn.Module | None, mesh: Any) -> None:
    """Shard every block, then what remains, over the data-parallel mesh (FSDP2)."""
    if module is None or not any(True for _ in module.parameters()):
        return
    for block in blocks_of(module):
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)
