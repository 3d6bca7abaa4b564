"""Norm operations; each call chooses the implementation that runs."""

from normtrain.kernels import dispatch
from normtrain.kernels.choice import described, use
from normtrain.kernels.dtensor import supports_dtensor
from normtrain.kernels.residual import add_norm

ada_norm = supports_dtensor(dispatch.ada_norm)
crms_norm = supports_dtensor(dispatch.crms_norm)
detach_norm = supports_dtensor(dispatch.detach_norm)
fused_norm = supports_dtensor(dispatch.fused_norm)
l2_norm = supports_dtensor(dispatch.l2_norm)
layer_norm = supports_dtensor(dispatch.layer_norm)
lp_norm = supports_dtensor(dispatch.lp_norm)
rms_norm = supports_dtensor(dispatch.rms_norm)
squash = supports_dtensor(dispatch.squash)

__all__ = [
    "ada_norm",
    "add_norm",
    "crms_norm",
    "described",
    "detach_norm",
    "fused_norm",
    "l2_norm",
    "layer_norm",
    "lp_norm",
    "rms_norm",
    "squash",
    "use",
]
