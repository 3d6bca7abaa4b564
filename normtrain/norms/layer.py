"""LayerNorm with and without its learned gain and bias."""

from __future__ import annotations

import torch
from torch import Tensor

from normtrain import kernels
from normtrain.norms.base import NormBase
from normtrain.norms.registry import register_norm


@register_norm(
    "layernorm",
    formula="(x - mean) / sqrt(variance + eps) * weight + bias",
    parameters="weight, bias",
    source="Ba, Kiros, Hinton 2016, Layer Normalization, arXiv:1607.06450",
)
class LayerNorm(NormBase):
    """Layer normalization: centred, unit variance, learned gain and bias.

    The variance is the population's (divided by dim). Parameters are named and initialised as
    in `torch.nn.LayerNorm`, so state dicts load either way.

    Args:
        dim: size of the last axis.
        eps: added to the variance (``eps_mode="inside"``) or to its root (``"outside"``).
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
        bias: bool = True,
        eps_mode: str = "inside",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, eps, eps_mode)
        self.add_parameters(weight=True, bias=bias, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(..., dim)``; same shape and dtype."""
        self.check(x)
        return kernels.layer_norm(x, self.weight, self.bias, self.eps, self.eps_mode)


@register_norm(
    "layernorm-simple",
    formula="(x - mean) / sqrt(variance + eps)",
    parameters="none",
    source="Xu et al. 2019, Understanding and Improving Layer Normalization, arXiv:1911.07013",
)
class LayerNormSimple(NormBase):
    """LayerNorm without gain and bias, which often generalises better.

    Args:
        dim: size of the last axis.
        eps: added to the variance (``eps_mode="inside"``) or to its root (``"outside"``).
        eps_mode: ``"inside"`` or ``"outside"``.
        device: accepted for symmetry; there are no parameters.
        dtype: accepted for symmetry; there are no parameters.

    Raises:
        UserError: dim, eps or eps_mode is out of range.
    """

    def __init__(
        self,
        dim: int,
        *,
        eps: float = 1e-5,
        eps_mode: str = "inside",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, eps, eps_mode)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(..., dim)``; same shape and dtype."""
        self.check(x)
        return kernels.layer_norm(x, None, None, self.eps, self.eps_mode)
