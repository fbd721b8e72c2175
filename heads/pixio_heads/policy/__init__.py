"""Robot policies: imitate demonstrations from a backbone's features, be judged by acting."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pixio_heads.policy.data import PolicyData
    from pixio_heads.policy.head import Policy

__all__ = ["Policy", "PolicyData"]


def __getattr__(name: str) -> Any:
    # When they are first used, as processes of environments import from here and need no torch.
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    # Both, as a recipe names one beside the other by its short name.
    data, head = (import_module(f"{__name__}.{part}") for part in ("data", "head"))
    return {"Policy": head.Policy, "PolicyData": data.PolicyData}[name]
