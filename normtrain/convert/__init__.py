"""Convert Pre-LN, Pre-RMSNorm and Pre-CRMSNorm models into each other exactly."""

from normtrain.convert.conversions import to_crmsnorm, to_layernorm, to_rmsnorm
from normtrain.convert.report import ConversionReport
from normtrain.convert.streams import Stream, streams_of

__all__ = ["ConversionReport", "Stream", "streams_of", "to_crmsnorm", "to_layernorm", "to_rmsnorm"]
