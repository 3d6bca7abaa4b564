"""Per-channel sums and maxima for batch norms, over this process's batch or all ranks' batches.

`LocalValues` and `RankedValues` give a norm the number of values per channel and reduce per-channel
sums, maxima and k largest values. The collectives of `RankedValues` are differentiable: their
backward pass is a collective too, in the same order on every rank, and gives each rank the gradient
of the *sum* of all ranks' losses with respect to its own input. Gradients averaged over ranks, as
by DistributedDataParallel, are then those of the mean of the ranks' losses.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from normtrain.norms.lp import linf_constant

Group = Any  # a torch.distributed.ProcessGroup, or None for the default group


class SumOverRanks(torch.autograd.Function):
    """Sum of every rank's tensor, on every rank."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        """Sum tensors of one shape."""
        ctx.group = group
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Sum the gradients: each rank's input is part of every rank's sum."""
        return SumOverRanks.apply(grad, ctx.group), None


class JoinRanks(torch.autograd.Function):
    """Every rank's ``(c, k)`` concatenated to ``(c, world * k)``, on every rank."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        """Concatenate tensors of one shape in rank order."""
        ctx.group = group
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, x.contiguous(), group=group)
        return torch.cat(parts, dim=1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Return this rank's columns of the sum of all gradients."""
        total = SumOverRanks.apply(grad, ctx.group)
        return total.chunk(dist.get_world_size(ctx.group), dim=1)[dist.get_rank(ctx.group)], None


def is_split(group: Group) -> bool:
    """Return whether there is an initialized process group of more than one rank."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1


def peaks(x: Tensor) -> Tensor:
    """Return the largest magnitude of each channel of ``(n, c, *)``, ``(c,)``; 0 for no values.

    Values that share the maximum share its gradient equally.
    """
    axes = [0, *range(2, x.dim())]
    # A rank without values must still take part in the collectives of the backward pass.
    return x.sum(axes) if x.numel() == 0 else x.abs().amax(axes)


class LocalValues:
    """The values ``(n, c, *)`` of one process.

    Attributes:
        count: number of values of each channel.
        peaks: the largest magnitude of each channel, ``(c,)``.
    """

    def __init__(self, x: Tensor) -> None:
        self.count = x.numel() // x.shape[1]
        self.peaks = peaks(x.detach())

    def total(self, sums: Tensor) -> Tensor:
        """Return the sums ``(c,)`` over all values, given those of this process."""
        return sums

    def largest(self, rows: Tensor, k: int) -> Tensor:
        """Return the mean of the k largest (or all, if fewer) of each row ``(c, n)``, ``(c,)``."""
        return rows.topk(min(k, self.count), dim=1).values.mean(1)

    def maximum(self, maxima: Tensor) -> Tensor:
        """Return the maxima ``(c,)`` over all values, given those of this process."""
        return maxima

    def maximum_constant(self) -> float:
        """Return the L-inf constant for this many values."""
        return linf_constant(self.count)


class RankedValues:
    """The values ``(n, c, *)`` of all ranks of a group; n may differ between ranks, and be 0.

    Attributes:
        count: number of values of each channel on all ranks; a tensor, to avoid a GPU sync.
        peaks: the largest magnitude of each channel over all ranks, ``(c,)``.
    """

    def __init__(self, x: Tensor, group: Group) -> None:
        self.group = group
        mine = peaks(x.detach()).double()  # float64 holds counts up to 2^53 exactly
        mine = torch.cat((mine, mine.new_full((1,), x.numel() // x.shape[1])))
        joined = JoinRanks.apply(mine.unsqueeze(1), group)
        self.peaks = joined[:-1].amax(1).to(x.dtype)
        self.count = joined[-1].sum()

    def total(self, sums: Tensor) -> Tensor:
        """Return the sums ``(c,)`` over all values, given those of this process."""
        return SumOverRanks.apply(sums, self.group)

    def largest(self, rows: Tensor, k: int) -> Tensor:
        """Return the mean of the k largest (or all, if fewer) of all ranks' ``(c, n)``, ``(c,)``.

        The values are magnitudes, so a rank with fewer than k of them is padded with zeros.
        """
        rows = functional.pad(rows, (0, max(0, k - rows.shape[1])))
        joined = JoinRanks.apply(rows.topk(k, dim=1).values, self.group)
        return joined.topk(k, dim=1).values.sum(1) / self.count.clamp(max=k)

    def maximum(self, maxima: Tensor) -> Tensor:
        """Return the maxima ``(c,)`` over all values, given those of this process."""
        return JoinRanks.apply(maxima.unsqueeze(1), self.group).amax(1)

    def maximum_constant(self) -> Tensor:
        """Return the L-inf constant for this many values; it is proportional to 1/sqrt(ln n)."""
        return linf_constant(2) * (math.log(2) / self.count.clamp(min=2).log()).sqrt()
