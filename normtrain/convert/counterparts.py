"""Build the norm that replaces another one on a zero-mean stream."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normtrain.convert.linear_layers import check_unchanged, runs_as
from normtrain.errors import UserError
from normtrain.norms import (
    AdaNorm,
    CRMSNorm,
    Derf,
    DetachNorm,
    DyT,
    FixNorm,
    L1Norm,
    LayerNorm,
    LayerNormSimple,
    LInfNorm,
    NoNorm,
    PRMSNorm,
    RMSNorm,
    ScaleNorm,
    TopKNorm,
)

CENTRING, RMS = "centring", "rms"


_CENTRING = (LayerNorm, LayerNormSimple, DetachNorm, nn.LayerNorm)
_RMS = (RMSNorm, nn.RMSNorm)


def kind_of(module: nn.Module, name: str) -> str:
    """Return ``CENTRING`` for what equals RMSNorm on zero-mean vectors, ``RMS`` for RMSNorm.

    Raises:
        UserError: the module has no exact counterpart, or hooks change what it computes; it and
            the reason are named.
    """
    for kind, classes in ((CENTRING, _CENTRING), (RMS, _RMS)):
        if isinstance(module, classes) and runs_as(module, classes):
            check_unchanged(module, name)
            return kind
    raise UserError(f"{name} ({label(module)}) cannot be converted exactly: {_obstacle(module)}")


def _obstacle(module: nn.Module) -> str:
    if isinstance(module, AdaNorm):
        return "its output is quadratic in the normalized vector, which RMSNorm's is not"
    if isinstance(module, L1Norm | LInfNorm | TopKNorm):
        return "it divides by another statistic than the root mean square"
    if isinstance(module, NoNorm | nn.Identity):
        return "it does not normalize: the next module reads the stream with its mean"
    if isinstance(module, CRMSNorm):
        return "it is CRMSNorm, where conversions end"
    if type(module) in (PRMSNorm, ScaleNorm, FixNorm, DyT, Derf):
        return "its output depends on the mean of its input, which the conversion removes"
    return "it is not known to ignore the mean of its input and to equal RMSNorm without it"


def label(module: nn.Module) -> str:
    """Return a norm's spec, or the name of its class."""
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return f"torch.nn.{type(module).__name__}"
    return str(getattr(module, "spec", type(module).__name__))


def _eps(module: nn.Module) -> float:
    eps = getattr(module, "eps", None)
    if eps is None:  # torch.nn.RMSNorm uses the rounding unit of its computation dtype
        wide = module.weight is not None and module.weight.dtype == torch.float64
        return torch.finfo(torch.float64 if wide else torch.float32).eps
    return float(eps)


def _affine(module: nn.Module) -> tuple[Tensor | None, Tensor | None]:
    return getattr(module, "weight", None), getattr(module, "bias", None)


def _eps_mode(module: nn.Module) -> str:
    return str(getattr(module, "eps_mode", "inside"))


def _dim(module: nn.Module) -> int:
    return int(module.normalized_shape[-1])  # type: ignore[index]


def _with(made: nn.Module, old: nn.Module) -> nn.Module:
    """Give the new norm the parameters and the mode of the old one."""
    for name, parameter in zip(("weight", "bias"), _affine(old), strict=True):
        if parameter is not None:
            setattr(made, name, parameter)
    return made.train(old.training)


def _options(old: nn.Module, weight: Tensor | None, bias: Tensor | None) -> dict[str, Any]:
    affine = {"affine": weight is not None, "bias": bias is not None}
    return {"eps": _eps(old), "eps_mode": _eps_mode(old), "device": "meta", **affine}


def rms_of(old: nn.Module) -> nn.Module:
    """Return the RMSNorm that equals a LayerNorm on zero-mean vectors, with its parameters."""
    return _with(RMSNorm(_dim(old), **_options(old, *_affine(old))), old)


def layer_norm_of(old: nn.Module, *, own: bool) -> nn.Module:
    """Return the LayerNorm that equals an RMSNorm on zero-mean vectors: ours, or torch's."""
    weight, bias = _affine(old)
    dim, eps, mode = _dim(old), _eps(old), _eps_mode(old)
    made: nn.Module
    if not own and mode == "inside":
        affine = weight is not None
        made = nn.LayerNorm(dim, eps, affine, bias=bias is not None, device="meta")
    elif weight is None:
        made = LayerNormSimple(dim, eps=eps, eps_mode=mode)
    else:
        made = LayerNorm(dim, eps=eps, eps_mode=mode, bias=bias is not None, device="meta")
    return _with(made, old)


def crms_of(old: nn.Module, *, keep: bool = False) -> nn.Module:
    """Return the CRMSNorm of d − 1 features that equals a LayerNorm on zero-mean vectors.

    Args:
        old: the norm of d features.
        keep: keep the gain and the (recentred) bias; by default they are folded into readers.
    """
    weight, bias = _affine(old) if keep else (None, None)
    made = CRMSNorm(_dim(old) - 1, **_options(old, weight, bias))
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None:
            value = parameter.detach()[:-1].clone()
            setattr(made, name, nn.Parameter(value, requires_grad=parameter.requires_grad))
    return made.train(old.training)
