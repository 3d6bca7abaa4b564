"""Rotary positions: queries and keys turned by angles that grow with where a token stands."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from normtrain.errors import UserError


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
    cos, sin = rotation.unbind(0)
    first, second = x.chunk(2, -1)  # half precision times float32 is float32
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
    return turned.to(x.dtype)


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
