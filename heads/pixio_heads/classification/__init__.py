"""Classes of images, by a linear classifier or by nearest neighbours."""

from pixio_heads.classification.data import ClassificationData
from pixio_heads.classification.head import KNN, Classification

__all__ = ["KNN", "Classification", "ClassificationData"]
