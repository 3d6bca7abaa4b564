"""Readers of other packages' norms; none of those packages is imported.

Hugging Face has several hundred norm classes whose names say little of what they compute (Gemma
stores the gain less 1, Gemma 4 does not), so they are read by what they do. Kernels that only run
on a GPU are read by what their classes declare.
"""

from __future__ import annotations

from typing import Any

from normtrain.errors import UserError
from normtrain.swap.readers import NormFacts, read_by_trial, register_reader

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
)(read_by_trial)


def _one_axis(module: Any) -> int:
    shape = tuple(module.normalized_shape)
    if len(shape) != 1:
        raise UserError(f"it normalises {len(shape)} axes at once, {shape}; only one axis can be")
    return int(shape[0])


@register_reader("apex.normalization.FusedLayerNorm", "apex.contrib.layer_norm.FastLayerNorm")
def _apex_layer(module: Any) -> NormFacts:
    """apex's kernels round once, after the gain and bias."""
    if not hasattr(module, "normalized_shape"):  # FastLayerNorm has only its parameters and epsilon
        return NormFacts(module.weight.numel(), module.epsilon, module.weight, module.bias)
    return NormFacts(_one_axis(module), module.eps, module.weight, module.bias)


@register_reader("apex.normalization.FusedRMSNorm")
def _apex_rms(module: Any) -> NormFacts:
    return NormFacts(_one_axis(module), module.eps, module.weight, None, kind="rms")


_LIGER_CASTS = {"llama": "input", "gemma": "float32-then-weight", "none": "input"}


@register_reader("liger_kernel.transformers.LigerRMSNorm")
def _liger_rms(module: Any) -> NormFacts:
    """Liger's subclasses for other models differ in offset and casting mode."""
    if module.weight is None:
        raise UserError("it has no gain to tell its size from")
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
