"""Depth from one image, metric or up to an affine map of the disparity."""

from pixio_heads.depth.data import DepthData
from pixio_heads.depth.head import Depth, RelativeDepth
from pixio_heads.depth.ordinal import OrdinalDepth
from pixio_heads.depth.ordinal_data import OrdinalData

__all__ = ["Depth", "DepthData", "OrdinalData", "OrdinalDepth", "RelativeDepth"]
