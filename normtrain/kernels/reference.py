"""Norms in ATen calls alone: plain formulas, and functions with a backward derived by hand.

Shapes: ``x`` is ``(..., d)``; per-row statistics are ``(..., 1)``; weight and bias are ``(d,)``.
Everything here expects weight and bias in the statistics dtype (see `stats_dtype`) and returns
the dtype of ``x``. The plain formulas are what `torch.compile` and double backward see; the
functions save one activation and one number a row, and are several times faster on a CPU.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

_layer_norm = torch.ops.aten.native_layer_norm
_layer_norm_backward = torch.ops.aten.native_layer_norm_backward


def stats_dtype(x: Tensor) -> torch.dtype:
    """The dtype statistics are computed in: float64 for float64 input, float32 otherwise."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def without_autocast(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Autocast would narrow the products in here or widen results, so it is switched off."""
    kind = x.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return contextlib.nullcontext()


def _affine(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is not None:
        y = y * weight
    return y if bias is None else y + bias


def _inverse(mean_square: Tensor, eps: float, eps_mode: str) -> Tensor:
    """1/sqrt(m + eps), or 1/(sqrt(m) + eps) with a zero (not infinite) slope at m = 0."""
    if eps_mode == "inside":
        return torch.rsqrt(mean_square + eps)
    zero = mean_square == 0
    root = torch.where(zero, 1.0, mean_square).sqrt()
    return 1.0 / (torch.where(zero, 0.0, root) + eps)


def plain_layer_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, eps_mode: str = "inside"
) -> Tensor:
    """LayerNorm of the last axis: (x - mean) / sqrt(population variance + eps) * weight + bias."""
    wide = x.to(stats_dtype(x))
    centred = wide - wide.mean(-1, keepdim=True)
    scale = _inverse(centred.square().mean(-1, keepdim=True), eps, eps_mode)
    return _affine(centred * scale, weight, bias).to(x.dtype)


def plain_rms_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    first: int,
    eps_mode: str = "inside",
) -> Tensor:
    """x / sqrt(mean square of the first `first` features + eps) * weight + bias."""
    wide = x.to(stats_dtype(x))
    scale = _inverse(wide[..., :first].square().mean(-1, keepdim=True), eps, eps_mode)
    return _affine(wide * scale, weight, bias).to(x.dtype)


def plain_ada_norm(x: Tensor, eps: float, c: float, k: float, eps_mode: str = "inside") -> Tensor:
    """AdaNorm: c * (1 - k * y) * y with y = LayerNorm-simple(x) and the factor held constant."""
    y = plain_layer_norm(x.to(stats_dtype(x)), None, None, eps, eps_mode)
    return (c * (1.0 - k * y.detach()) * y).to(x.dtype)


def _sum_to_row(t: Tensor) -> Tensor:
    """Sum ``(..., d)`` over everything but the last axis."""
    return t.reshape(-1, t.shape[-1]).sum(0)


def rms_norm_and_rstd(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, first: int
) -> tuple[Tensor, Tensor]:
    """RMSNorm or pRMSNorm in few passes, and the 1/RMS of each row; not differentiable."""
    wide = x.to(stats_dtype(x))
    norm = torch.linalg.vector_norm(wide[..., :first], dim=-1, keepdim=True)
    rstd = norm.square_().div_(first).add_(eps).rsqrt_()
    y = wide * rstd if wide is x else wide.mul_(rstd)
    if weight is not None:
        y.mul_(weight)
    if bias is not None:
        y.add_(bias)
    return y.to(x.dtype), rstd


class RMSNormFunction(torch.autograd.Function):
    """RMSNorm and pRMSNorm that keep x and 1/RMS for the backward, which reuses LayerNorm's.

    With r = 1/sqrt(mean_k(x^2) + eps), u = g * w and S = sum(u * x) over the whole row,
    dx = r * u - [feature < k] * x * r^3 * S / k, and dw = sum over rows of g * x * r.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, first: int
    ) -> Tensor:
        """Normalise ``x``; weight and bias come in the statistics dtype."""
        y, rstd = rms_norm_and_rstd(x, weight, bias, eps, first)
        ctx.save_for_backward(x, weight, bias, rstd)
        ctx.eps, ctx.first = eps, first
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight and bias; differentiable when a graph of it is asked for."""
        x, weight, bias, rstd = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[:3])
        with without_autocast(x):
            if torch.is_grad_enabled():
                grads = _rms_backward_plain(grad, x, weight, ctx.eps, ctx.first, needs)
            else:
                wide = grad.to(rstd.dtype), x.to(rstd.dtype)
                if ctx.first == x.shape[-1]:
                    grads = _rms_backward(*wide, weight, bias, rstd, needs)
                else:
                    grads = _partial_rms_backward(*wide, weight, rstd, ctx.first, needs)
        dx, dw, db = grads
        return None if dx is None else dx.to(x.dtype), dw, db, None, None


_Grads = tuple[Tensor | None, Tensor | None, Tensor | None]


def _rms_backward_plain(
    grad: Tensor, x: Tensor, weight: Tensor | None, eps: float, first: int, needs: list[bool]
) -> _Grads:
    """(dx, dw, db) from x itself, so that it can be differentiated once more."""
    wide = stats_dtype(x)
    x, grad = x.to(wide), grad.to(wide)
    head = x[..., :first]
    rstd = torch.rsqrt(head.square().mean(-1, keepdim=True) + eps)
    u = grad if weight is None else grad * weight
    pull = rstd.pow(3) * (u * x).sum(-1, keepdim=True) / first
    dx = u * rstd
    dx = torch.cat((dx[..., :first] - head * pull, dx[..., first:]), dim=-1)
    dw = _sum_to_row(grad * x * rstd) if needs[1] else None
    return dx, dw, _sum_to_row(grad) if needs[2] else None


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
        dx = grad * rstd if weight is None else torch.mul(grad, weight).mul_(rstd)
        pull = (dx * x).sum(-1, keepdim=True).mul_(rstd).mul_(rstd).div_(-first)
        dx[..., :first].addcmul_(x[..., :first], pull)
    return dx, dw, _sum_to_row(grad) if needs[2] else None


class AdaNormFunction(torch.autograd.Function):
    """AdaNorm that keeps x, its mean and 1/sigma, and makes y again in the backward.

    With y = (x - mean) * r, a constant factor phi = c * (1 - k * y) and h = g * phi,
    dx = r * (h - mean(h) - y * mean(h * y)): LayerNorm's backward with h for the gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float, c: float, k: float) -> Tensor:
        """Normalise ``x``; c must not be 0."""
        z, mean, rstd = ada_norm_and_stats(x, eps, c, k)
        ctx.save_for_backward(x, mean, rstd)
        ctx.eps, ctx.c, ctx.k = eps, c, k
        return z

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient of x; differentiable when a graph of it is asked for."""
        x, mean, rstd = ctx.saved_tensors
        with without_autocast(x):
            if torch.is_grad_enabled():
                z = plain_ada_norm(x, ctx.eps, ctx.c, ctx.k)
                (dx,) = torch.autograd.grad(z, x, grad, create_graph=True)
                return dx, None, None, None
            wide = x.to(rstd.dtype)
            # phi = c * (1 - k * (x - mean) * r): an offset and a slope a row, applied to x
            slope = rstd * (-ctx.c * ctx.k)
            offset = (slope * mean).neg_().add_(ctx.c)
            inner = torch.addcmul(offset, wide, slope).mul_(grad)
            mask, d = [True, False, False], x.shape[-1]
            dx = _layer_norm_backward(inner, wide, [d], mean, rstd, None, None, mask)[0]
        return dx.to(x.dtype), None, None, None


def ada_norm_and_stats(x: Tensor, eps: float, c: float, k: float) -> tuple[Tensor, Tensor, Tensor]:
    """AdaNorm, and the mean and 1/sigma of each row; not differentiable; c must not be 0."""
    d = x.shape[-1]
    wide = x.to(stats_dtype(x))
    # The kernel is faster with a gain than without one, and c rides along for nothing.
    scaled, mean, rstd = _layer_norm(wide, [d], wide.new_full((d,), c), None, eps)
    return torch.addcmul(scaled, scaled, scaled, value=-k / c).to(x.dtype), mean, rstd
