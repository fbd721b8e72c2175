"""What heads and plug-ins import of the models."""

from pixio_lightning.models.backbone import Backbone
from pixio_lightning.models.dense_decoders import (
    DPT,
    DenseDecoder,
    DPTDecoder,
    LinearDecoder,
    SyncedBatchNorm2d,
    upsample,
)
from pixio_lightning.models.features import Features, Layer

__all__ = [
    "Backbone",
    "DPT",
    "DPTDecoder",
    "DenseDecoder",
    "Features",
    "Layer",
    "LinearDecoder",
    "SyncedBatchNorm2d",
    "upsample",
]
