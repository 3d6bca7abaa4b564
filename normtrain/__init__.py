"""Train, resume, evaluate and compare transformers whose first-class axis is the normalizer.

Importing this package imports neither torch nor Lightning; the names below load their modules when
they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from normtrain._version import __version__

if TYPE_CHECKING:
    from normtrain.convert import to_crmsnorm, to_layernorm, to_rmsnorm
    from normtrain.models import build_model
    from normtrain.monitor.callback import NormMonitor
    from normtrain.norms import NormRules, NormSpec, build_norm, norm_names, register_norm
    from normtrain.swap.callback.norm_aware import NormAware, load_checkpoint
    from normtrain.swap.callback.norm_swap import NormSwap
    from normtrain.swap.report import SwapReport
    from normtrain.swap.swap import swap_norms

_MODULES = {
    "NormAware": "normtrain.swap.callback.norm_aware",
    "NormMonitor": "normtrain.monitor.callback",
    "NormRules": "normtrain.norms",
    "NormSpec": "normtrain.norms",
    "NormSwap": "normtrain.swap.callback.norm_swap",
    "SwapReport": "normtrain.swap",
    "build_model": "normtrain.models",
    "build_norm": "normtrain.norms",
    "load_checkpoint": "normtrain.swap.callback.norm_aware",
    "norm_names": "normtrain.norms",
    "register_norm": "normtrain.norms",
    "swap_norms": "normtrain.swap",
    "to_crmsnorm": "normtrain.convert",
    "to_layernorm": "normtrain.convert",
    "to_rmsnorm": "normtrain.convert",
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
    if name not in _MODULES:
        raise AttributeError(f"module 'normtrain' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
