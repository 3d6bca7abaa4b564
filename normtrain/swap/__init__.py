"""Replace the norms of any model in place."""

# Importing this registers the readers of other packages' norms.
from normtrain.swap import foreign  # noqa: F401
from normtrain.swap.detection import detect_norm
from normtrain.swap.facts import NormFacts
from normtrain.swap.readers import register_reader
from normtrain.swap.report import Replaced, SwapReport
from normtrain.swap.swap import swap_norms

__all__ = ["NormFacts", "Replaced", "SwapReport", "detect_norm", "register_reader", "swap_norms"]
