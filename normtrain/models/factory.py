"""From a recipe's model section to a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import nn

from normtrain.errors import UserError
from normtrain.models.blocks import LayerConfig
from normtrain.models.causal import CausalLM
from normtrain.models.seq2seq import Seq2Seq
from normtrain.norms import NormRules


class _Blocks(Protocol):
    """What every model's layers and embeddings are built from."""

    @property
    def norm(self) -> str: ...
    @property
    def norm_rules(self) -> Sequence[Sequence[str]]: ...
    @property
    def placement(self) -> str: ...
    @property
    def qk_norm(self) -> str: ...
    @property
    def embedding_norm(self) -> str: ...
    @property
    def zero_mean(self) -> str: ...
    @property
    def d_model(self) -> int: ...
    @property
    def d_stream(self) -> int | None: ...
    @property
    def heads(self) -> int: ...
    @property
    def d_ff(self) -> int: ...
    @property
    def activation(self) -> str: ...
    @property
    def dropout(self) -> float: ...
    @property
    def attention_dropout(self) -> float: ...
    @property
    def activation_dropout(self) -> float: ...
    @property
    def positions(self) -> str: ...
    @property
    def max_positions(self) -> int: ...
    @property
    def bias(self) -> bool: ...
    @property
    def head_bias(self) -> bool: ...


class ModelConfig(_Blocks, Protocol):
    """What :func:`build_model` reads; a translation recipe's ``model`` section has it all.

    Read-only, so that a frozen section fits.
    """

    @property
    def encoder_layers(self) -> int: ...
    @property
    def decoder_layers(self) -> int: ...
    @property
    def word_dropout(self) -> float: ...
    @property
    def tie(self) -> str: ...


class LanguageModelConfig(_Blocks, Protocol):
    """What :func:`build_language_model` reads; read-only, so that a frozen section fits."""

    @property
    def kv_heads(self) -> int | None: ...
    @property
    def layers(self) -> int: ...
    @property
    def rotary_base(self) -> float: ...
    @property
    def tie(self) -> bool: ...


def build_model(config: ModelConfig, vocab_size: int) -> Seq2Seq:
    """Build the encoder-decoder that a recipe's ``model`` section describes.

    Weights come from torch's global generator: seed it first for a repeatable model.

    Args:
        config: the model section; ``norm`` is a plain string such as ``"prmsnorm:p=0.125"``.
        vocab_size: number of token ids.

    Returns:
        The model, in training mode, with ``model.norms`` the rules it was built with.

    Raises:
        ValueError: if a size, a name or a norm is wrong, or a norm rule matches no norm.
    """
    model = Seq2Seq(
        _layers(config),
        vocab_size,
        encoder_layers=config.encoder_layers,
        decoder_layers=config.decoder_layers,
        positions=config.positions,
        max_positions=config.max_positions,
        tie=config.tie,
        word_dropout=config.word_dropout,
        embedding_norm=config.embedding_norm,
        head_bias=config.head_bias,
    )
    _check_rules(model, model.norms)
    return model


def build_language_model(config: LanguageModelConfig, vocab_size: int) -> CausalLM:
    """Build the decoder-only model that a recipe's ``model`` section describes.

    Weights come from torch's global generator: seed it first for a repeatable model.

    Args:
        config: the model section; ``norm`` is a plain string such as ``"prmsnorm:p=0.125"``.
        vocab_size: number of token ids.

    Returns:
        The model, in training mode, with ``model.norms`` the rules it was built with.

    Raises:
        ValueError: if a size, a name or a norm is wrong, or a norm rule matches no norm.
    """
    model = CausalLM(
        _layers(config, config.kv_heads),
        vocab_size,
        layers=config.layers,
        positions=config.positions,
        rotary_base=config.rotary_base,
        max_positions=config.max_positions,
        tie=config.tie,
        embedding_norm=config.embedding_norm,
        head_bias=config.head_bias,
    )
    _check_rules(model, model.norms)
    return model


def _layers(config: _Blocks, kv_heads: int | None = None) -> LayerConfig:
    return LayerConfig(
        d_model=config.d_model,
        heads=config.heads,
        kv_heads=kv_heads,
        d_ff=config.d_ff,
        norms=NormRules.of(config.norm, [(glob, spec) for glob, spec in config.norm_rules]),
        placement=config.placement,
        qk_norm=config.qk_norm,
        activation=config.activation,
        dropout=config.dropout,
        attention_dropout=config.attention_dropout,
        activation_dropout=config.activation_dropout,
        bias=config.bias,
        d_stream=config.d_stream,
        zero_mean=config.zero_mean,
    )


def _check_rules(model: nn.Module, norms: NormRules) -> None:
    """Refuse a rule that names no norm of the model."""
    sites = norm_sites(model)
    if unmatched := norms.unmatched(sites):
        raise UserError(
            f"norm rule {unmatched[0]!r} matches no norm of this model; "
            f"its norms are named like {sites[0]} and {sites[-1]}"
        )


def norm_sites(model: nn.Module) -> list[str]:
    """Full names of the places in a model where the norm rules apply, in order."""
    sites: list[str] = []
    for name, module in model.named_modules():
        inside_a_norm = any(name.startswith(f"{site}.") for site in sites)
        named = name.rsplit(".", 1)[-1] in ("norm", "norm_out")
        # nn.Identity stands where a post-norm stack has no norm of its own.
        if named and not inside_a_norm and not isinstance(module, nn.Identity):
            sites.append(name)
    return sites
