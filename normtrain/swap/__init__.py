"""Replace the norms of any model in place."""

# Other packages' norms are made known when imported.
from normtrain.swap import foreign  # noqa: F401
from normtrain.swap.readers import NormFacts, read_by_trial, register_reader
from normtrain.swap.report import Replaced, SwapReport
from normtrain.swap.swap import swap_norms

__all__ = [
    "NormFacts",
    "Replaced",
    "SwapReport",
    "read_by_trial",
    "register_reader",
    "swap_norms",
]
