"""Every normalizer behind one name: ``build_norm("prmsnorm:p=0.125", dim)``."""

# The families register themselves when imported.
from normtrain.norms.adaptive import AdaNorm
from normtrain.norms.batch import (
    L1BatchNorm,
    L1BatchNorm1d,
    L1BatchNorm2d,
    L1BatchNorm3d,
    LInfBatchNorm,
    LInfBatchNorm1d,
    LInfBatchNorm2d,
    LInfBatchNorm3d,
    TopKBatchNorm,
    TopKBatchNorm1d,
    TopKBatchNorm2d,
    TopKBatchNorm3d,
)
from normtrain.norms.batch_swap import replace_batchnorm
from normtrain.norms.decay import (
    DecayCorrection,
    WeightNormLog,
    decay_groups,
    scale_invariant_weights,
)
from normtrain.norms.elementwise import Derf, DyT
from normtrain.norms.identity import NoNorm
from normtrain.norms.layer import DetachNorm, LayerNorm, LayerNormSimple
from normtrain.norms.lp import L1Norm, LInfNorm, TopKNorm
from normtrain.norms.registry import NormInfo, norm_info, norm_names, register_norm
from normtrain.norms.rms import CRMSNorm, FixNorm, PRMSNorm, RMSNorm, ScaleNorm
from normtrain.norms.rules import NormRules
from normtrain.norms.spec import NormSpec, build_norm
from normtrain.norms.weight import bounded_weight_norm, remove_bounded_weight_norm

__all__ = [
    "AdaNorm",
    "CRMSNorm",
    "DecayCorrection",
    "Derf",
    "DetachNorm",
    "DyT",
    "FixNorm",
    "L1BatchNorm",
    "L1BatchNorm1d",
    "L1BatchNorm2d",
    "L1BatchNorm3d",
    "L1Norm",
    "LInfBatchNorm",
    "LInfBatchNorm1d",
    "LInfBatchNorm2d",
    "LInfBatchNorm3d",
    "LInfNorm",
    "LayerNorm",
    "LayerNormSimple",
    "NoNorm",
    "NormInfo",
    "NormRules",
    "NormSpec",
    "PRMSNorm",
    "RMSNorm",
    "ScaleNorm",
    "TopKBatchNorm",
    "TopKBatchNorm1d",
    "TopKBatchNorm2d",
    "TopKBatchNorm3d",
    "TopKNorm",
    "WeightNormLog",
    "bounded_weight_norm",
    "build_norm",
    "decay_groups",
    "norm_info",
    "norm_names",
    "register_norm",
    "remove_bounded_weight_norm",
    "replace_batchnorm",
    "scale_invariant_weights",
]
