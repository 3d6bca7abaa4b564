"""Residual add, dropout and norm in one pass where fused kernels run, else one after the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from normtrain.kernels import dispatch, fused
from normtrain.kernels.backend import Backend, Dropout
from normtrain.kernels.table import Scalars


class AddNormFunction(torch.autograd.Function):
    """Norm of the sum, and the sum, of ``residual + dropout(x)``, all ``(rows, d)``."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        dropout: Dropout,
        kind: str,
        scalars: Scalars,
        backend: Backend,
    ) -> tuple[Tensor, Tensor]:
        """Run the backend's `Backend.forward_add`."""
        parameters = weight, bias, None
        y, total, stats = backend.forward_add(kind, x, residual, dropout, parameters, scalars)
        ctx.save_for_backward(total, weight, bias, dropout.seeds, stats)
        ctx.call = dropout.p, kind, scalars, backend
        ctx.set_materialize_grads(False)
        return y, total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor | None, grad_total: Tensor | None) -> tuple[Any, ...]:
        """Compute gradients of x, residual, weight and bias; not differentiable again."""
        total, weight, bias, seeds, stats = ctx.saved_tensors
        p, kind, scalars, backend = ctx.call
        grad = torch.zeros_like(total) if grad is None else grad.contiguous()
        if grad_total is not None:
            grad_total = grad_total.contiguous()
        dresidual, dx, (dw, db, _) = backend.backward_add(
            kind, grad, grad_total, total, Dropout(seeds, p), (weight, bias, None), stats, scalars
        )
        dx = dresidual if dx is None else dx
        return dx, dresidual, dw, db, None, None, None, None


def add_norm(
    op: str,
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    p: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Compute ``residual + dropout(x)`` and its norm, as a pre-norm residual stream needs them.

    The sum is rounded to its dtype before it is normalized, as if it were computed first. Dropout
    uses torch's generator, but a different random stream than `torch.nn.functional.dropout`. Where
    fused kernels run, second gradients are an error.

    Args:
        op: ``"layer_norm"`` or ``"rms_norm"``.
        x: the branch ``(..., d)``.
        residual: the residual stream, of the same shape and dtype.
        weight: gain ``(d,)`` or None.
        bias: offset ``(d,)`` or None.
        eps: added to the variance or the mean square.
        p: dropout probability; 0 outside of training.

    Returns:
        Norm and sum, each ``(..., d)`` in the dtype of ``x``.
    """
    kind = {"layer_norm": "layer", "rms_norm": "rms"}[op]
    assert x.shape == residual.shape
    assert 0.0 <= p < 1.0
    backend = dispatch.fused_backend(x, kind, eps, weight, bias)
    if backend is None or x.dtype != residual.dtype or fused.modes_active():
        total = residual + functional.dropout(x, p)
        norm = dispatch.layer_norm if kind == "layer" else dispatch.rms_norm
        return norm(total, weight, bias, eps), total
    d = x.shape[-1]
    rows = x.reshape(-1, d).contiguous(), residual.reshape(-1, d).contiguous()
    seeds = torch.randint(2**62, (rows[0].shape[0],), device=x.device) if p else None
    call = Dropout(seeds, p), kind, Scalars(eps, d), backend
    y, total = AddNormFunction.apply(*rows, weight, bias, *call)
    return y.view(x.shape), total.view(x.shape)
