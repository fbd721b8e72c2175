"""LeRobot data sets in a local folder, versions 2.0, 2.1 and 3.0: read, and written.

Written from the public format alone; the package `lerobot` is not needed.
"""

from pixio_heads.policy.lerobot.layout import read_layout
from pixio_heads.policy.lerobot.reader import read
from pixio_heads.policy.lerobot.writer import write

__all__ = ["read", "read_layout", "write"]
