"""Norms in ATen calls, with a backward derived by hand.

Shapes: ``x`` is ``(..., d)``; per-row statistics are ``(..., 1)``; weight and bias are ``(d,)``.
Everything here expects weight and bias in the statistics dtype (see `stats_dtype`) and returns
the dtype of ``x``. These functions save one activation and a number or two a row, and are several
times faster on a CPU than the plain formulas of `normtrain.kernels.formulas`. They get those
numbers from the caller, who has seen by them that the rows are in range.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normtrain.kernels.formulas import (
    plain_ada_norm,
    plain_rms_norm,
    stats_dtype,
    within_range,
    without_autocast,
)

__all__ = [
    "AdaNormFunction",
    "RMSNormFunction",
    "ada_output",
    "ada_statistics",
    "rms_statistic",
    "scaled_rows",
    "stats_dtype",
    "within_range",
    "without_autocast",
]

_layer_norm = torch.ops.aten.native_layer_norm
_layer_norm_backward = torch.ops.aten.native_layer_norm_backward


def _batched(grad: Tensor) -> bool:
    """Whether many gradients are pulled back at once, as `torch.autograd.functional` can."""
    functorch = torch._C._functorch
    return functorch.is_legacy_batchedtensor(grad) or functorch.is_functorch_wrapped_tensor(grad)


def _sum_to_row(t: Tensor) -> Tensor:
    """Sum ``(..., d)`` over everything but the last axis."""
    return t.reshape(-1, t.shape[-1]).sum(0)


def rms_statistic(x: Tensor, eps: float, first: int) -> tuple[Tensor, Tensor]:
    """``x`` in the statistics dtype, and the 1/RMS of each row; neither is differentiable."""
    x = x.detach()
    wide = x.to(stats_dtype(x))
    norm = torch.linalg.vector_norm(wide[..., :first], dim=-1, keepdim=True)
    return wide, norm.square_().div_(first).add_(eps).rsqrt_()


def scaled_rows(
    wide: Tensor, rstd: Tensor, weight: Tensor | None, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """``wide * rstd * weight + bias`` in `dtype`, in few passes; not differentiable.

    Writes over `wide` where its dtype is not `dtype`, since it is a copy then.
    """
    y = wide * rstd if wide.dtype == dtype else wide.mul_(rstd)
    if weight is not None:
        y.mul_(weight)
    if bias is not None:
        y.add_(bias)
    return y.to(dtype)


class RMSNormFunction(torch.autograd.Function):
    """RMSNorm and pRMSNorm that keep x and 1/RMS for the backward, which reuses LayerNorm's.

    With r = 1/sqrt(mean_k(x^2) + eps), u = g * w and S = sum(u * x) over the whole row,
    dx = r * u - [feature < k] * x * r^3 * S / k, and dw = sum over rows of g * x * r.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        wide: Tensor,
        rstd: Tensor,
        eps: float,
        first: int,
    ) -> Tensor:
        """Normalise ``x`` by its `rms_statistic`; weight and bias in the statistics dtype."""
        ctx.save_for_backward(x, weight, bias, rstd)
        ctx.eps, ctx.first = eps, first
        return scaled_rows(wide, rstd, weight, bias, x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight and bias; differentiable when a graph of it is asked for."""
        x, weight, bias, rstd = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[:3])
        with without_autocast(x):
            if torch.is_grad_enabled() or _batched(grad):
                grads = _rms_backward_plain(grad, (x, weight, bias), ctx.eps, ctx.first, needs)
            else:
                wide = grad.to(rstd.dtype), x.to(rstd.dtype)
                if ctx.first == x.shape[-1]:
                    grads = _rms_backward(*wide, weight, bias, rstd, needs)
                else:
                    grads = _partial_rms_backward(*wide, weight, rstd, ctx.first, needs)
        dx, dw, db = grads
        return None if dx is None else dx.to(x.dtype), dw, db, None, None, None, None


_Grads = tuple[Tensor | None, Tensor | None, Tensor | None]


def _rms_backward_plain(
    grad: Tensor,
    saved: tuple[Tensor, Tensor | None, Tensor | None],
    eps: float,
    first: int,
    needs: list[bool],
) -> _Grads:
    """(dx, dw, db) of the plain formula, which can be differentiated once more."""
    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views end the way back here: a weight may itself have been made from x.
        x, weight, bias = (None if t is None else t.view_as(t) for t in saved)
        assert x is not None
        y = plain_rms_norm(x, weight, bias, eps, first)
        wanted = [
            t for t, need in zip((x, weight, bias), needs, strict=True) if need and t is not None
        ]
        found = iter(torch.autograd.grad(y, wanted, grad, create_graph=graph))
    dx, dw, db = (next(found) if need else None for need in needs)
    return dx, dw, db


def _rms_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    rstd: Tensor,
    needs: list[bool],
) -> _Grads:
    """(dx, dw, db) by LayerNorm's kernel told that the mean is zero.

    That kernel gives r * (u - mean(u) - xhat * mean(u * xhat)); adding r * mean(u) back leaves
    RMSNorm's gradient, in one pass over grad and x for all three results.
    """
    d = x.shape[-1]
    mask = [needs[0], needs[1] and weight is not None, needs[2] and bias is not None]
    zero = torch.zeros_like(rstd)
    dx, dw, db = _layer_norm_backward(grad, x, [d], zero, rstd, weight, bias, mask)
    if mask[0]:
        total = grad.sum(-1) if weight is None else grad @ weight
        dx.add_(total.unsqueeze(-1).mul_(rstd).div_(d))
    return dx, dw, db


def _partial_rms_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    rstd: Tensor,
    first: int,
    needs: list[bool],
) -> _Grads:
    """(dx, dw, db) where only the first features carry the statistic's gradient."""
    dw = dx = None
    if needs[1] and weight is not None:
        mask = [False, True, False]
        zero = torch.zeros_like(rstd)
        dw = _layer_norm_backward(grad, x, [x.shape[-1]], zero, rstd, weight, None, mask)[1]
    if needs[0]:
        # in this order no product is larger than an output or a gradient
        unit = x * rstd
        dx = grad.clone() if weight is None else grad * weight
        pull = (dx * unit).sum(-1, keepdim=True).div_(-first)
        dx[..., :first].addcmul_(unit[..., :first], pull)
        dx.mul_(rstd)
    return dx, dw, _sum_to_row(grad) if needs[2] else None


class AdaNormFunction(torch.autograd.Function):
    """AdaNorm that keeps x, its mean and 1/sigma, and makes y again in the backward.

    With y = (x - mean) * r, a constant factor phi = c * (1 - k * y) and h = g * phi,
    dx = r * (h - mean(h) - y * mean(h * y)): LayerNorm's backward with h for the gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scaled: Tensor,
        mean: Tensor,
        rstd: Tensor,
        eps: float,
        c: float,
        k: float,
    ) -> Tensor:
        """The output for ``x`` and its `ada_statistics`."""
        ctx.save_for_backward(x, mean, rstd)
        ctx.eps, ctx.c, ctx.k = eps, c, k
        return ada_output(scaled, c, k, x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient of x; differentiable when a graph of it is asked for."""
        x, mean, rstd = ctx.saved_tensors
        with without_autocast(x):
            graph = torch.is_grad_enabled()
            if graph or _batched(grad):
                with torch.enable_grad():
                    z = plain_ada_norm(x, ctx.eps, ctx.c, ctx.k)
                    (dx,) = torch.autograd.grad(z, x, grad, create_graph=graph)
                return dx, None, None, None, None, None, None
            wide = x.to(rstd.dtype)
            # phi = c * (1 - k * (x - mean) * r): an offset and a slope a row, applied to x
            slope = rstd * (-ctx.c * ctx.k)
            offset = (slope * mean).neg_().add_(ctx.c)
            inner = torch.addcmul(offset, wide, slope).mul_(grad)
            mask, d = [True, False, False], x.shape[-1]
            dx = _layer_norm_backward(inner, wide, [d], mean, rstd, None, None, mask)[0]
        return dx.to(x.dtype), None, None, None, None, None, None


def ada_statistics(x: Tensor, eps: float, c: float) -> tuple[Tensor, Tensor, Tensor]:
    """c * LayerNorm-simple(x), and the mean and 1/sigma of each row; not differentiable."""
    x, d = x.detach(), x.shape[-1]
    wide = x.to(stats_dtype(x))
    # The kernel is faster with a gain than without one, and c rides along for nothing.
    scaled, mean, rstd = _layer_norm(wide, [d], wide.new_full((d,), c), None, eps)
    return scaled, mean, rstd


def ada_output(scaled: Tensor, c: float, k: float, dtype: torch.dtype) -> Tensor:
    """AdaNorm from c * y: c * (1 - k * y) * y; not differentiable; c must not be 0."""
    return torch.addcmul(scaled, scaled, scaled, value=-k / c).to(dtype)
