"""Changing the norms of a model that exists: exact conversions, and swaps for any other norm."""

# Other packages' norms are made known when imported.
from normtrain.surgery import readers_foreign  # noqa: F401
from normtrain.surgery.equivalence import to_crmsnorm, to_layernorm, to_rmsnorm
from normtrain.surgery.readers import NormFacts, read_by_trial, register_reader
from normtrain.surgery.report import ConversionReport
from normtrain.surgery.streams import Stream, streams_of
from normtrain.surgery.swap import swap_norms
from normtrain.surgery.swap_check import SwapCheck, check_swap
from normtrain.surgery.swap_report import Replaced, SwapReport

__all__ = [
    "ConversionReport",
    "NormFacts",
    "Replaced",
    "Stream",
    "SwapCheck",
    "SwapReport",
    "check_swap",
    "read_by_trial",
    "register_reader",
    "streams_of",
    "swap_norms",
    "to_crmsnorm",
    "to_layernorm",
    "to_rmsnorm",
]
