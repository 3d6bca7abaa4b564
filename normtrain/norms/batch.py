"""Batch norms with a deviation computed without squares: L1, L-infinity and top-k.

Hoffer, Banner, Golan, Soudry 2018, Norm matters, arXiv:1803.01814. Per channel, over
its n values of batch and space,

    y = (x - mean) / (c * statistic + eps) * weight + bias

=======  ===================================  ===============================================
norm     statistic                            c
=======  ===================================  ===============================================
L1       mean of |x - mean|                   sqrt(pi / 2): the deviation of a Gaussian
L-inf    max of |x - mean|                    (1 + sqrt(pi ln 4)) / sqrt(8 ln n)
top-k    mean of the k largest |x - mean|     that of L-inf for every k, as the authors' code
=======  ===================================  ===============================================

The L-inf and top-k outputs do not have unit variance (c * max is 1.39 to 1.45 deviations of a
Gaussian for n of 64 to 16384); the learned weight compensates. Mean and statistic are both
differentiated. Departures from the authors' code: momentum and running statistics mean what they
mean in PyTorch (theirs are inverted, and their `running_var` is an inverse deviation that starts
at 0), the weight starts at 1, and statistics of half precision are taken in float32.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from normtrain.errors import UserError
from normtrain.kernels.formulas import stats_dtype, without_autocast
from normtrain.norms.base import flag, not_negative, positive, whole
from normtrain.norms.lp import L1_CONSTANT
from normtrain.norms.registry import checked_dim
from normtrain.norms.sync import LocalValues, RankedValues, is_split, peaks

# Channels with larger values are scaled down to this size: sums of them stay finite, and eps is far
# below their rounding error. As nothing is squared, the bound can be this high.
_HUGE = {torch.float32: 2.0**64, torch.float64: 2.0**512}


class BatchNormBase(nn.Module):
    """Base class of the batch norms, with the options and buffers of PyTorch's.

    Input ``(n, num_features, *)``, output the same shape and dtype. In training (and without
    running statistics) the statistics of the batch are used, in float32 (float64 for float64
    input); in eval the running statistics. Buffers: ``running_mean`` (zeros), ``running_scale``
    (ones; the average of c * statistic, so that an untrained norm is the identity up to eps in
    eval) and ``num_batches_tracked``. As in `torch.nn.BatchNorm2d`, a running value becomes
    ``(1 - momentum) * old + momentum * batch``.

    Args:
        num_features: channels, the size of axis 1.
        eps: added to the deviation, above 0.
        momentum: the weight of a new batch in the running statistics, 0 to 1; None for the
            average of all batches so far.
        affine: whether there are a learned weight and bias.
        track_running_stats: whether running statistics are kept and used in eval.
        device: device of parameters and buffers.
        dtype: dtype of parameters and buffers.
        bias: with ``affine``, whether there is a bias.
        sync: in training, use the statistics over all ranks' batches (which may differ in size);
            without an initialized process group of several ranks, those of this process.
        process_group: the ranks that share statistics; all of them by default.

    Raises:
        UserError: an option is out of range, or a process group is given without ``sync``.
    """

    input_ranks: ClassVar[tuple[int, ...]] = ()
    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor | None
    running_scale: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        sync: bool = False,
        process_group: Any = None,
    ) -> None:
        super().__init__()
        if process_group is not None and not sync:
            raise UserError("a process_group is only used with sync=True; set both or neither")
        self.num_features = checked_dim(num_features)
        self.eps = positive("eps", eps)
        self.momentum = _checked_momentum(momentum)
        self.affine = flag("affine", affine)
        self.track_running_stats = track_running_stats
        self.sync = sync
        self.process_group = process_group
        for name, wanted in (("weight", affine), ("bias", affine and bias)):
            data = torch.empty(self.num_features, device=device, dtype=dtype) if wanted else None
            self.register_parameter(name, None if data is None else nn.Parameter(data))
        for name in ("running_mean", "running_scale"):
            wide = torch.empty(self.num_features, device=device, dtype=dtype)
            self.register_buffer(name, wide if track_running_stats else None)
        count = torch.empty((), device=device, dtype=torch.long)
        self.register_buffer("num_batches_tracked", count if track_running_stats else None)
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """Reset the running statistics: mean 0, scale 1, no batches tracked."""
        if self.running_mean is not None:
            nn.init.zeros_(self.running_mean)
        if self.running_scale is not None:
            nn.init.ones_(self.running_scale)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        """Set ``weight`` to ones and ``bias`` to zeros, and reset the running statistics."""
        self.reset_running_stats()
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def deviation(self, centred: Tensor, values: LocalValues | RankedValues) -> Tensor:
        """Return c * statistic of each channel.

        Args:
            centred: the input minus its mean, ``(n, c, *)``.
            values: number of values and reductions over them.

        Returns:
            ``(c,)``.
        """
        raise NotImplementedError

    def check(self, x: Tensor) -> None:
        """Check the number of axes, the number of channels and the dtype.

        Args:
            x: the input, ``(n, num_features, *)``.

        Raises:
            ValueError: one of them does not fit this norm.
        """
        name = f"{type(self).__name__}({self.num_features})"
        ranks = self.input_ranks
        if x.dim() < 2 or (ranks and x.dim() not in ranks):
            wanted = " or ".join(f"{rank}-D" for rank in ranks) or "at least 2-D"
            raise ValueError(f"{name} needs {wanted} input, got {x.dim()}-D {tuple(x.shape)}")
        if x.shape[1] != self.num_features:
            raise ValueError(
                f"{name} needs {self.num_features} channels in axis 1, got {tuple(x.shape)}"
            )
        if not x.is_floating_point():
            raise ValueError(f"{name} needs floating-point input, got {x.dtype}")

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``(n, num_features, *)``; same shape and dtype."""
        self.check(x)
        with without_autocast(x):
            if self.training or self.running_mean is None or self.running_scale is None:
                return self._by_batch(x)
            return self._by_running(x, self.running_mean, self.running_scale)

    def _values(self, x: Tensor) -> LocalValues | RankedValues:
        if self.sync and self.training and is_split(self.process_group):
            return RankedValues(x, self.process_group)
        values = LocalValues(x)
        if values.count < 2:
            raise ValueError(
                f"{type(self).__name__} needs more than 1 value per channel in training, "
                f"got input of shape {tuple(x.shape)}"
            )
        return values

    def _by_batch(self, x: Tensor) -> Tensor:
        wide = x.to(stats_dtype(x))
        axes, shape = _axes_and_shape(x)
        values = self._values(wide)
        huge = _HUGE[wide.dtype]
        factor = torch.where(values.peaks > huge, huge / values.peaks, 1.0)
        if x.dtype != torch.float16:  # float16 values are all below the bound
            wide = wide * factor.view(shape)
        mean = values.total(wide.sum(axes)) / values.count
        centred = wide - mean.view(shape)
        # The mean of a constant channel is rounded; without this the rest would count as deviation.
        rest = values.total(centred.detach().sum(axes)) / values.count
        centred = centred - rest.view(shape)
        scale = self.deviation(centred, values)
        self._track(mean.detach() / factor, scale.detach() / factor)
        y = centred / (scale + self.eps).view(shape)
        return self._affine(y, shape).to(x.dtype)

    def _by_running(self, x: Tensor, running_mean: Tensor, running_scale: Tensor) -> Tensor:
        wide = x.to(stats_dtype(x))
        _, shape = _axes_and_shape(x)
        mean, scale = running_mean.to(wide.dtype), running_scale.to(wide.dtype)
        # x - mean can overflow only for a mean this large.
        half = torch.where(mean.abs() > _HUGE[wide.dtype], 0.5, 1.0).to(wide.dtype)
        centred = wide * half.view(shape) - (mean * half).view(shape)
        y = centred / ((scale + self.eps) * half).view(shape)
        return self._affine(y, shape).to(x.dtype)

    def _affine(self, y: Tensor, shape: list[int]) -> Tensor:
        if self.weight is not None:
            y = y * self.weight.to(y.dtype).view(shape)
        return y if self.bias is None else y + self.bias.to(y.dtype).view(shape)

    @torch.no_grad()
    def _track(self, mean: Tensor, scale: Tensor) -> None:
        """Update the running statistics with those of a batch, ``(c,)``; only in training."""
        count = self.num_batches_tracked
        kept = (self.running_mean, self.running_scale, count)
        if not (self.training and self.track_running_stats) or any(t is None for t in kept):
            return
        assert count is not None
        count.add_(1)
        share = self.momentum if self.momentum is not None else 1.0 / count
        for running, batch in ((self.running_mean, mean), (self.running_scale, scale)):
            assert running is not None
            # The deviation of a channel of ±3e38 exceeds the range of float32.
            top = min(torch.finfo(running.dtype).max, torch.finfo(batch.dtype).max)
            new = running.to(batch.dtype) * (1 - share) + batch.clamp(-top, top) * share
            running.copy_(new)

    def extra_repr(self) -> str:
        """Return the size and every option, for ``print(model)``."""
        parts = [
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}",
            f"track_running_stats={self.track_running_stats}",
        ]
        if self.affine and self.bias is None:
            parts.append("bias=False")
        if self.sync:
            parts.append("sync=True")
        return ", ".join(parts)


def _axes_and_shape(x: Tensor) -> tuple[list[int], list[int]]:
    """Return the axes within a channel, and the shape that broadcasts ``(c,)``."""
    return [0, *range(2, x.dim())], [1, x.shape[1], *[1] * (x.dim() - 2)]


def _checked_momentum(momentum: float | None) -> float | None:
    if momentum is not None and not_negative("momentum", momentum) > 1:
        raise UserError(f"momentum must be at most 1, or None, got {momentum!r}")
    return momentum if momentum is None else float(momentum)


class L1BatchNorm(BatchNormBase):
    """Batch norm by the mean absolute deviation: (x - mean) / (sqrt(pi/2) * mean|x - mean| + eps).

    Takes ``(n, num_features, *)`` with 2 axes or more; `L1BatchNorm1d`, ``2d`` and ``3d`` check
    their number. The derivative of |.| at 0 is taken as 0. Options as in `BatchNormBase`.
    """

    def deviation(self, centred: Tensor, values: LocalValues | RankedValues) -> Tensor:
        """Return sqrt(pi/2) * mean of the absolute values, ``(c,)``."""
        axes, _ = _axes_and_shape(centred)
        return values.total(centred.abs().sum(axes)) / values.count * L1_CONSTANT


class LInfBatchNorm(BatchNormBase):
    """Batch norm by the largest absolute deviation: (x - mean) / (c(n) * max|x - mean| + eps).

    Takes ``(n, num_features, *)`` with 2 axes or more; `LInfBatchNorm1d`, ``2d`` and ``3d`` check
    their number. Values that share the maximum share its gradient equally. Options as in
    `BatchNormBase`.
    """

    def deviation(self, centred: Tensor, values: LocalValues | RankedValues) -> Tensor:
        """Return c(n) * the largest absolute value, ``(c,)``."""
        return values.maximum(peaks(centred)) * values.maximum_constant()


class TopKBatchNorm(BatchNormBase):
    """Batch norm by the mean of the k largest absolute deviations, times L-inf's constant.

    Takes ``(n, num_features, *)`` with 2 axes or more; `TopKBatchNorm1d`, ``2d`` and ``3d`` check
    their number. With k = n it is the L1 norm but for the constant, with k = 1 the L-inf norm. The
    paper's headline network uses k = 10.

    Args:
        num_features: channels, the size of axis 1.
        *args: further options of `BatchNormBase`, in its order.
        k: how many of the largest deviations are averaged; all of them where there are fewer.
        **options: further options of `BatchNormBase`, by name.

    Raises:
        UserError: k or an option is out of range.
    """

    def __init__(self, num_features: int, *args: Any, k: int = 10, **options: Any) -> None:
        super().__init__(num_features, *args, **options)
        self.k = whole("k", k)

    def deviation(self, centred: Tensor, values: LocalValues | RankedValues) -> Tensor:
        """Return c(n) * the mean of the k largest absolute values, ``(c,)``."""
        rows = centred.abs().transpose(0, 1).flatten(1)
        return values.largest(rows, self.k) * values.maximum_constant()

    def extra_repr(self) -> str:
        """Return the size and every option, for ``print(model)``."""
        return f"{super().extra_repr()}, k={self.k}"


class L1BatchNorm1d(L1BatchNorm):
    """`L1BatchNorm` of ``(n, c)`` or ``(n, c, length)``."""

    input_ranks = (2, 3)


class L1BatchNorm2d(L1BatchNorm):
    """`L1BatchNorm` of ``(n, c, height, width)``."""

    input_ranks = (4,)


class L1BatchNorm3d(L1BatchNorm):
    """`L1BatchNorm` of ``(n, c, depth, height, width)``."""

    input_ranks = (5,)


class LInfBatchNorm1d(LInfBatchNorm):
    """`LInfBatchNorm` of ``(n, c)`` or ``(n, c, length)``."""

    input_ranks = (2, 3)


class LInfBatchNorm2d(LInfBatchNorm):
    """`LInfBatchNorm` of ``(n, c, height, width)``."""

    input_ranks = (4,)


class LInfBatchNorm3d(LInfBatchNorm):
    """`LInfBatchNorm` of ``(n, c, depth, height, width)``."""

    input_ranks = (5,)


class TopKBatchNorm1d(TopKBatchNorm):
    """`TopKBatchNorm` of ``(n, c)`` or ``(n, c, length)``."""

    input_ranks = (2, 3)


class TopKBatchNorm2d(TopKBatchNorm):
    """`TopKBatchNorm` of ``(n, c, height, width)``."""

    input_ranks = (4,)


class TopKBatchNorm3d(TopKBatchNorm):
    """`TopKBatchNorm` of ``(n, c, depth, height, width)``."""

    input_ranks = (5,)
