"""3D reconstruction: several pictures of a place in, points, depth and cameras out."""

from pixio_heads.reconstruction.data import ReconstructionData
from pixio_heads.reconstruction.head import Reconstruction

__all__ = ["Reconstruction", "ReconstructionData"]
