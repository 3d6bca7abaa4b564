"""Sinusoidal (fixed) and learned position vectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from normtrain.errors import UserError


def sinusoidal_table(length: int, dim: int) -> Tensor:
    """Return sine and cosine position vectors (Vaswani et al. 2017, section 3.5).

    Args:
        length: number of positions.
        dim: width of a vector; an odd width ends on a sine.

    Returns:
        ``(length, dim)`` float32: even columns ``sin(t / 10000^(i/dim))``, odd ones the cosine.
    """
    steps = torch.arange(length, dtype=torch.float64)[:, None]
    rates = torch.exp(torch.arange(0, dim, 2, dtype=torch.float64) * (-math.log(10000.0) / dim))
    table = torch.zeros(length, dim, dtype=torch.float64)
    table[:, 0::2] = torch.sin(steps * rates)
    table[:, 1::2] = torch.cos(steps * rates[: dim // 2])
    return table.float()


def check_fits(tokens: int, max_positions: int) -> None:
    """Check that a sequence is not longer than the positions of a model.

    Raises:
        UserError: ``tokens`` is more than ``max_positions``.
    """
    if tokens > max_positions:
        raise UserError(
            f"a sequence of {tokens} tokens is longer than model.max_positions="
            f"{max_positions}; shorten it or train with a larger model.max_positions"
        )


class Positions(nn.Module):
    """Adds position vectors to token vectors.

    Args:
        kind: ``"sinusoidal"`` (no parameters) or ``"learned"`` (one vector per position).
        max_positions: the longest sequence, in tokens.
        dim: width of a token vector.
    """

    table: Tensor

    def __init__(self, kind: str, max_positions: int, dim: int) -> None:
        super().__init__()
        self.kind, self.max_positions = kind, max_positions
        if kind == "learned":
            self.weight = nn.Parameter(torch.empty(max_positions, dim))
            nn.init.normal_(self.weight, std=dim**-0.5)
        else:
            # Not persistent, since it follows from the sizes.
            self.register_buffer("table", sinusoidal_table(max_positions, dim), persistent=False)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """Add the vectors of positions ``start, start + 1, …``.

        Args:
            x: ``(batch, time, dim)``.
            start: position of ``x[:, 0]``.

        Returns:
            ``(batch, time, dim)``.

        Raises:
            UserError: the sequence ends after ``max_positions``.
        """
        end = start + x.size(1)
        check_fits(end, self.max_positions)
        table = self.weight if self.kind == "learned" else self.table
        return x + table[start:end].to(x.dtype)
