"""Readers of other packages' norms; none of those packages is imported.

Hugging Face has several hundred norm classes whose names say little about what they compute (Gemma
stores the gain minus 1, Gemma 4 does not), so these are detected numerically. Norms whose kernels
only run on a GPU are read from their attributes.
"""

from __future__ import annotations

from typing import Any

from normtrain.errors import UserError
from normtrain.swap.detection import detect_norm
from normtrain.swap.facts import NormFacts
from normtrain.swap.readers import normalized_dim, register_reader

# Classes of plain norms: Llama's, Mistral's and Qwen's RMSNorm, T5LayerNorm, Gemma's 1 + w,
# OlmoLayerNorm, ConvNextLayerNorm and so on. "transformers_modules" is code loaded from the Hub.
register_reader(
    "transformers.*RMSNorm",
    "transformers.*LayerNorm",
    "transformers.*LayerNorm2d",
    "transformers_modules.*RMSNorm",
    "transformers_modules.*LayerNorm",
    # timm, by its names before and since 1.0
    "timm.*LayerNorm",
    "timm.*LayerNorm2d",
    "timm.*LayerNormFp32",
    "timm.*LayerNorm2dFp32",
    "timm.*LayerNormExp2d",
    "timm.*RmsNorm",
    "timm.*RmsNorm2d",
    "timm.*RmsNormFp32",
    "timm.*RmsNorm2dFp32",
)(detect_norm)


@register_reader("apex.normalization.FusedLayerNorm", "apex.contrib.layer_norm.FastLayerNorm")
def _apex_layer(module: Any) -> NormFacts:
    """Read apex's LayerNorm, which rounds once, after gain and bias."""
    if not hasattr(module, "normalized_shape"):  # FastLayerNorm has only its parameters and epsilon
        return NormFacts(module.weight.numel(), module.epsilon, module.weight, module.bias)
    return NormFacts(normalized_dim(module), module.eps, module.weight, module.bias)


@register_reader("apex.normalization.FusedRMSNorm")
def _apex_rms(module: Any) -> NormFacts:
    return NormFacts(normalized_dim(module), module.eps, module.weight, None, kind="rms")


_LIGER_CASTS = {"llama": "input", "gemma": "float32-then-weight", "none": "input"}


@register_reader("liger_kernel.transformers.LigerRMSNorm")
def _liger_rms(module: Any) -> NormFacts:
    """Read Liger's RMSNorm; its subclasses for other models differ in offset and casting mode."""
    if module.weight is None:
        raise UserError("it has no weight, so its size is unknown")
    return NormFacts(
        module.weight.numel(),
        module.variance_epsilon,
        module.weight,
        None,
        offset=float(module.offset),
        kind="rms",
        cast=_LIGER_CASTS.get(str(module.casting_mode), "input"),
    )


@register_reader("liger_kernel.transformers.LigerLayerNorm")
def _liger_layer(module: Any) -> NormFacts:
    return NormFacts(module.weight.numel(), module.variance_epsilon, module.weight, module.bias)
