"""Try a swap on a copy of a model and report what would change."""

from normtrain.swap.check.run import SwapCheck, check_swap

__all__ = ["SwapCheck", "check_swap"]
