"""Encoders: from images or texts to embeddings, with the preparation that each expects."""

from taskvec_mini.benchmarks.encoders.base import (
    Backbone,
    Encoder,
    TextBackbone,
    embed,
    row_batches,
    tokenizer_of,
)
from taskvec_mini.benchmarks.encoders.clip_transformers import load_transformers_vision
from taskvec_mini.benchmarks.encoders.load import (
    BACKBONES,
    BackboneInfo,
    backbone_info,
    device_of,
    load_backbone,
)
from taskvec_mini.benchmarks.encoders.parameters import (
    Parameters,
    holding,
    state_of,
    trained_parameters,
    write_parameters,
)

__all__ = [
    "BACKBONES",
    "Backbone",
    "BackboneInfo",
    "Encoder",
    "Parameters",
    "TextBackbone",
    "backbone_info",
    "device_of",
    "embed",
    "holding",
    "load_backbone",
    "load_transformers_vision",
    "row_batches",
    "state_of",
    "tokenizer_of",
    "trained_parameters",
    "write_parameters",
]
