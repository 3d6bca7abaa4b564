"""Every normalizer behind one name: ``build_norm("prmsnorm:p=0.125", dim)``."""

# The families register themselves when imported.
from normtrain.norms.adaptive import AdaNorm
from normtrain.norms.identity import NoNorm
from normtrain.norms.layer import LayerNorm, LayerNormSimple
from normtrain.norms.registry import NormInfo, norm_info, norm_names, register_norm
from normtrain.norms.rms import PRMSNorm, RMSNorm
from normtrain.norms.rules import NormRules
from normtrain.norms.spec import NormSpec, build_norm

__all__ = [
    "AdaNorm",
    "LayerNorm",
    "LayerNormSimple",
    "NoNorm",
    "NormInfo",
    "NormRules",
    "NormSpec",
    "PRMSNorm",
    "RMSNorm",
    "build_norm",
    "norm_info",
    "norm_names",
    "register_norm",
]
