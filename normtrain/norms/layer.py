"""LayerNorm with and without its learned gain and bias."""

from __future__ import annotations

import torch
from torch import Tensor

from normtrain import kernels
from normtrain.norms.base import NormBase, one_of
from normtrain.norms.registry import register_norm

_XU = "Xu et al. 2019, Understanding and Improving Layer Normalization, arXiv:1911.07013"


@register_norm(
    "layernorm",
    formula="(x - mean) / sqrt(variance + eps) * weight + bias",
    parameters="weight, bias",
    source="Ba, Kiros, Hinton 2016, Layer Normalization, arXiv:1607.06450",
    invariances=("scale", "shift"),
)
class LayerNorm(NormBase):
    """Layer normalization: centred, unit variance, learned gain and bias.

    The norm of the original Transformer, and what the others here are measured against. The
    variance is the population's (divided by dim). Parameters are named and initialised as in
    `torch.nn.LayerNorm`, so state dicts load either way.

    Published defaults: weight 1 and bias 0 at the start; eps is 1e-5 in PyTorch.

    Departures: none from `torch.nn.LayerNorm` for ordinary rows; rows whose squares overflow
    float32 come out right here. Half precision is normalised by float32 statistics. The LayerNorm
    in the code of Xu et al. takes the unbiased deviation (over dim - 1) and adds eps to it.

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
    source=_XU,
    invariances=("scale", "shift"),
)
class LayerNormSimple(NormBase):
    """LayerNorm without gain and bias, which often generalises better.

    The authors question that gain and bias help: without them 4 of their 8 tasks came out better,
    among them En-Vi translation (31.6 against 31.2 BLEU), 2 the same and 2 worse. Use it to do
    without those parameters, or to see what they contribute.

    Published defaults: none but eps 1e-5.

    Departures: the authors' code takes the unbiased deviation (over dim - 1) and adds eps to it,
    in the input's dtype; here the variance is the population's, eps sits inside the root unless
    ``eps_mode="outside"``, and statistics are float32. Their module allocates a weight and a bias
    all the same. In their published fork the layers call LayerNorm without its arguments, so that
    only a stack's final norm is ever the one asked for.

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


DETACH = ("both", "mean", "std")


@register_norm(
    "detachnorm",
    formula="(x - mean) / sqrt(variance + eps), mean and variance not differentiated",
    parameters="none",
    source=_XU,
    invariances=("scale", "shift"),
)
class DetachNorm(NormBase):
    """LayerNorm-simple whose mean and deviation are constants in the backward.

    The forward is that of ``layernorm-simple``. With both constant the gradient is the upstream
    one over the deviation, neither re-centred nor re-scaled. It exists to show what those two
    derivatives are worth: the authors find it far behind LayerNorm-simple on deep translation
    models (27.7 against 31.6 BLEU on En-Vi), and the derivative of the deviation the more
    important of the two. It is a measuring instrument, not a norm to train with.

    Published defaults: none but eps 1e-5.

    Departures: the authors' code takes the unbiased deviation (over dim - 1) and adds eps to it,
    in the input's dtype; here the variance is the population's, eps sits inside the root unless
    ``eps_mode="outside"``, and statistics are float32. Their module also allocates a weight and a
    bias that it never uses; here there are no parameters.

    Args:
        dim: size of the last axis.
        detach: what is constant in the backward: ``"both"``, ``"mean"`` or ``"std"``.
        eps: added to the variance (``eps_mode="inside"``) or to its root (``"outside"``).
        eps_mode: ``"inside"`` or ``"outside"``.
        device: accepted for symmetry; there are no parameters.
        dtype: accepted for symmetry; there are no parameters.

    Raises:
        UserError: dim, detach, eps or eps_mode is out of range.
    """

    def __init__(
        self,
        dim: int,
        *,
        detach: str = "both",
        eps: float = 1e-5,
        eps_mode: str = "inside",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, eps, eps_mode)
        self.detach = one_of("detach", detach, DETACH)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(..., dim)``; same shape and dtype."""
        self.check(x)
        return kernels.detach_norm(x, self.eps, self.eps_mode, self.detach)
