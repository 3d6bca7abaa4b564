"""Check on copies whether a model still trains and evaluates with other norms."""

from normtrain.swap.check.run import Check, SwapCheck, check_swap

__all__ = ["Check", "SwapCheck", "check_swap"]
