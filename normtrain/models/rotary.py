"""Rotary positions: queries and keys turned by angles that grow with where a token stands."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from normtrain.errors import UserError
from normtrain.kernels.dispatch import needs_plain_ops


def rotary_table(length: int, head_dim: int, base: float) -> Tensor:
    """Return cos and sin of the angles ``t * base^(-2i / head_dim)`` (Su et al. 2021, eq. 15).

    Args:
        length: number of positions t.
        head_dim: width of a head; even.
        base: theta.

    Returns:
        ``(2, length, head_dim / 2)`` float64: the cosines, then the sines.
    """
    steps = torch.arange(length, dtype=torch.float64)[:, None]
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    angles = steps * torch.exp(-math.log(base) * exponents)
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate each pair of features by the angle of its position.

    Feature i is paired with feature ``i + head_dim / 2``, as in Hugging Face's Llama, so weights
    are exchanged unchanged; Su et al. pair 2i with 2i + 1, a permutation of the same.

    Args:
        x: ``(…, time, head_dim)``, of any float dtype; computed in float32, or float64 for float64.
        rotation: from :class:`Rotary`, ``(2, time, head_dim / 2)``.

    Returns:
        The same shape and dtype as ``x``.
    """
    # Compilers and transforms need the plain formula, which is also faster for a single token.
    if x.requires_grad and torch.is_grad_enabled() and not needs_plain_ops(x):
        rotated: Tensor = _Rotate.apply(x, rotation, 1)
        return rotated
    cos, sin = rotation.unbind(0)
    first, second = x.chunk(2, -1)  # half precision times float32 is float32
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)


class _Rotate(torch.autograd.Function):
    """The rotation with its inverse as gradient; autograd's own takes 1.5 times as long."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rotation: Tensor, sign: int) -> Tensor:
        ctx.save_for_backward(rotation)
        ctx.sign = sign
        cos, sin = rotation.unbind(0)
        first, second = x.chunk(2, -1)
        out = torch.empty(x.shape, dtype=cos.dtype, device=x.device)
        out_first, out_second = out.chunk(2, -1)
        torch.mul(first, cos, out=out_first).addcmul_(second, sin, value=-sign)
        torch.mul(second, cos, out=out_second).addcmul_(first, sin, value=sign)
        return out.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Rotate.apply(grad, *ctx.saved_tensors, -ctx.sign), None, None


class Rotary(nn.Module):
    """The angles of rotary position embeddings (Su et al. 2021, RoFormer).

    Args:
        max_positions: the longest sequence, in tokens.
        head_dim: width of one head.
        base: theta; a larger one rotates the slow pairs more slowly.

    Raises:
        UserError: ``head_dim`` is odd, or ``base`` is not a finite number above 0.
    """

    table: Tensor

    def __init__(self, max_positions: int, head_dim: int, base: float = 10000.0) -> None:
        super().__init__()
        if head_dim % 2:
            raise UserError(f"head_dim of rotary positions must be even, got {head_dim}")
        if not (math.isfinite(base) and base > 0):
            raise UserError(f"rotary_base must be > 0, got {base!r}")
        self.max_positions, self.head_dim, self.base = max_positions, head_dim, base
        self.register_buffer("table", self._computed().float(), persistent=False)

    def _computed(self) -> Tensor:
        return rotary_table(self.max_positions, self.head_dim, self.base)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Rotary:
        """Move with the model, but keep float32 angles in a half-precision model."""
        super()._apply(fn, recurse)
        dtype = torch.float64 if self.table.dtype == torch.float64 else torch.float32
        self.table = self._computed().to(self.table.device, dtype)
        return self

    def forward(self, length: int, start: int = 0) -> Tensor:
        """Return cosines and sines of positions ``start, …, start + length - 1``.

        Returns:
            ``(2, length, head_dim / 2)``, float32, or float64 in a float64 model.
        """
        return self.table[:, start : start + length]
