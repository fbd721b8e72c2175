"""Demonstrations of CortexBench: pickles of Adroit, Meta-World and DMControl, and TriFinger's."""

from pixio_heads.policy.cortexbench.suites import read

__all__ = ["read"]
