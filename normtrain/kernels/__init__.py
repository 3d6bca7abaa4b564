"""The norm operations and the one place that chooses which implementation of each runs."""

from normtrain.kernels import dispatch, native
from normtrain.kernels.choice import described, use
from normtrain.kernels.dispatch import chosen
from normtrain.kernels.residual import add_norm
from normtrain.kernels.sharded import on_shards

ada_norm = on_shards(dispatch.ada_norm)
crms_norm = on_shards(dispatch.crms_norm)
detach_norm = on_shards(dispatch.detach_norm)
l2_norm = on_shards(dispatch.l2_norm)
layer_norm = on_shards(dispatch.layer_norm)
lp_norm = on_shards(dispatch.lp_norm)
rms_norm = on_shards(dispatch.rms_norm)
squash = on_shards(dispatch.squash)

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
