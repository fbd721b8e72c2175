"""Depth from one image, metric or up to an affine map of the disparity."""

from pixio_heads.depth.data import DepthData
from pixio_heads.depth.head import Depth, RelativeDepth

__all__ = ["Depth", "DepthData", "RelativeDepth"]
