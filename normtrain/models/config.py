"""The config of a model: the ``model`` section of a recipe, as it was validated.

Importing this module imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import model_validator

from normtrain.fields import (
    Count,
    Flag,
    Fraction,
    Layers,
    OptionalCount,
    Positive,
    Rules,
    Section,
    Text,
    key,
)

if TYPE_CHECKING:
    from normtrain.norms import NormRules

ROTARY_BASE = 10000.0


class TransformerConfig(Section):
    """What all Transformers of this package share.

    Raises:
        ValueError: a value is outside its limits, ``heads`` does not divide ``d_model``, or
            ``zero_mean`` is asked of a post-norm model.
    """

    norm: Text = key("rmsnorm", "the norm everywhere in the model")
    norm_rules: Rules = key((), "other norms by module-name pattern; the last match wins")
    placement: Literal["pre", "post", "sandwich"] = key(
        "pre", "where norms sit: before each sublayer, after the sum, or before and after"
    )
    qk_norm: Text = key("none", "the norm of each head's queries and keys")
    embedding_norm: Text = key(
        "none", "the norm of embedding vectors and of a tied output matrix (fixnorm)"
    )
    zero_mean: Literal["none", "embeddings", "stream"] = key(
        "none", "what is recentred over the features, so that RMSNorm trains as LayerNorm does"
    )
    d_model: Count = key(
        256, "width of attention; of the residual stream too unless d_stream is set"
    )
    d_stream: OptionalCount = key(None, "width of residual stream, embeddings and norms")
    heads: Count = key(4, "attention heads")
    d_ff: Count = key(1024, "width of the feed-forward layers")
    activation: Literal["relu", "gelu", "gelu-tanh", "swiglu"] = key(
        "relu", "activation of the feed-forward layers"
    )
    dropout: Fraction = key(0.1, "dropout of embeddings and of each sublayer's output")
    attention_dropout: Fraction = key(0.0, "dropout of attention weights")
    activation_dropout: Fraction = key(0.0, "dropout inside the feed-forward layers")
    max_positions: Count = key(1024, "longest sequence, in tokens")
    bias: Flag = key(True, "whether linear layers have a bias")
    head_bias: Flag = key(False, "whether the output layer has a bias")

    @property
    def stream(self) -> int:
        """Width of the residual stream, and so of embeddings, norms and sublayer outputs."""
        return self.d_model if self.d_stream is None else self.d_stream

    @property
    def norms(self) -> NormRules:
        """Which norm sits at which module name."""
        from normtrain.norms import NormRules

        return NormRules.of(self.norm, list(self.norm_rules))

    @model_validator(mode="after")
    def _check_transformer(self) -> TransformerConfig:
        if self.d_model % self.heads:
            raise ValueError(
                f"model.d_model ({self.d_model}) must be a multiple of model.heads ({self.heads})"
            )
        if self.placement == "post" and self.zero_mean != "none":
            # In a post-norm model the norm's own output is the stream: its bias gives it a mean.
            raise ValueError(
                f"model.zero_mean {self.zero_mean} needs model.placement pre or sandwich; the "
                "stream of a post-norm model has no zero mean to keep"
            )
        return self


class Seq2SeqConfig(TransformerConfig):
    """An encoder-decoder."""

    encoder_layers: Layers = key(3, "layers of the encoder")
    decoder_layers: Layers = key(3, "layers of the decoder")
    word_dropout: Fraction = key(0.0, "share of source tokens replaced by UNK in training")
    positions: Literal["sinusoidal", "learned"] = key("sinusoidal", "position vectors")
    tie: Literal["all", "decoder", "embeddings", "none"] = key(
        "all", "which of the source, target and output embeddings are one matrix"
    )


class CausalLMConfig(TransformerConfig):
    """A decoder-only language model.

    Raises:
        ValueError: as `TransformerConfig`; ``kv_heads`` does not divide ``heads``; rotary positions
            with heads of odd width; a ``rotary_base`` without rotary positions.
    """

    activation: Literal["relu", "gelu", "gelu-tanh", "swiglu"] = key(
        "gelu", "activation of the feed-forward layers"
    )
    layers: Layers = key(6, "layers")
    kv_heads: OptionalCount = key(None, "heads of keys and values; null: as many as heads")
    positions: Literal["rotary", "learned", "sinusoidal", "none"] = key(
        "rotary", "rotary turns queries and keys; learned and sinusoidal are added to embeddings"
    )
    rotary_base: Positive = key(ROTARY_BASE, "theta of rotary positions")
    tie: Flag = key(True, "whether the output matrix is the embedding matrix")

    @model_validator(mode="after")
    def _check_heads(self) -> CausalLMConfig:
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise ValueError(
                f"model.heads ({self.heads}) must be a multiple of model.kv_heads ({self.kv_heads})"
            )
        if self.positions == "rotary" and self.d_model // self.heads % 2:
            raise ValueError(
                "model.positions rotary turns pairs of features: model.d_model / model.heads "
                f"({self.d_model // self.heads}) must be even"
            )
        if self.positions != "rotary" and self.rotary_base != ROTARY_BASE:
            raise ValueError(
                f"model.rotary_base ({self.rotary_base:g}) has no effect with model.positions "
                f"{self.positions}"
            )
        return self
