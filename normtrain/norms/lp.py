"""Norms without squares: L1, L-infinity and top-k, in the manner of LayerNorm."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from normtrain import kernels
from normtrain.errors import UserError
from normtrain.norms.base import NormBase
from normtrain.norms.registry import register_norm

_SOURCE = "Hoffer, Banner, Golan, Soudry 2018, Norm matters, arXiv:1803.01814"

# mean|x| of a normal variable is its deviation over this
L1_CONSTANT = math.sqrt(math.pi / 2)


def linf_constant(n: int) -> float:
    """The paper's constant of the L-infinity norm for n values.

    (1 + sqrt(pi * ln 4)) / sqrt(8 * ln n), by which the largest of n normal values in magnitude
    comes to 1.39 to 1.45 deviations (n = 64 to 16384), not to 1: a learned gain takes the rest.

    Args:
        n: how many values the statistic is taken over, at least 1.

    Returns:
        The constant; 1 for a single value, whose distance from its mean is 0 anyway.
    """
    if n == 1:
        return 1.0
    return (1.0 + math.sqrt(math.pi * math.log(4.0))) / math.sqrt(8.0 * math.log(n))


@register_norm(
    "l1norm",
    formula="(x - mean) / (sqrt(pi / 2) * mean|x - mean| + eps) * weight + bias",
    parameters="weight, bias",
    source=_SOURCE,
    invariances=("scale", "shift"),
)
class L1Norm(NormBase):
    """LayerNorm with the mean distance from the mean for the standard deviation.

    The constant sqrt(pi / 2) makes the two agree on normally distributed rows. There is no square
    to overflow and no root: the authors propose it for half precision. Mean and statistic are both
    differentiated; the slope of ``|.|`` at 0 is taken as 0.

    Published defaults: eps 1e-5, weight 1, bias 0.

    Departures: the paper and its code norm the channels of convolutional nets over the batch
    (``normtrain.norms.batch`` has that form); their repository holds no layer norm, so this is
    the same formula by analogy over the last axis. One of their two L1 layers adds eps to constant
    times statistic, as here, the other has no eps at all. Statistics are float32 here, and not
    spoken of there.

    Args:
        dim: size of the last axis.
        eps: added to constant times statistic.
        bias: whether there is a learned bias.
        device: where the parameters live.
        dtype: the parameters' dtype.

    Raises:
        UserError: dim or eps is out of range.
    """

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
        self.add_parameters(weight=True, bias=bias, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(..., dim)``; same shape and dtype."""
        self.check(x)
        return kernels.lp_norm(x, self.weight, self.bias, self.eps, L1_CONSTANT)


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
class LInfNorm(NormBase):
    """LayerNorm with the largest distance from the mean for the standard deviation.

    The cheapest statistic there is, a comparison per feature, and the noisiest: one outlier sets
    the whole row. Mean and statistic are both differentiated; features that share the maximum
    share its gradient evenly.

    Published defaults: eps 1e-5, weight 1, bias 0.

    Departures: the paper's constant does not bring normal rows to unit variance; it overrates the
    deviation 1.39 times at 64 features and 1.45 times at 16384, and a learned gain makes up for it.
    The authors' paper and code norm channels over the batch (see ``normtrain.norms.batch``); over
    the last axis it is the same formula by analogy, with dim for their count of values.

    Args:
        dim: size of the last axis.
        eps: added to constant times statistic.
        bias: whether there is a learned bias.
        device: where the parameters live.
        dtype: the parameters' dtype.

    Raises:
        UserError: dim or eps is out of range.
    """

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
        self.constant = linf_constant(dim)
        self.add_parameters(weight=True, bias=bias, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(..., dim)``; same shape and dtype."""
        self.check(x)
        return kernels.lp_norm(x, self.weight, self.bias, self.eps, self.constant, k=1)


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
class TopKNorm(NormBase):
    """LayerNorm with the mean of the k largest distances from the mean for the deviation.

    Between ``linfnorm`` (k = 1, exactly) and ``l1norm`` (k = dim, but for the constant): steadier
    than the maximum alone. Mean and statistic are both differentiated.

    Published defaults: k = 10 in the paper's headline result ("Top10"), eps 1e-5, weight 1, bias 0.

    Departures: as in the authors' code the constant is that of ``linfnorm`` for every k, so rows
    come out smaller or larger than unit variance by k and dim (with k = 10 the statistic is 0.98
    deviations at 64 values and 1.29 at 16384). The authors' paper and code norm channels over the
    batch (see ``normtrain.norms.batch``). A k above dim counts as dim here.

    Args:
        dim: size of the last axis.
        k: how many distances are averaged, at least 1; more than dim counts as dim.
        eps: added to constant times statistic.
        bias: whether there is a learned bias.
        device: where the parameters live.
        dtype: the parameters' dtype.

    Raises:
        UserError: dim, k or eps is out of range.
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
        super().__init__(dim, eps)
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise UserError(f"k must be a whole number of at least 1, not {k!r}")
        self.k = k
        self.constant = linf_constant(dim)
        self.add_parameters(weight=True, bias=bias, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(..., dim)``; same shape and dtype."""
        self.check(x)
        k = min(self.k, self.dim)
        return kernels.lp_norm(x, self.weight, self.bias, self.eps, self.constant, k)
