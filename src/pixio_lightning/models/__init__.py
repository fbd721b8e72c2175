"""Models: tensors in, tensors out. The backbone, its features, decoders and weights.

What heads and plug-ins import. Names are loaded when they are first used, see `facade`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pixio_lightning import facade

if TYPE_CHECKING:
    from pixio_lightning.models.backbone import Backbone as Backbone
    from pixio_lightning.models.blocks import Attention as Attention
    from pixio_lightning.models.dense_decoders import DPT as DPT
    from pixio_lightning.models.dense_decoders import DenseDecoder as DenseDecoder
    from pixio_lightning.models.dense_decoders import DPTDecoder as DPTDecoder
    from pixio_lightning.models.dense_decoders import LinearDecoder as LinearDecoder
    from pixio_lightning.models.dense_decoders import MakeDecoder as MakeDecoder
    from pixio_lightning.models.dense_decoders import Pointwise as Pointwise
    from pixio_lightning.models.dense_decoders import SyncedBatchNorm2d as SyncedBatchNorm2d
    from pixio_lightning.models.dense_decoders import upsample as upsample
    from pixio_lightning.models.features import Features as Features
    from pixio_lightning.models.features import Layer as Layer
    from pixio_lightning.models.features import Reads as Reads
    from pixio_lightning.models.features import joined as joined
    from pixio_lightning.models.probes import LinearMap as LinearMap
    from pixio_lightning.models.probes import has_float64 as has_float64
    from pixio_lightning.models.probes import in_float64 as in_float64
    from pixio_lightning.models.probes import nearest_neighbours as nearest_neighbours
    from pixio_lightning.models.probes import ridge as ridge
    from pixio_lightning.models.probes import vote as vote

__getattr__ = facade(__name__)
