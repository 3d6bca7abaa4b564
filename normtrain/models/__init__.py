"""Transformer models as plain ``nn.Module``s, with any norm at any site.

Names are resolved on first use: importing this package imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normtrain.models.causal import CausalLM
    from normtrain.models.config import CausalLMConfig, Seq2SeqConfig
    from normtrain.models.embedding import norm_sites
    from normtrain.models.factory import build_model
    from normtrain.models.seq2seq import Seq2Seq

_MODULES = {
    "CausalLM": "causal",
    "CausalLMConfig": "config",
    "Seq2Seq": "seq2seq",
    "Seq2SeqConfig": "config",
    "build_model": "factory",
    "norm_sites": "embedding",
}

__all__ = ["CausalLM", "CausalLMConfig", "Seq2Seq", "Seq2SeqConfig", "build_model", "norm_sites"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
