"""LayerNorm with and without its learned gain and bias, and with detached statistics."""

from __future__ import annotations

import torch
from torch import Tensor

from normtrain import kernels
from normtrain.kernels.table import DETACH
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

    The norm of the original Transformer, with which the other norms are compared. The variance is
    the population variance (divided by dim). Parameters are named and initialized as in
    `torch.nn.LayerNorm`, so state dicts load in both directions.

    Published defaults: weight 1 and bias 0 at the start; eps is 1e-5 in PyTorch.

    Departures: none from `torch.nn.LayerNorm` for ordinary input vectors; vectors whose squares
    overflow float32 are normalized correctly here. Statistics of half precision are float32. The
    LayerNorm in the code of Xu et al. takes the unbiased deviation (over dim - 1) and adds eps to
    it.

    Args:
        dim: size of the last axis, at least 1.
        eps: added to the variance (``eps_mode="inside"``) or to its root (``"outside"``).
        bias: whether there is a learned bias.
        eps_mode: ``"inside"`` or ``"outside"``.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        UserError: dim, eps, bias or eps_mode is out of range.
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
        """Normalize ``(..., dim)``; same shape and dtype."""
        self.check(x)
        return kernels.layer_norm(x, *self.weight_and_bias(), self.eps, self.eps_mode)


@register_norm(
    "layernorm-simple",
    formula="(x - mean) / sqrt(variance + eps)",
    parameters="none",
    source=_XU,
    invariances=("scale", "shift"),
)
class LayerNormSimple(NormBase):
    """LayerNorm without gain and bias, which often generalizes better.

    The authors report that gain and bias do not help in general: without them 4 of their 8 tasks
    improve, among them En-Vi translation (31.6 against 31.2 BLEU), 2 stay the same and 2 get worse.
    Use it to save these parameters, or to measure what they contribute.

    Published defaults: none but eps 1e-5.

    Departures: the authors' code takes the unbiased deviation (over dim - 1) and adds eps to it,
    in the input's dtype; here the variance is the population variance, eps is inside the root
    unless ``eps_mode="outside"``, and statistics are float32. Their module allocates a weight and a
    bias that it does not use. In their published fork the layers call LayerNorm without its
    arguments, so that only the final norm of a stack is the one selected.

    Args:
        dim: size of the last axis, at least 1.
        eps: added to the variance (``eps_mode="inside"``) or to its root (``"outside"``).
        eps_mode: ``"inside"`` or ``"outside"``.
        device: unused, as there are no parameters.
        dtype: unused, as there are no parameters.

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
        """Normalize ``(..., dim)``; same shape and dtype."""
        self.check(x)
        return kernels.layer_norm(x, None, None, self.eps, self.eps_mode)


@register_norm(
    "detachnorm",
    formula="(x - mean) / sqrt(variance + eps), mean and variance not differentiated",
    parameters="none",
    source=_XU,
    invariances=("scale", "shift"),
)
class DetachNorm(NormBase):
    """LayerNorm-simple whose mean and deviation are constants in the backward pass.

    The forward pass is that of ``layernorm-simple``. With both constant the gradient is the
    upstream gradient over the deviation, neither centred nor rescaled. It measures what these two
    derivatives contribute: the authors report it far behind LayerNorm-simple on deep translation
    models (27.7 against 31.6 BLEU on En-Vi), and the derivative of the deviation as the more
    important of the two. Use it for such experiments, not to train a model for use.

    Published defaults: none but eps 1e-5.

    Departures: the authors' code takes the unbiased deviation (over dim - 1) and adds eps to it,
    in the input's dtype; here the variance is the population variance, eps is inside the root
    unless ``eps_mode="outside"``, and statistics are float32. Their module also allocates a weight
    and a bias that it does not use; here there are no parameters.

    Args:
        dim: size of the last axis, at least 1.
        detach: what is constant in the backward pass: ``"both"``, ``"mean"`` or ``"std"``.
        eps: added to the variance (``eps_mode="inside"``) or to its root (``"outside"``).
        eps_mode: ``"inside"`` or ``"outside"``.
        device: unused, as there are no parameters.
        dtype: unused, as there are no parameters.

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
        """Normalize ``(..., dim)``; same shape and dtype."""
        self.check(x)
        return kernels.detach_norm(x, self.eps, self.eps_mode, self.detach)
