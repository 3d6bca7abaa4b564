"""Residual add, dropout and norm in one pass, where fused kernels run; else one after the other."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from normtrain.kernels import dispatch, fused
from normtrain.kernels.rows import Numbers


class AddFunction(torch.autograd.Function):
    """``(norm of the sum, sum)`` of ``residual + dropout(x)``, all ``(rows, d)``."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        seeds: Tensor | None,
        p: float,
        kind: str,
        numbers: Numbers,
        backend: ModuleType,
    ) -> tuple[Tensor, Tensor]:
        """Run the backend; ``seeds`` (rows,) int64 are None for no dropout."""
        y, total, stats = backend.forward_add(
            kind, x, residual, seeds, p, weight, bias, None, numbers
        )
        ctx.save_for_backward(total, weight, bias, seeds, stats)
        ctx.call = p, kind, numbers, backend
        ctx.set_materialize_grads(False)
        return y, total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor | None, grad_total: Tensor | None) -> tuple[Any, ...]:
        """Gradients of x, residual, weight and bias; they can't be differentiated again."""
        total, weight, bias, seeds, stats = ctx.saved_tensors
        p, kind, numbers, backend = ctx.call
        grad = torch.zeros_like(total) if grad is None else grad.contiguous()
        if grad_total is not None:
            grad_total = grad_total.contiguous()
        dresidual, dx, dw, db, _ = backend.backward_add(
            kind, grad, grad_total, total, seeds, p, weight, bias, None, stats, numbers
        )
        dx = dresidual if dx is None else dx
        return dx, dresidual, dw, db, None, None, None, None, None


def add_norm(
    op: str,
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    p: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The norm of ``residual + dropout(x)``, and that sum, which a pre-norm stream goes on with.

    The sum is rounded to its dtype before it is normalised, as if it were made first. Dropout
    draws from torch's generator, not the numbers `torch.nn.functional.dropout` draws. Where fused
    kernels run, second gradients are an error.

    Args:
        op: ``"layer_norm"`` or ``"rms_norm"``.
        x: the branch ``(..., d)``.
        residual: the stream, of the same shape and dtype.
        weight: gain ``(d,)`` or None.
        bias: offset ``(d,)`` or None.
        eps: added to the variance or the mean square.
        p: share of the branch's features that are dropped; 0 outside of training.

    Returns:
        Norm and sum, each ``(..., d)`` in the dtype of ``x``.
    """
    assert op in ("layer_norm", "rms_norm")
    assert x.shape == residual.shape
    assert 0.0 <= p < 1.0
    backend = dispatch.fused_backend(x, op, eps, weight, bias)
    if backend is None or x.dtype != residual.dtype or fused.watched():
        total = residual + functional.dropout(x, p)
        if op == "layer_norm":
            return dispatch.layer_norm(total, weight, bias, eps), total
        return dispatch.rms_norm(total, weight, bias, eps), total
    d = x.shape[-1]
    rows = x.reshape(-1, d).contiguous(), residual.reshape(-1, d).contiguous()
    seeds = None
    if p:
        seeds = torch.randint(2**62, (rows[0].shape[0],), device=x.device)
    kind = "layer" if op == "layer_norm" else "rms"
    y, total = AddFunction.apply(*rows, weight, bias, seeds, p, kind, Numbers(eps, d), backend)
    return y.view(x.shape), total.view(x.shape)
