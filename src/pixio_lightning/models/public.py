"""What heads and plug-ins import of the models."""

from pixio_lightning.models.backbone import Backbone
from pixio_lightning.models.blocks import Attention
from pixio_lightning.models.dense_decoders import (
    DPT,
    DenseDecoder,
    DPTDecoder,
    LinearDecoder,
    MakeDecoder,
    Pointwise,
    SyncedBatchNorm2d,
    upsample,
)
from pixio_lightning.models.features import Features, Layer, Reads, joined
from pixio_lightning.models.probes import (
    LinearMap,
    has_float64,
    in_float64,
    nearest_neighbours,
    ridge,
    vote,
)

__all__ = [
    "nearest_neighbours",
    "vote",
    "Attention",
    "Backbone",
    "DPT",
    "DPTDecoder",
    "DenseDecoder",
    "Features",
    "Layer",
    "LinearDecoder",
    "LinearMap",
    "MakeDecoder",
    "Pointwise",
    "Reads",
    "SyncedBatchNorm2d",
    "has_float64",
    "in_float64",
    "joined",
    "ridge",
    "upsample",
]
