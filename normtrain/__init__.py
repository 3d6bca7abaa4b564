"""Train, resume, evaluate and compare transformers whose first-class axis is the normalizer.

Importing this package imports neither torch nor Lightning; the names below load their rooms when
they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from normtrain._version import __version__

if TYPE_CHECKING:
    from normtrain.callbacks.monitor import NormMonitor
    from normtrain.callbacks.norm_aware import NormAware, load_checkpoint
    from normtrain.callbacks.norm_swap import NormSwap
    from normtrain.models import build_model
    from normtrain.norms import NormRules, NormSpec, build_norm, norm_names, register_norm
    from normtrain.surgery import SwapReport, swap_norms, to_crmsnorm, to_layernorm, to_rmsnorm

_HOMES = {
    "NormAware": "normtrain.callbacks.norm_aware",
    "NormMonitor": "normtrain.callbacks.monitor",
    "NormRules": "normtrain.norms",
    "NormSpec": "normtrain.norms",
    "NormSwap": "normtrain.callbacks.norm_swap",
    "SwapReport": "normtrain.surgery",
    "build_model": "normtrain.models",
    "build_norm": "normtrain.norms",
    "load_checkpoint": "normtrain.callbacks.norm_aware",
    "norm_names": "normtrain.norms",
    "register_norm": "normtrain.norms",
    "swap_norms": "normtrain.surgery",
    "to_crmsnorm": "normtrain.surgery",
    "to_layernorm": "normtrain.surgery",
    "to_rmsnorm": "normtrain.surgery",
}

__all__ = [
    "NormAware",
    "NormMonitor",
    "NormRules",
    "NormSpec",
    "NormSwap",
    "SwapReport",
    "__version__",
    "build_model",
    "build_norm",
    "load_checkpoint",
    "norm_names",
    "register_norm",
    "swap_norms",
    "to_crmsnorm",
    "to_layernorm",
    "to_rmsnorm",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'normtrain' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
