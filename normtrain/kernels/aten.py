"""Norms composed of ATen operations, with hand-derived backwards.

Shapes: ``x`` is ``(..., d)``, statistics are ``(..., 1)``, weight and bias ``(d,)``. Weight and
bias are in the statistics dtype (`normtrain.kernels.formulas.stats_dtype`); results have the dtype
of ``x``. These functions save one activation and one or two numbers per input vector, and are
several times faster on a CPU than the formulas. They hold for vectors in range only: the caller
checks the statistics with `in_range`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from normtrain.kernels import formulas
from normtrain.kernels.backend import Parameters
from normtrain.kernels.formulas import stats_dtype, without_autocast
from normtrain.kernels.gradients import formula_gradients, is_batched

_native_layer_norm = torch.ops.aten.native_layer_norm
_layer_norm_backward = torch.ops.aten.native_layer_norm_backward


def scaled_into_range(x: Tensor) -> Tensor:
    """Return ``x`` on a CPU, where `in_range` is checked afterwards; else scale it into range."""
    # squares of float16 do not overflow float32
    if x.is_cpu or x.dtype == torch.float16:
        return x
    return (x * formulas.within_range(x)).to(x.dtype)


def in_range(x: Tensor, rstd: Tensor, mean: Tensor | None = None, most: float = math.inf) -> bool:
    """Return whether the statistics of a CPU tensor show all its vectors in range.

    A vector may be too large (its 1/sigma is tiny, 0 or NaN), or so far from zero relative to its
    deviation that ``x * rstd - mean * rstd`` has lost its precision.

    Args:
        x: the input; on other devices it has been scaled into range before.
        rstd: 1/sigma or 1/RMS of each vector.
        mean: of each vector, if the operation subtracts it.
        most: an upper bound of 1/sigma, which avoids a product where the mean is small.
    """
    if not x.is_cpu or rstd.numel() == 0:
        return True
    if not rstd.min().item() > 1 / formulas.limits(x).big:
        return False
    if mean is None:
        return True
    bound = 1 / (16 * torch.finfo(rstd.dtype).eps)
    return _within(mean, bound / most) or _within(mean * rstd, bound)


def _within(t: Tensor, bound: float) -> bool:
    low, high = torch.aminmax(t)
    return -bound < low.item() and high.item() < bound


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor | None:
    """Run PyTorch's LayerNorm kernel; return None if a vector is out of its range."""
    d = x.shape[-1]
    if weight is None:
        # The CPU kernel takes 1.7 times as long without a gain, and a float32 gain also makes it
        # save float32 statistics for half-precision input.
        weight = torch.ones(d, dtype=stats_dtype(x), device=x.device)
    if not x.is_cpu:
        wide = scaled_into_range(x).to(weight.dtype)
        return torch.native_layer_norm(wide, (d,), weight, bias, eps)[0].to(x.dtype)
    y, mean, rstd = torch.native_layer_norm(x, (d,), weight, bias, eps)
    return y if in_range(x, rstd, mean, eps**-0.5) else None


def rms_statistic(x: Tensor, eps: float, first: int) -> tuple[Tensor, Tensor]:
    """Return ``x`` in the statistics dtype and the 1/RMS of each vector; not differentiable."""
    x = x.detach()
    wide = x.to(stats_dtype(x))
    norm = torch.linalg.vector_norm(wide[..., :first], dim=-1, keepdim=True)
    return wide, norm.square_().div_(first).add_(eps).rsqrt_()


def rms_output(
    wide: Tensor, rstd: Tensor, weight: Tensor | None, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Compute ``wide * rstd * weight + bias`` in `dtype` in few passes; not differentiable.

    Overwrites `wide` if its dtype is not `dtype`, since it is a copy then.
    """
    y = wide * rstd if wide.dtype == dtype else wide.mul_(rstd)
    if weight is not None:
        y.mul_(weight)
    if bias is not None:
        y.add_(bias)
    return y.to(dtype)


class RMSNormFunction(torch.autograd.Function):
    """RMSNorm and pRMSNorm that save x and 1/RMS; the backward reuses LayerNorm's kernel.

    With r = 1/sqrt(mean_k(x^2) + eps), u = g * w and S = sum(u * x) over all features,
    dx = r * u - [feature < k] * x * r^3 * S / k, and dw is the sum over vectors of g * x * r.
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
        """Normalize ``x`` by its `rms_statistic`; weight and bias in the statistics dtype."""
        ctx.save_for_backward(x, weight, bias, rstd)
        ctx.eps, ctx.first = eps, first
        return rms_output(wide, rstd, weight, bias, x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Compute gradients of x, weight and bias; differentiable if a graph is requested."""
        x, weight, bias, rstd = ctx.saved_tensors
        needs, first = list(ctx.needs_input_grad[:3]), ctx.first
        with without_autocast(x):
            if torch.is_grad_enabled() or is_batched(grad):
                dx, dw, db = formula_gradients(
                    lambda x, w, b: formulas.rms_norm(x, w, b, ctx.eps, first),
                    (x, weight, bias),
                    needs,
                    grad,
                )
            else:
                wide = grad.to(rstd.dtype), x.to(rstd.dtype)
                if first == x.shape[-1]:
                    dx, dw, db = _rms_backward(*wide, weight, bias, rstd, needs)
                else:
                    dx, dw, db = _partial_rms_backward(*wide, weight, rstd, first, needs)
        return None if dx is None else dx.to(x.dtype), dw, db, None, None, None, None


def _rms_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    rstd: Tensor,
    needs: list[bool],
) -> Parameters:
    """Compute (dx, dw, db) by LayerNorm's kernel with a mean of zero.

    That kernel gives r * (u - mean(u) - xhat * mean(u * xhat)); adding r * mean(u) leaves RMSNorm's
    gradient, in one pass over grad and x for all three results.
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
    grad: Tensor, x: Tensor, weight: Tensor | None, rstd: Tensor, first: int, needs: list[bool]
) -> Parameters:
    """Compute (dx, dw, db) where only the leading features are in the statistic."""
    d, dw, dx, db = x.shape[-1], None, None, None
    if needs[1] and weight is not None:
        mask, zero = [False, True, False], torch.zeros_like(rstd)
        dw = _layer_norm_backward(grad, x, [d], zero, rstd, weight, None, mask)[1]
    if needs[0]:
        # in this order no product exceeds an output or a gradient
        unit = x * rstd
        dx = grad.clone() if weight is None else grad * weight
        pull = (dx * unit).sum(-1, keepdim=True).div_(-first)
        dx[..., :first].addcmul_(unit[..., :first], pull)
        dx.mul_(rstd)
    if needs[2]:
        db = grad.reshape(-1, d).sum(0)
    return dx, dw, db


class AdaNormFunction(torch.autograd.Function):
    """AdaNorm that saves x, its mean and 1/sigma, and recomputes y in the backward.

    With y = (x - mean) * r, a constant factor phi = c * (1 - k * y) and h = g * phi,
    dx = r * (h - mean(h) - y * mean(h * y)): LayerNorm's backward with h as the gradient.
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
        """Compute the output from ``x`` and its `ada_statistics`."""
        ctx.save_for_backward(x, mean, rstd)
        ctx.eps, ctx.c, ctx.k = eps, c, k
        return ada_output(scaled, c, k, x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradient of x; differentiable if a graph is requested."""
        x, mean, rstd = ctx.saved_tensors
        with without_autocast(x):
            if torch.is_grad_enabled() or is_batched(grad):
                (dx,) = formula_gradients(
                    lambda x: formulas.ada_norm(x, ctx.eps, ctx.c, ctx.k), (x,), (True,), grad
                )
                return dx, None, None, None, None, None, None
            wide = x.to(rstd.dtype)
            # phi = c * (1 - k * (x - mean) * r) = offset + slope * x
            slope = rstd * (-ctx.c * ctx.k)
            offset = (slope * mean).neg_().add_(ctx.c)
            inner = torch.addcmul(offset, wide, slope).mul_(grad)
            mask, d = [True, False, False], x.shape[-1]
            dx = _layer_norm_backward(inner, wide, [d], mean, rstd, None, None, mask)[0]
        return dx.to(x.dtype), None, None, None, None, None, None


def ada_statistics(x: Tensor, eps: float, c: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return c * LayerNorm-simple(x), and the mean and 1/sigma of each vector; no gradient."""
    x, d = x.detach(), x.shape[-1]
    wide = x.to(stats_dtype(x))
    # the kernel is faster with a gain than without one, so c is the gain
    scaled, mean, rstd = _native_layer_norm(wide, [d], wide.new_full((d,), c), None, eps)
    return scaled, mean, rstd


def ada_output(scaled: Tensor, c: float, k: float, dtype: torch.dtype) -> Tensor:
    """Compute AdaNorm, c * (1 - k * y) * y, from ``scaled`` = c * y; c is not 0; no gradient."""
    return torch.addcmul(scaled, scaled, scaled, value=-k / c).to(dtype)
