"""Module names without the parts that wrappers add to them."""

from __future__ import annotations

# Added by torch.compile, FSDP1 and activation checkpointing between a module and its parent.
_WRAPPER_PARTS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def unwrapped_name(name: str) -> str:
    """Return the full name of a module or parameter without the parts that wrappers add."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPER_PARTS)
