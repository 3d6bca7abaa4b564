"""The norm operations and the one place that chooses which implementation of each runs."""

from normtrain.kernels.dispatch import ada_norm, chosen, layer_norm, rms_norm

__all__ = ["ada_norm", "chosen", "layer_norm", "rms_norm"]
