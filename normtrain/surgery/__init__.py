"""Changing the norms of a model that exists: exact conversions between equivalent norms."""

from normtrain.surgery.equivalence import to_crmsnorm, to_layernorm, to_rmsnorm
from normtrain.surgery.report import ConversionReport
from normtrain.surgery.streams import Stream, streams_of

__all__ = [
    "ConversionReport",
    "Stream",
    "streams_of",
    "to_crmsnorm",
    "to_layernorm",
    "to_rmsnorm",
]
