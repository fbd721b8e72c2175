"""Robot policies: imitate demonstrations from a backbone's features, be judged by acting."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pixio_heads.policy.data import PolicyData
    from pixio_heads.policy.head import Policy

__all__ = ["Policy", "PolicyData"]


def __getattr__(name: str) -> Any:
    # Lazily: the processes of environments import this package, too, and need no torch.
    if name == "PolicyData":
        from pixio_heads.policy.data import PolicyData as found
    elif name == "Policy":
        from pixio_heads.policy.head import Policy as found  # type: ignore[assignment]
    else:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return found
