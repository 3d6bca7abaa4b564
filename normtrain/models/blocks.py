"""Transformer layers: feed-forward, and the residual sublayers with a norm before, after or both.

``placement`` decides what a sublayer f does to the stream x (dropout left out):

==========  ===============================  ==========================================
pre         ``x + f(norm(x))``               the stack ends with a norm
post        ``norm(x + f(x))``               Vaswani et al. 2017
sandwich    ``x + norm_out(f(norm(x)))``     Ding et al. 2021; the stack ends with a norm
==========  ===============================  ==========================================

``zero_mean`` keeps the mean over the features of the stream at 0, where LayerNorm equals RMSNorm
(Jiang et al. 2023). ``embeddings`` recentres the input of a stack; ``stream`` also recentres the
output of each sublayer, after the dropout, which changes the mean.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normtrain.models.attention import Attention, KeyValueCache
from normtrain.models.config import CausalLMConfig, TransformerConfig
from normtrain.models.recompute import Recompute
from normtrain.norms import build_norm

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu-tanh": partial(F.gelu, approximate="tanh"),  # GPT-2's
    "swiglu": F.silu,
}


def recentred(x: Tensor) -> Tensor:
    """Subtract the mean over the features from ``(…, features)``."""
    return x - x.mean(-1, keepdim=True)


class FeedForward(nn.Module):
    """Two linear layers with an activation between; ``swiglu`` gates it (Shazeer 2020).

    Args:
        config: sizes, activation and dropout.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gated = config.activation == "swiglu"
        width = 2 * config.d_ff if self.gated else config.d_ff
        self.inner = nn.Linear(config.stream, width, bias=config.bias)
        self.outer = nn.Linear(config.d_ff, config.stream, bias=config.bias)
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = nn.Dropout(config.activation_dropout)
        for linear in (self.inner, self.outer):
            nn.init.xavier_uniform_(linear.weight)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(…, stream)`` to ``(…, stream)``."""
        hidden = self.inner(x)
        if self.gated:
            gate, value = hidden.chunk(2, -1)
            hidden = self.activation(gate) * value
        else:
            hidden = self.activation(hidden)
        return self.outer(self.dropout(hidden))


class Residual(nn.Module):
    """The norms and the dropout around one sublayer; the sublayer is an argument of `forward`.

    Args:
        config: placement, width, dropout, zero_mean and norm rules.
        name: full name of this module in the model, which the norm rules match against.

    Attributes:
        recentre: whether the output of the sublayer is recentred; read at every call.
    """

    def __init__(self, config: TransformerConfig, name: str) -> None:
        super().__init__()
        self.placement = config.placement
        self.recentre = config.zero_mean == "stream"
        self.norm = config.norms.build(f"{name}.norm", config.stream)
        if self.placement == "sandwich":
            self.norm_out = config.norms.build(f"{name}.norm_out", config.stream)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply ``sublayer`` to the stream ``x`` of ``(batch, time, stream)``."""
        if self.placement == "post":
            return self.norm(x + self.dropout(sublayer(x)))
        y = sublayer(self.norm(x))
        if self.placement == "sandwich":
            y = self.norm_out(recentred(y) if self.recentre else y)
        y = self.dropout(y)
        return x + (recentred(y) if self.recentre else y)


def build_attention(config: TransformerConfig, *, cross: bool = False) -> Attention:
    """Build an attention module with the config's QK-norm on each head."""
    norms: dict[str, nn.Module] = {}
    if config.qk_norm != "none":
        head_dim = config.d_model // config.heads
        norms = {key: build_norm(config.qk_norm, head_dim) for key in ("q_norm", "k_norm")}
    return Attention(
        config.d_model,
        config.heads,
        kv_heads=config.kv_heads if isinstance(config, CausalLMConfig) else None,
        stream=config.stream,
        cross=cross,
        dropout=config.attention_dropout,
        bias=config.bias,
        **norms,
    )


class EncoderLayer(nn.Module):
    """Self-attention, then feed-forward.

    Args:
        config: of the model.
        name: full name of this layer in the model.
        causal: hide later positions from earlier ones, as a decoder-only model does.
    """

    def __init__(self, config: TransformerConfig, name: str, *, causal: bool = False) -> None:
        super().__init__()
        self.causal = causal
        self.attention = build_attention(config)
        self.attention_residual = Residual(config, f"{name}.attention_residual")
        self.feed_forward = FeedForward(config)
        self.feed_forward_residual = Residual(config, f"{name}.feed_forward_residual")

    def forward(
        self, x: Tensor, mask: Tensor | None = None, rotation: Tensor | None = None
    ) -> Tensor:
        """Map ``(batch, source, stream)`` to the same.

        Args:
            x: ``(batch, source, stream)``.
            mask: bool, True on tokens that are not padding.
            rotation: of rotary positions.
        """
        assert mask is None or not self.causal, "torch's attention takes a mask or causal=True"
        x = self.attention_residual(
            x, lambda h: self.attention(h, mask=mask, causal=self.causal, rotation=rotation)
        )
        return self.feed_forward_residual(x, self.feed_forward)

    def step(self, x: Tensor, cache: KeyValueCache, rotation: Tensor | None) -> Tensor:
        """Map new tokens, ``(rows, n, stream)``, to the same; append to ``cache``."""
        assert self.causal, "only a causal layer can decode token by token"
        x = self.attention_residual(x, lambda h: self.attention.step(h, cache, rotation))
        return self.feed_forward_residual(x, self.feed_forward)


class DecoderLayer(nn.Module):
    """Causal self-attention, cross-attention, then feed-forward.

    Args:
        config: of the model.
        name: full name of this layer in the model.
    """

    def __init__(self, config: TransformerConfig, name: str) -> None:
        super().__init__()
        self.attention = build_attention(config)
        self.attention_residual = Residual(config, f"{name}.attention_residual")
        self.cross_attention = build_attention(config, cross=True)
        self.cross_attention_residual = Residual(config, f"{name}.cross_attention_residual")
        self.feed_forward = FeedForward(config)
        self.feed_forward_residual = Residual(config, f"{name}.feed_forward_residual")

    def forward(self, x: Tensor, memory: Tensor, memory_mask: Tensor | None) -> Tensor:
        """Map ``(batch, time, stream)`` to the same, reading ``(batch, source, stream)``."""
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
        """Map one new token, ``(rows, 1, stream)``, to the same; append to ``cache``."""
        x = self.attention_residual(x, lambda h: self.attention.step(h, cache))
        x = self.cross_attention_residual(
            x, lambda h: self.cross_attention.step_cross(h, remembered, memory_mask)
        )
        return self.feed_forward_residual(x, self.feed_forward)


class Stack(nn.Module):
    """The layers of an encoder or a decoder and the final norm.

    Args:
        config: of the model.
        layers: number of layers.
        name: full name in the model, ``"encoder"`` or ``"decoder"``.
        layer: builds a layer from ``config`` and the full name of the layer.

    Attributes:
        recompute: runs each layer in training so that only its input is kept for the backward
            pass; None calls it directly. The results are bitwise identical.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layers: int,
        name: str,
        layer: Callable[[TransformerConfig, str], EncoderLayer | DecoderLayer],
    ) -> None:
        super().__init__()
        self.recompute: Recompute | None = None
        self.layers = nn.ModuleList(layer(config, f"{name}.layers.{i}") for i in range(layers))
        # A post-norm stack ends with a norm already.
        self.norm = (
            nn.Identity()
            if config.placement == "post"
            else config.norms.build(f"{name}.norm", config.stream)
        )

    def forward(self, x: Tensor, *inputs: Tensor | None) -> Tensor:
        """Run every layer on ``(batch, time, stream)``, then the norm."""
        again = self.recompute if self.training and torch.is_grad_enabled() else None
        for layer in self.layers:
            x = layer(x, *inputs) if again is None else again(layer, x, *inputs)
        return self.norm(x)
