"""RMSNorm, and pRMSNorm that estimates the statistic from the first features."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from normtrain import kernels
from normtrain.errors import UserError
from normtrain.norms.base import NormBase, positive
from normtrain.norms.registry import register_norm

_SOURCE = "Zhang, Sennrich 2019, Root Mean Square Layer Normalization, arXiv:1910.07467"


@register_norm(
    "rmsnorm",
    formula="x / sqrt(mean(x^2) + eps) * weight",
    parameters="weight (bias=true adds one)",
    source=_SOURCE,
)
class RMSNorm(NormBase):
    """Root mean square normalization: scaled but not centred.

    Parameters are named and initialised as in `torch.nn.RMSNorm`; eps is a number here, where
    torch's default depends on the dtype.

    Args:
        dim: size of the last axis.
        eps: added to the mean square (``eps_mode="inside"``) or to its root (``"outside"``,
            as in the authors' PyTorch code).
        bias: whether there is a learned bias.
        eps_mode: ``"inside"`` or ``"outside"``.
        device: where the parameters live.
        dtype: the parameters' dtype.

    Raises:
        UserError: dim, eps or eps_mode is out of range.
    """

    def __init__(
        self,
        dim: int,
        *,
        eps: float = 1e-5,
        bias: bool = False,
        eps_mode: str = "inside",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, eps, eps_mode)
        self.add_parameters(weight=True, bias=bias, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(..., dim)``; same shape and dtype."""
        self.check(x)
        return kernels.rms_norm(x, self.weight, self.bias, self.eps, self.eps_mode)


def share(p: float, dim: int) -> int:
    """How many of `dim` features the share `p` is: ceil(p * dim), at least 1.

    A product that only rounding lifted above a whole number (0.1 * 30) counts as that number.
    """
    product = p * dim
    whole = round(product)
    count = whole if abs(product - whole) < 1e-9 * max(1, whole) else math.ceil(product)
    return min(dim, max(1, count))


@register_norm(
    "prmsnorm",
    formula="x / sqrt(mean(x[:k]^2) + eps) * weight, k = max(1, ceil(p * dim))",
    parameters="weight",
    source=_SOURCE + ", section 4",
)
class PRMSNorm(NormBase):
    """Partial RMSNorm: the root mean square of the first ``p * dim`` features scales all of them.

    Args:
        dim: size of the last axis.
        p: share of the features that the statistic is taken from, above 0 and at most 1.
        eps: added to the mean square (``eps_mode="inside"``) or to its root (``"outside"``).
        eps_mode: ``"inside"`` or ``"outside"``.
        device: where the parameters live.
        dtype: the parameters' dtype.

    Raises:
        UserError: dim, p, eps or eps_mode is out of range.
    """

    def __init__(
        self,
        dim: int,
        *,
        p: float = 0.0625,
        eps: float = 1e-5,
        eps_mode: str = "inside",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, eps, eps_mode)
        self.p = positive("p", p)
        if self.p > 1:
            raise UserError(f"p is a share of the features: above 0 and at most 1, not {p!r}")
        self.k = share(self.p, dim)
        self.add_parameters(weight=True, bias=False, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(..., dim)``; same shape and dtype."""
        self.check(x)
        return kernels.rms_norm(x, self.weight, None, self.eps, self.eps_mode, first=self.k)
