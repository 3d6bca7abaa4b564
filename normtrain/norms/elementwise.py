"""S-shaped curves in place of a norm: DyT and Derf, which take no statistics."""

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
    """Dynamic tanh: squashes every feature by itself, with one learned slope.

    No mean, no deviation: small features pass in proportion, large ones are cut off. Use it to see
    whether a model needs statistics at all; unfused it need not be faster than a norm, and it is
    reported to help where data are few and to hurt where they are plentiful. Rescaling the input
    changes the output, so nothing that relies on a norm's invariance (such as conversions between
    norms) applies.

    Published defaults: alpha starts at 0.5 (outside of language models), weight at 1 and bias at
    0. For LLaMA the authors drop the bias and start alpha by width and place: 0.8 in attention and
    0.2 elsewhere at 7B, 0.6 and 0.15 at 13B, 0.2 and 0.05 at 34B and 70B.

    Departures: the authors' LLaMA variant also multiplies the embeddings by a learned scalar that
    starts at the square root of the width, and its code starts alpha at 1.0 unless told; here the
    norm is the norm alone and ``alpha_init`` is 0.5. The arithmetic is float32 for half precision.

    Args:
        dim: size of the last axis.
        alpha_init: what the slope alpha, a parameter of shape ``(1,)``, starts from.
        bias: whether there is a learned bias.
        device: where the parameters live.
        dtype: the parameters' dtype.

    Raises:
        UserError: dim or alpha_init is out of range.
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
        """Squash ``(..., dim)``; same shape and dtype."""
        self.check(x)
        return kernels.squash(x, self.alpha, None, self.weight, self.bias, "tanh")


@register_norm(
    "derf",
    formula="erf(alpha * x + shift) * weight + bias",
    parameters="alpha, shift (one scalar each), weight, bias",
    source="Derf, arXiv:2512.10938",
)
class Derf(NormBase):
    """Dynamic erf: DyT with the error function and a learned shift of its argument.

    Use it where you would use ``dyt``; the authors report it level with or ahead of LayerNorm on
    DiT, wav2vec 2.0 and GPT-2. It saturates sooner than tanh and, shifted, is not odd.

    Published defaults: alpha starts at 0.5, the shift at 0, weight at 1 and bias at 0.

    Departures: the authors' patch for GPT-2 starts alpha at 1.0; ``alpha_init=1.0`` does here. The
    arithmetic is float32 for half precision.

    Args:
        dim: size of the last axis.
        alpha_init: what the slope alpha, a parameter of shape ``(1,)``, starts from.
        shift_init: what the shift, a parameter of shape ``(1,)``, starts from.
        bias: whether there is a learned bias.
        device: where the parameters live.
        dtype: the parameters' dtype.

    Raises:
        UserError: dim, alpha_init or shift_init is out of range.
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
        """Set ``alpha`` and ``shift`` to what they start from, ``weight`` to 1, ``bias`` to 0."""
        super().reset_parameters()
        nn.init.constant_(self.alpha, self.alpha_init)
        nn.init.constant_(self.shift, self.shift_init)

    def forward(self, x: Tensor) -> Tensor:
        """Squash ``(..., dim)``; same shape and dtype."""
        self.check(x)
        return kernels.squash(x, self.alpha, self.shift, self.weight, self.bias, "erf")
