"""What to say when another process of a run is lost: killed, or its machine cut off."""

from __future__ import annotations

from torch.distributed import DistNetworkError, DistStoreError

from pixio_lightning.errors import UserError

# gloo raises plain RuntimeErrors that begin with a file of its own, NCCL what it calls the cause.
_TEXTS = ("gloo/transport/", "Gloo connectFullMesh", "remote process exited")


def lost_process(error: Exception) -> UserError | None:
    """Return what to say of an error that the loss of another process caused; None for any other.

    A process that was killed is noticed at once, a machine that no longer answers when the timeout
    of the process group has passed.
    """
    text = " ".join(str(error).split())
    lost = isinstance(error, RuntimeError) and any(known in text for known in _TEXTS)
    if not lost and not isinstance(error, (DistNetworkError, DistStoreError)):
        return None
    return UserError(
        f"another process of this run was lost or does not answer ({text[:200]}): see what it said "
        "last, then run the same line again to go on; without its machine, with as large a global "
        "batch on fewer trainer.devices or trainer.num_nodes"
    )
