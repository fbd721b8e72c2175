"""Training: what every run shares. The base module, the contract of heads, checkpoints, records.

What heads and plug-ins import. Names are loaded when they are first used, see `facade`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pixio_lightning import facade

if TYPE_CHECKING:
    from pixio_lightning.training.base import BackboneModule as BackboneModule
    from pixio_lightning.training.dense_head import DenseHead as DenseHead
    from pixio_lightning.training.evaluation_metrics import ListMetric as ListMetric
    from pixio_lightning.training.head import Batch as Batch
    from pixio_lightning.training.head import Head as Head
    from pixio_lightning.training.optim import Optim as Optim
    from pixio_lightning.training.precision import full_precision as full_precision
    from pixio_lightning.training.task_module import absent_classes as absent_classes
    from pixio_lightning.training.task_module import unnamed as unnamed
    from pixio_lightning.training.visualize import Panel as Panel

__getattr__ = facade(__name__)
