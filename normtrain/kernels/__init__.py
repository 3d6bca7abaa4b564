"""The norm operations and the one place that chooses which implementation of each runs."""

from normtrain.kernels import native
from normtrain.kernels.choice import described, use
from normtrain.kernels.dispatch import (
    ada_norm,
    chosen,
    crms_norm,
    detach_norm,
    l2_norm,
    layer_norm,
    lp_norm,
    rms_norm,
    squash,
)
from normtrain.kernels.residual import add_norm

__all__ = [
    "ada_norm",
    "add_norm",
    "chosen",
    "crms_norm",
    "described",
    "detach_norm",
    "l2_norm",
    "layer_norm",
    "lp_norm",
    "native",
    "rms_norm",
    "squash",
    "use",
]
