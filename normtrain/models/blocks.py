"""Transformer layers: feed-forward, and the residual sublayers with a norm before, after or both.

``placement`` decides what a sublayer f does to the stream x (dropout left out):

==========  ===============================  ==========================================
pre         ``x + f(norm(x))``               the stack ends with a norm
post        ``norm(x + f(x))``               Vaswani et al. 2017
sandwich    ``x + norm_out(f(norm(x)))``     Ding et al. 2021; the stack ends with a norm
==========  ===============================  ==========================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from normtrain.errors import UserError
from normtrain.models.attention import Attention, KeyValueCache
from normtrain.norms import NormRules, build_norm

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "swiglu": F.silu,
}
PLACEMENTS = ("pre", "post", "sandwich")


@dataclass(frozen=True)
class LayerConfig:
    """What every layer of a stack shares; the names are the recipe's."""

    d_model: int
    heads: int
    d_ff: int
    norms: NormRules
    placement: str = "pre"
    qk_norm: str = "none"
    activation: str = "relu"
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    bias: bool = True

    def __post_init__(self) -> None:
        """Refuse a placement or an activation that does not exist."""
        if self.placement not in PLACEMENTS:
            raise UserError(f"placement is one of {', '.join(PLACEMENTS)}, not {self.placement!r}")
        if self.activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise UserError(f"activation is one of {known}, not {self.activation!r}")


class FeedForward(nn.Module):
    """Two linear maps with an activation between; ``swiglu`` gates it (Shazeer 2020).

    Args:
        config: sizes, activation and dropout.
    """

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.gated = config.activation == "swiglu"
        width = 2 * config.d_ff if self.gated else config.d_ff
        self.inner = nn.Linear(config.d_model, width, bias=config.bias)
        self.outer = nn.Linear(config.d_ff, config.d_model, bias=config.bias)
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = nn.Dropout(config.activation_dropout)
        for linear in (self.inner, self.outer):
            nn.init.xavier_uniform_(linear.weight)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(…, d_model)`` to ``(…, d_model)``."""
        hidden = self.inner(x)
        if self.gated:
            gate, value = hidden.chunk(2, -1)
            hidden = self.activation(gate) * value
        else:
            hidden = self.activation(hidden)
        return self.outer(self.dropout(hidden))


class Residual(nn.Module):
    """The norms and the dropout around one sublayer; the sublayer itself is handed in.

    Args:
        config: placement, width, dropout and norm rules.
        name: full name of this module in the model, which the norm rules match against.
    """

    def __init__(self, config: LayerConfig, name: str) -> None:
        super().__init__()
        self.placement = config.placement
        self.norm = config.norms.build(f"{name}.norm", config.d_model)
        if self.placement == "sandwich":
            self.norm_out = config.norms.build(f"{name}.norm_out", config.d_model)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply ``sublayer`` to the stream ``x`` of ``(batch, time, d_model)``."""
        if self.placement == "post":
            return self.norm(x + self.dropout(sublayer(x)))
        y = sublayer(self.norm(x))
        if self.placement == "sandwich":
            y = self.norm_out(y)
        return x + self.dropout(y)


def build_attention(config: LayerConfig, *, cross: bool = False) -> Attention:
    """One attention module with the config's QK-norm on each head."""
    norms: dict[str, nn.Module] = {}
    if config.qk_norm != "none":
        head_dim = config.d_model // config.heads
        norms = {key: build_norm(config.qk_norm, head_dim) for key in ("q_norm", "k_norm")}
    return Attention(
        config.d_model,
        config.heads,
        cross=cross,
        dropout=config.attention_dropout,
        bias=config.bias,
        **norms,
    )


class EncoderLayer(nn.Module):
    """Self-attention, then feed-forward.

    Args:
        config: what all layers share.
        name: full name of this layer in the model.
    """

    def __init__(self, config: LayerConfig, name: str) -> None:
        super().__init__()
        self.attention = build_attention(config)
        self.attention_residual = Residual(config, f"{name}.attention_residual")
        self.feed_forward = FeedForward(config)
        self.feed_forward_residual = Residual(config, f"{name}.feed_forward_residual")

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Map ``(batch, source, d_model)`` to the same; ``mask`` is True on real tokens."""
        x = self.attention_residual(x, lambda h: self.attention(h, mask=mask))
        return self.feed_forward_residual(x, self.feed_forward)


class DecoderLayer(nn.Module):
    """Causal self-attention, cross-attention, then feed-forward.

    Args:
        config: what all layers share.
        name: full name of this layer in the model.
    """

    def __init__(self, config: LayerConfig, name: str) -> None:
        super().__init__()
        self.attention = build_attention(config)
        self.attention_residual = Residual(config, f"{name}.attention_residual")
        self.cross_attention = build_attention(config, cross=True)
        self.cross_attention_residual = Residual(config, f"{name}.cross_attention_residual")
        self.feed_forward = FeedForward(config)
        self.feed_forward_residual = Residual(config, f"{name}.feed_forward_residual")

    def forward(self, x: Tensor, memory: Tensor, memory_mask: Tensor | None) -> Tensor:
        """Map ``(batch, time, d_model)`` to the same, reading ``(batch, source, d_model)``."""
        x = self.attention_residual(x, lambda h: self.attention(h, causal=True))
        x = self.cross_attention_residual(
            x, lambda h: self.cross_attention(h, memory, mask=memory_mask)
        )
        return self.feed_forward_residual(x, self.feed_forward)

    def step(
        self,
        x: Tensor,
        cache: KeyValueCache,
        remembered: tuple[Tensor, Tensor],
        memory_mask: Tensor | None,
    ) -> Tensor:
        """The same for one new token: ``(rows, 1, d_model)``; extends ``cache``."""
        x = self.attention_residual(x, lambda h: self.attention.step(h, cache))
        x = self.cross_attention_residual(
            x, lambda h: self.cross_attention.step_cross(h, remembered, memory_mask)
        )
        return self.feed_forward_residual(x, self.feed_forward)
