"""Elementwise functions in place of a norm: DyT and Derf, which take no statistics."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normtrain import kernels
from normtrain.norms.base import NormBase, number
from normtrain.norms.registry import register_norm


@register_norm(
    "dyt",
    formula="tanh(alpha * x) * weight + bias",
    parameters="alpha (one scalar), weight, bias",
    source="Zhu et al. 2025, Transformers without Normalization, arXiv:2503.10622",
)
class DyT(NormBase):
    """Dynamic tanh: applies tanh to every feature, with one learned slope.

    There is no mean and no deviation: small features are scaled linearly, large ones saturate. Use
    it to test whether a model needs statistics; without a fused kernel it is not necessarily faster
    than a norm, and it is reported to help with little data and to hurt with much. Rescaling the
    input changes the output, so nothing that relies on a norm's invariance (such as conversions
    between norms) applies.

    Published defaults: alpha starts at 0.5 (except in language models), weight at 1 and bias at 0.
    For LLaMA the authors drop the bias and choose alpha's start by width and position: 0.8 in
    attention and 0.2 elsewhere at 7B, 0.6 and 0.15 at 13B, 0.2 and 0.05 at 34B and 70B.

    Departures: the authors' LLaMA variant also multiplies the embeddings by a learned scalar that
    starts at the square root of the width, and its code starts alpha at 1.0 by default; here the
    module is the norm alone and ``alpha_init`` is 0.5. Half precision is computed in float32.

    Args:
        dim: size of the last axis, at least 1.
        alpha_init: initial value of the slope alpha, a parameter of shape ``(1,)``.
        bias: whether there is a learned bias.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        UserError: dim, alpha_init or bias is out of range.
    """

    def __init__(
        self,
        dim: int,
        *,
        alpha_init: float = 0.5,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim)
        self.alpha_init = number("alpha_init", alpha_init)
        self.alpha = nn.Parameter(torch.empty(1, device=device, dtype=dtype))
        self.add_parameters(weight=True, bias=bias, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Set ``alpha`` to alpha_init, ``weight`` to ones and ``bias`` to zeros."""
        super().reset_parameters()
        nn.init.constant_(self.alpha, self.alpha_init)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function to ``(..., dim)``; same shape and dtype."""
        self.check(x)
        return kernels.squash(x, self.alpha, None, *self.weight_and_bias(), "tanh")


@register_norm(
    "derf",
    formula="erf(alpha * x + shift) * weight + bias",
    parameters="alpha, shift (one scalar each), weight, bias",
    source="Derf, arXiv:2512.10938",
)
class Derf(NormBase):
    """Dynamic erf: DyT with the error function and a learned shift of its argument.

    Use it in place of ``dyt``; the authors report it equal to or better than LayerNorm on DiT,
    wav2vec 2.0 and GPT-2. It saturates sooner than tanh and, with a shift, is not an odd function.

    Published defaults: alpha starts at 0.5, the shift at 0, weight at 1 and bias at 0.

    Departures: the authors' patch for GPT-2 starts alpha at 1.0; use ``alpha_init=1.0`` for that.
    Half precision is computed in float32.

    Args:
        dim: size of the last axis, at least 1.
        alpha_init: initial value of the slope alpha, a parameter of shape ``(1,)``.
        shift_init: initial value of the shift, a parameter of shape ``(1,)``.
        bias: whether there is a learned bias.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        UserError: dim, alpha_init, shift_init or bias is out of range.
    """

    def __init__(
        self,
        dim: int,
        *,
        alpha_init: float = 0.5,
        shift_init: float = 0.0,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim)
        self.alpha_init = number("alpha_init", alpha_init)
        self.shift_init = number("shift_init", shift_init)
        self.alpha = nn.Parameter(torch.empty(1, device=device, dtype=dtype))
        self.shift = nn.Parameter(torch.empty(1, device=device, dtype=dtype))
        self.add_parameters(weight=True, bias=bias, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Set ``alpha`` and ``shift`` to their initial values, ``weight`` to 1, ``bias`` to 0."""
        super().reset_parameters()
        nn.init.constant_(self.alpha, self.alpha_init)
        nn.init.constant_(self.shift, self.shift_init)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function to ``(..., dim)``; same shape and dtype."""
        self.check(x)
        return kernels.squash(x, self.alpha, self.shift, *self.weight_and_bias(), "erf")
