"""Robot policies: imitate demonstrations from a backbone's features, be judged by acting."""

from pixio_heads.policy.data import PolicyData
from pixio_heads.policy.head import Policy

__all__ = ["Policy", "PolicyData"]
