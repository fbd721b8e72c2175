"""The class of every pixel of an image."""

from pixio_heads.segmentation.data import SegmentationData
from pixio_heads.segmentation.head import Segmentation

__all__ = ["Segmentation", "SegmentationData"]
