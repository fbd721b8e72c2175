"""Processes of a run: parameters sharded over them (FSDP2), and what to say when one is lost.

Sharded, each holds its part of every parameter, and none the whole.

The first process builds the model on its CPU, as a run without sharding does; the others know its
shapes alone. Then every tensor is cut and sent, one after the other, so that a device never holds
more than its shards and one whole tensor.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from datetime import timedelta
from itertools import chain
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed import DistNetworkError, DistStoreError, default_pg_timeout
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from pixio_lightning.errors import UserError
from pixio_lightning.files import replace_folder
from pixio_lightning.models.blocks import blocks_of
from pixio_lightning.models.weights import sharded
from pixio_lightning.training.checkpoints.checkpoint_io import local_path
from pixio_lightning.training.checkpoints.form import check_form

# gloo raises plain RuntimeErrors that begin with a file of its own, NCCL what it calls the cause.
_LOST = ("gloo/transport/", "Gloo connectFullMesh", "remote process exited")


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2: parameters, gradients and optimiser state sharded over all processes.

    A checkpoint is a folder, to which every process writes its part; it is written aside and
    renamed when all have finished.

    Args:
        timeout: How long processes wait for one another, for the first one's reading of data or
            for a checkpoint, before the run ends.
    """

    def __init__(self, timeout: timedelta | None = default_pg_timeout) -> None:
        # Lightning's own "auto" means tensor parallelism inside a node; `device_mesh` says what
        # is meant here, and needs no count of processes in the recipe.
        super().__init__(data_parallel_size="auto", tensor_parallel_size="auto", timeout=timeout)
        self._mesh: DeviceMesh | None = None

    def setup_environment(self) -> None:
        """Open the process group and lay the mesh over it."""
        super().setup_environment()
        names = ("data_parallel", "tensor_parallel")
        self._mesh = init_device_mesh(
            self.root_device.type, (self.world_size, 1), mesh_dim_names=names
        )

    def setup(self, trainer: L.Trainer) -> None:
        """Evaluate without gradients, but not in inference mode, whose tensors FSDP2 refuses."""
        fit = trainer.fit_loop.epoch_loop.val_loop
        for loop in (fit, trainer.validate_loop, trainer.test_loop, trainer.predict_loop):
            loop.inference_mode = False
        super().setup(trainer)

    @property
    def device_mesh(self) -> DeviceMesh:
        """All processes along `data_parallel`."""
        assert self._mesh is not None, "setup_environment lays the mesh"
        return self._mesh

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | os.PathLike, storage_options: Any = None
    ) -> None:
        """Write the folder of all parts, whole or not at all."""
        target = local_path(self.broadcast(str(filepath)))
        aside = target.with_name(f".{target.name}.tmp")
        if self.is_global_zero:
            shutil.rmtree(aside, ignore_errors=True)
        self.barrier("aside")
        super().save_checkpoint(checkpoint, aside, storage_options)
        self.barrier("written")
        if self.is_global_zero:
            replace_folder(aside, target)
        self.barrier("renamed")

    def load_checkpoint(
        self, checkpoint_path: str | os.PathLike, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read the folder, tensors and plain data only.

        Raises:
            UserError: It is damaged, or holds code.
        """
        path = local_path(checkpoint_path)
        with sharded.checked(path):
            checkpoint = super().load_checkpoint(path, weights_only=True)
        check_form(checkpoint, path)
        return checkpoint


def mixed_precision(precision: str, device_type: str) -> MixedPrecisionPolicy:
    """Return in which precision blocks are gathered and their gradients are summed.

    Autocast stays on, and with it the float32 residual stream: inputs are not cast. It would cast
    the weights of products to bfloat16 anyway, so that gathering them so halves the traffic and
    changes only vectors, of norms for example, by their rounding.

    Args:
        precision: The trainer's.
        device_type: `cuda` or `cpu`, whose layer_norm takes no bfloat16 weights beside float32
            inputs: there, all is gathered in float32.
    """
    if precision != "bf16-mixed" or device_type == "cpu":
        return MixedPrecisionPolicy()
    return MixedPrecisionPolicy(
        param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
    )


def shard(module: nn.Module, mesh: DeviceMesh, *, policy: MixedPrecisionPolicy) -> None:
    """Shard every block, then what remains, over the data-parallel mesh.

    What remains is little, and has parts that compute in float32 even under autocast, as embeddings
    and the ends of heads: only the blocks follow `policy`.
    """
    for block in blocks_of(module):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(module, mesh=mesh)


def of_first(call: Callable[[], Any], trainer: Any) -> Any:
    """Return in all processes what a call returns in the first one.

    Raises:
        UserError: The first process raised it, or an OSError: then all do, instead of waiting.
        OSError: In the first process.
    """
    found = failure = None
    if trainer.is_global_zero:
        try:
            found = call()
        except (UserError, OSError) as error:
            failure = error
    text, found = trainer.strategy.broadcast((failure and str(failure), found))
    if failure is not None:
        raise failure
    if text is not None:
        raise UserError(text)
    return found


def build_once(build: Callable[..., None], trainer: Any) -> None:
    """Build in the first process and empty in the others, all left with the first's random state.

    Args:
        build: Builds the model; with `empty=True` without values.
        trainer: The trainer, for `of_first`, which also says what is raised.
    """

    def whole() -> Tensor:
        build()
        return torch.get_rng_state()

    state = of_first(whole, trainer)
    if not trainer.is_global_zero:
        build(empty=True)
    torch.set_rng_state(state)


def distribute(
    module: nn.Module | None,
    mesh: DeviceMesh,
    *,
    policy: MixedPrecisionPolicy,
    device: torch.device,
) -> None:
    """Shard a module of which the first process of the mesh has the values, and fill the shards.

    Args:
        module: On the CPU in the first process, on the meta device in the others; None is none.
        mesh: The data-parallel processes.
        policy: Precision of the blocks.
        device: Where the shards belong.
    """
    if module is None:
        return
    first = mesh.get_local_rank() == 0
    whole = {name: tensor.detach() for name, tensor in _tensors(module)} if first else {}
    module.to("meta")
    if any(True for _ in module.parameters()):
        shard(module, mesh, policy=policy)
    module.to_empty(device=device)
    for name, tensor in _tensors(module):
        if first:
            full = whole.pop(name).to(device)
        else:
            full = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
        if isinstance(tensor, DTensor):
            # Sends every process its part of what the first one has.
            full = distribute_tensor(full, tensor.device_mesh, tensor.placements)
        else:
            dist.broadcast(full, group=mesh.get_group(), group_src=0)
        with torch.no_grad():
            tensor.copy_(full)


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return list(chain(module.named_parameters(), module.named_buffers()))


def refuse_handed_back(strategy: Any) -> None:
    """Refuse to train in processes that end with the training and hand weights alone back.

    What the module has learned of its data, and a decoder that is built there, would be lost.

    Raises:
        UserError: The strategy launches such processes, as `ddp_spawn` and `ddp_notebook` do.
    """
    if hasattr(strategy.launcher, "update_main_process_results"):
        raise UserError(
            "this strategy trains in processes that end with the training, and the model would be "
            "lost: give trainer.strategy ddp, in a script; in a notebook, trainer.devices 1"
        )


def lost_process(error: Exception) -> UserError | None:
    """Return what to say of an error between processes, such as a lost one; None for any other.

    A process that was killed is noticed at once, a machine that no longer answers when the timeout
    of the process group has passed. Where the processes cannot meet because another program has
    their port, that is said instead.
    """
    text = " ".join(str(error).split())
    if isinstance(error, DistNetworkError) and "EADDRINUSE" in text:
        return UserError(
            f"the port at which the processes of this run meet is in use ({text[:200]}): give "
            "another one as MASTER_PORT, or as --master-port of torchrun"
        )
    lost = isinstance(error, RuntimeError) and any(known in text for known in _LOST)
    if not lost and not isinstance(error, (DistNetworkError, DistStoreError)):
        return None
    return UserError(
        f"another process of this run was lost or does not answer ({text[:200]}): see what it said "
        "last, then run the same line again to go on; without its machine, with as large a global "
        "batch on fewer trainer.devices or trainer.num_nodes"
    )
