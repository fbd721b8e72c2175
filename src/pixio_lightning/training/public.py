"""What heads and plug-ins import of the training side."""

from pixio_lightning.training.base import BackboneModule
from pixio_lightning.training.dense_head import DenseHead
from pixio_lightning.training.evaluation_metrics import ListMetric
from pixio_lightning.training.head import Batch, Head
from pixio_lightning.training.optim import Optim
from pixio_lightning.training.precision import full_precision
from pixio_lightning.training.task_module import absent_classes, unnamed
from pixio_lightning.training.visualize import Panel

__all__ = [
    "BackboneModule",
    "Batch",
    "Head",
    "ListMetric",
    "Optim",
    "Panel",
    "DenseHead",
    "absent_classes",
    "full_precision",
    "unnamed",
]
