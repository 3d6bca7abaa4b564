"""The one place where the implementation of a norm operation is chosen.

Every norm module calls `layer_norm`, `rms_norm` or `ada_norm` here and knows nothing of what
runs. `chosen` names the choice, so that benchmarks can print it; a fused kernel is added by
giving it a name there and a branch in the operation.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from normtrain.kernels import reference

_LOW = (torch.bfloat16, torch.float16)


def chosen(x: Tensor, op: str, eps_mode: str = "inside") -> str:
    """Name what runs for an operation.

    Args:
        x: the input; its dtype and device decide.
        op: ``"layer_norm"``, ``"rms_norm"`` or ``"ada_norm"``.
        eps_mode: ``"inside"`` or ``"outside"`` the square root.

    Returns:
        ``"plain"`` (differentiable torch formulas), ``"aten"`` (PyTorch's own kernel) or
        ``"function"`` (ATen calls with a backward derived by hand).
    """
    # An opaque function would keep the compiler from fusing; it does better with the formula.
    if eps_mode == "outside" or torch.compiler.is_compiling():
        return "plain"
    if op == "layer_norm":
        return "aten"
    return "function"


def _needs_graph(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _wide(x: Tensor, parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.to(reference.stats_dtype(x))


def layer_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, eps_mode: str = "inside"
) -> Tensor:
    """LayerNorm over the last axis.

    Args:
        x: ``(..., d)``.
        weight: gain ``(d,)`` or None.
        bias: offset ``(d,)`` or None.
        eps: added to the variance (inside) or to the standard deviation (outside).
        eps_mode: ``"inside"`` or ``"outside"``.

    Returns:
        ``(..., d)`` in the dtype of ``x``, whatever autocast or the parameters say.
    """
    with reference.without_autocast(x):
        weight, bias = _wide(x, weight), _wide(x, bias)
        if chosen(x, "layer_norm", eps_mode) == "plain":
            return reference.plain_layer_norm(x, weight, bias, eps, eps_mode)
        return _aten_layer_norm(x, weight, bias, eps)


def _aten_layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    d = x.shape[-1]
    if weight is None:
        # The CPU kernel takes 1.7 times as long without a gain as with one, and a wide gain also
        # makes it keep wide statistics for narrow input.
        weight = torch.ones(d, dtype=reference.stats_dtype(x), device=x.device)
    if x.dtype in _LOW and x.device.type != "cpu":
        return functional.layer_norm(x.float(), (d,), weight, bias, eps).to(x.dtype)
    return functional.layer_norm(x, (d,), weight, bias, eps)


def rms_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    eps_mode: str = "inside",
    first: int | None = None,
) -> Tensor:
    """RMSNorm over the last axis, or pRMSNorm with the statistic of the first features.

    Args:
        x: ``(..., d)``.
        weight: gain ``(d,)`` or None.
        bias: offset ``(d,)`` or None.
        eps: added to the mean square (inside) or to its root (outside).
        eps_mode: ``"inside"`` or ``"outside"``.
        first: how many leading features the mean square is taken over; all of them by default.

    Returns:
        ``(..., d)`` in the dtype of ``x``, whatever autocast or the parameters say.
    """
    first = x.shape[-1] if first is None else first
    with reference.without_autocast(x):
        weight, bias = _wide(x, weight), _wide(x, bias)
        if chosen(x, "rms_norm", eps_mode) == "plain":
            return reference.plain_rms_norm(x, weight, bias, eps, first, eps_mode)
        if _needs_graph(x, weight, bias):
            return reference.RMSNormFunction.apply(x, weight, bias, eps, first)
        return reference.rms_norm_and_rstd(x, weight, bias, eps, first)[0]


def ada_norm(x: Tensor, eps: float, c: float, k: float, eps_mode: str = "inside") -> Tensor:
    """AdaNorm, ``c * (1 - k * y) * y`` with y = LayerNorm-simple(x) and the factor constant.

    Args:
        x: ``(..., d)``.
        eps: added to the variance (inside) or to the standard deviation (outside).
        c: scale, not 0.
        k: slope of the factor.
        eps_mode: ``"inside"`` or ``"outside"``.

    Returns:
        ``(..., d)`` in the dtype of ``x``.
    """
    with reference.without_autocast(x):
        if chosen(x, "ada_norm", eps_mode) == "plain":
            return reference.plain_ada_norm(x, eps, c, k, eps_mode)
        if _needs_graph(x):
            return reference.AdaNormFunction.apply(x, eps, c, k)
        return reference.ada_norm_and_stats(x, eps, c, k)[0]
