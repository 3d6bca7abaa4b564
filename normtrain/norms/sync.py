"""Where a batch norm's statistics come from: this process's batch, or those of all ranks as one.

A `LocalValues` or `RankedValues` tells a norm how many values a channel has and joins per-channel
sums and per-channel lists over whatever holds them. Its collectives can be differentiated: a
backward through them is a collective too, in the same order on every rank, and gives each rank
the gradient of the *sum* of all ranks' losses by its own input. Gradients averaged over ranks, as
DistributedDataParallel leaves them, are then those of the mean of the ranks' losses.
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
    """The sum of every rank's tensor, on every rank."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        """Add up tensors of one shape."""
        ctx.group = group
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Each rank's input is in every rank's sum, so its gradient is the sum of theirs."""
        return SumOverRanks.apply(grad, ctx.group), None


class JoinRanks(torch.autograd.Function):
    """Every rank's ``(c, k)`` side by side, ``(c, world * k)``, on every rank."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        """Concatenate tensors of one shape in the order of ranks."""
        ctx.group = group
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, x.contiguous(), group=group)
        return torch.cat(parts, dim=1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """This rank's columns of the sum of all gradients."""
        total = SumOverRanks.apply(grad, ctx.group)
        return total.chunk(dist.get_world_size(ctx.group), dim=1)[dist.get_rank(ctx.group)], None


def is_split(group: Group) -> bool:
    """Whether more than one rank holds the batch: a process group is up and has several."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1


def peaks(x: Tensor) -> Tensor:
    """The largest magnitude of each channel of ``(n, c, *)``, ``(c,)``; 0 where there is none.

    Values that share the maximum share its gradient.
    """
    axes = [0, *range(2, x.dim())]
    # A rank without values must still take part in the backward's collectives.
    return x.sum(axes) if x.numel() == 0 else x.abs().amax(axes)


class LocalValues:
    """The values ``(n, c, *)`` of one process.

    Attributes:
        count: how many values each channel has.
        peaks: the largest magnitude of each channel, ``(c,)``.
    """

    def __init__(self, x: Tensor) -> None:
        self.count = x.numel() // x.shape[1]
        self.peaks = peaks(x.detach())

    def total(self, sums: Tensor) -> Tensor:
        """Sums ``(c,)`` of this process's values to sums of all."""
        return sums

    def largest(self, rows: Tensor, k: int) -> Tensor:
        """The mean of the k largest (or all, if fewer) of each row ``(c, n)``, ``(c,)``."""
        return rows.topk(min(k, self.count), dim=1).values.mean(1)

    def maximum(self, maxima: Tensor) -> Tensor:
        """Maxima ``(c,)`` of this process's values to maxima of all."""
        return maxima

    def maximum_constant(self) -> float:
        """C_inf for this many values."""
        return linf_constant(self.count)


class RankedValues:
    """The values ``(n, c, *)`` of all ranks of a group, n differing (0 included) between ranks.

    Attributes:
        count: how many values each channel has in all, a tensor, so that a GPU needn't be awaited.
        peaks: the largest magnitude of each channel over all ranks, ``(c,)``.
    """

    def __init__(self, x: Tensor, group: Group) -> None:
        self.group = group
        mine = peaks(x.detach()).double()  # exact, and counts to 2^53
        mine = torch.cat((mine, mine.new_full((1,), x.numel() // x.shape[1])))
        joined = JoinRanks.apply(mine.unsqueeze(1), group)
        self.peaks = joined[:-1].amax(1).to(x.dtype)
        self.count = joined[-1].sum()

    def total(self, sums: Tensor) -> Tensor:
        """Sums ``(c,)`` of this process's values to sums of all."""
        return SumOverRanks.apply(sums, self.group)

    def largest(self, rows: Tensor, k: int) -> Tensor:
        """The mean of the k largest (or all, if fewer) of all ranks' rows ``(c, n)``, ``(c,)``.

        Rows hold magnitudes: a rank with fewer than k of them is filled up with zeros.
        """
        rows = functional.pad(rows, (0, max(0, k - rows.shape[1])))
        joined = JoinRanks.apply(rows.topk(k, dim=1).values, self.group)
        return joined.topk(k, dim=1).values.sum(1) / self.count.clamp(max=k)

    def maximum(self, maxima: Tensor) -> Tensor:
        """Maxima ``(c,)`` of this process's values to maxima of all."""
        return JoinRanks.apply(maxima.unsqueeze(1), self.group).amax(1)

    def maximum_constant(self) -> Tensor:
        """C_inf for this many values; it is proportional to 1/sqrt(ln n)."""
        return linf_constant(2) * (math.log(2) / self.count.clamp(min=2).log()).sqrt()
