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
    """Cosines and sines of the angles ``t * base^(-2i / head_dim)`` (Su et al. 2021, eq. 15).

    Args:
        length: number of positions t.
        head_dim: width of a head; even.
        base: the longest wavelength over 2 pi, roughly.

    Returns:
        ``(2, length, head_dim / 2)`` float64: the cosines, then the sines.
    """
    steps = torch.arange(length, dtype=torch.float64)[:, None]
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    angles = steps * torch.exp(-math.log(base) * exponents)
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn each pair of features by its position's angle.

    Feature i is paired with feature ``i + head_dim / 2``, as in Hugging Face's Llama, so weights
    go there and back as they are; Su et al. pair 2i with 2i + 1, a permutation of the same.

    Args:
        x: ``(…, time, head_dim)``, of any float dtype; computed in float32, or float64 for float64.
        rotation: from :class:`Rotary`, ``(2, time, head_dim / 2)``.

    Returns:
        The same shape and dtype as ``x``.
    """
    # The formula is what compilers and transforms work on, and quicker for a single token.
    if x.requires_grad and torch.is_grad_enabled() and not needs_plain_ops(x):
        turned: Tensor = _Turn.apply(x, rotation, 1)
        return turned
    cos, sin = rotation.unbind(0)
    first, second = x.chunk(2, -1)  # half precision times float32 is float32
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)


class _Turn(torch.autograd.Function):
    """A turn whose gradient is turned back; autograd's own takes half as long again."""

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
        return _Turn.apply(grad, *ctx.saved_tensors, -ctx.sign), None, None


class Rotary(nn.Module):
    """The angles of rotary position embeddings (Su et al. 2021, RoFormer).

    Args:
        max_positions: the longest sequence, in tokens.
        head_dim: width of one head.
        base: theta; larger turns the slow pairs more slowly.

    Raises:
        UserError: ``head_dim`` is odd, or ``base`` is not a finite number above 0.
    """

    table: Tensor

    def __init__(self, max_positions: int, head_dim: int, base: float = 10000.0) -> None:
        super().__init__()
        if head_dim % 2:
            raise UserError(
                f"positions=rotary turns pairs of features, so d_model / heads must be even, "
                f"not {head_dim}"
            )
        if not (math.isfinite(base) and base > 0):
            raise UserError(f"rotary_base is a number above 0, not {base!r}")
        self.max_positions, self.head_dim, self.base = max_positions, head_dim, base
        self.register_buffer("table", self._computed().float(), persistent=False)

    def _computed(self) -> Tensor:
        return rotary_table(self.max_positions, self.head_dim, self.base)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Rotary:
        """Follow the model to a device, but keep exact angles when it goes to half precision."""
        super()._apply(fn, recurse)
        dtype = torch.float64 if self.table.dtype == torch.float64 else torch.float32
        self.table = self._computed().to(self.table.device, dtype)
        return self

    def forward(self, length: int, start: int = 0) -> Tensor:
        """Cosines and sines of positions ``start, …, start + length - 1``.

        Returns:
            ``(2, length, head_dim / 2)``, float32, or float64 in a float64 model.
        """
        return self.table[:, start : start + length]
