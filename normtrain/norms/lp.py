"""Norms without squares: L1, L-infinity and top-k, over the last axis as in LayerNorm."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from normtrain import kernels
from normtrain.norms.base import NormBase, whole
from normtrain.norms.registry import register_norm

_SOURCE = "Hoffer, Banner, Golan, Soudry 2018, Norm matters, arXiv:1803.01814"

L1_CONSTANT = math.sqrt(math.pi / 2)
"""The standard deviation of a normal variable over its mean absolute deviation."""


def linf_constant(n: int) -> float:
    """Return the paper's constant of the L-infinity norm for n values.

    It is (1 + sqrt(pi * ln 4)) / sqrt(8 * ln n). Times the largest magnitude of n normal values it
    gives 1.39 to 1.45 standard deviations (n = 64 to 16384), not 1; a learned gain compensates.

    Args:
        n: how many values the statistic is taken over, at least 1.

    Returns:
        The constant; 1 for a single value, whose distance from its mean is 0.
    """
    if n == 1:
        return 1.0
    return (1.0 + math.sqrt(math.pi * math.log(4.0))) / math.sqrt(8.0 * math.log(n))


class _LpNorm(NormBase):
    """The constructor of the norms of this file; each has its constant of the statistic."""

    constant: float

    def __init__(
        self,
        dim: int,
        *,
        eps: float = 1e-5,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, eps)
        self.constant = self.constant_for(dim)
        self.add_parameters(weight=True, bias=bias, device=device, dtype=dtype)

    @staticmethod
    def constant_for(dim: int) -> float:
        """Return what the statistic is multiplied by."""
        return linf_constant(dim)


@register_norm(
    "l1norm",
    formula="(x - mean) / (sqrt(pi / 2) * mean|x - mean| + eps) * weight + bias",
    parameters="weight, bias",
    source=_SOURCE,
    invariances=("scale", "shift"),
)
class L1Norm(_LpNorm):
    """LayerNorm with the mean absolute deviation in place of the standard deviation.

    The constant sqrt(pi / 2) makes the two equal for normally distributed features. There is no
    square that could overflow and no root: the authors propose it for half precision. Mean and
    statistic are both differentiated; the derivative of ``|.|`` at 0 is taken as 0.

    Published defaults: eps 1e-5, weight 1, bias 0.

    Departures: the paper and its code normalize the channels of convolutional nets over the batch
    (``normtrain.norms.batch`` has that form); their repository has no layer norm, so this is the
    same formula by analogy over the last axis. One of their two L1 layers adds eps to constant
    times statistic, as here; the other has no eps. Statistics are float32 here; the paper and its
    code do not specify a dtype.

    Args:
        dim: size of the last axis, at least 1.
        eps: added to constant times statistic.
        bias: whether there is a learned bias.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        UserError: dim, eps or bias is out of range.
    """

    @staticmethod
    def constant_for(dim: int) -> float:
        """Return what the statistic is multiplied by."""
        return L1_CONSTANT

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``(..., dim)``; same shape and dtype."""
        self.check(x)
        return kernels.lp_norm(x, *self.weight_and_bias(), self.eps, self.constant)


@register_norm(
    "linfnorm",
    formula=(
        "(x - mean) / (c * max|x - mean| + eps) * weight + bias, "
        "c = (1 + sqrt(pi * ln 4)) / sqrt(8 * ln dim)"
    ),
    parameters="weight, bias",
    source=_SOURCE,
    invariances=("scale", "shift"),
)
class LInfNorm(_LpNorm):
    """LayerNorm with the largest absolute deviation in place of the standard deviation.

    The cheapest of these statistics, one comparison per feature, and the noisiest: one outlier
    determines the scale of the whole vector. Mean and statistic are both differentiated; features
    that share the maximum share its gradient equally.

    Published defaults: eps 1e-5, weight 1, bias 0.

    Departures: the paper's constant does not give normally distributed vectors unit variance: it
    overestimates the deviation by a factor of 1.39 at 64 features and 1.45 at 16384, which a
    learned gain compensates. The authors' paper and code normalize channels over the batch (see
    ``normtrain.norms.batch``); over the last axis this is the same formula by analogy, with dim in
    place of their number of values.

    Args:
        dim: size of the last axis, at least 1.
        eps: added to constant times statistic.
        bias: whether there is a learned bias.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        UserError: dim, eps or bias is out of range.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``(..., dim)``; same shape and dtype."""
        self.check(x)
        return kernels.lp_norm(x, *self.weight_and_bias(), self.eps, self.constant, k=1)


@register_norm(
    "topknorm",
    formula=(
        "(x - mean) / (c * mean of the k largest |x - mean| + eps) * weight + bias, "
        "c = (1 + sqrt(pi * ln 4)) / sqrt(8 * ln dim)"
    ),
    parameters="weight, bias",
    source=_SOURCE,
    invariances=("scale", "shift"),
)
class TopKNorm(_LpNorm):
    """LayerNorm with the mean of the k largest absolute deviations as the deviation.

    Between ``linfnorm`` (k = 1, equal) and ``l1norm`` (k = dim, equal but for the constant): less
    noisy than the maximum alone. Mean and statistic are both differentiated.

    Published defaults: k = 10 in the paper's headline result ("Top10"), eps 1e-5, weight 1, bias 0.

    Departures: as in the authors' code the constant is that of ``linfnorm`` for every k, so the
    output's variance is above or below 1, depending on k and dim (with k = 10 the statistic is 0.98
    deviations at 64 values and 1.29 at 16384). The authors' paper and code normalize channels over
    the batch (see ``normtrain.norms.batch``). A k above dim counts as dim here.

    Args:
        dim: size of the last axis, at least 1.
        k: how many deviations are averaged, at least 1; more than dim counts as dim.
        eps: added to constant times statistic.
        bias: whether there is a learned bias.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        UserError: dim, k, eps or bias is out of range.
    """

    def __init__(
        self,
        dim: int,
        *,
        k: int = 10,
        eps: float = 1e-5,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, eps=eps, bias=bias, device=device, dtype=dtype)
        self.k = whole("k", k)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``(..., dim)``; same shape and dtype."""
        self.check(x)
        k = min(self.k, self.dim)
        return kernels.lp_norm(x, *self.weight_and_bias(), self.eps, self.constant, k)
