"""From a recipe's model section to a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import nn

from normtrain.errors import UserError
from normtrain.models.blocks import LayerConfig
from normtrain.models.seq2seq import Seq2Seq
from normtrain.norms import NormRules


class ModelConfig(Protocol):
    """What :func:`build_model` reads; a recipe's ``model`` section has it all.

    Read-only, so that a frozen section fits.
    """

    @property
    def norm(self) -> str: ...
    @property
    def norm_rules(self) -> Sequence[Sequence[str]]: ...
    @property
    def placement(self) -> str: ...
    @property
    def qk_norm(self) -> str: ...
    @property
    def d_model(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def encoder_layers(self) -> int: ...
    @property
    def decoder_layers(self) -> int: ...
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
    def word_dropout(self) -> float: ...
    @property
    def positions(self) -> str: ...
    @property
    def max_positions(self) -> int: ...
    @property
    def tie(self) -> str: ...
    @property
    def bias(self) -> bool: ...
    @property
    def d_stream(self) -> int | None: ...
    @property
    def zero_mean(self) -> str: ...
    @property
    def embedding_norm(self) -> str: ...
    @property
    def head_bias(self) -> bool: ...


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
    norms = NormRules.of(config.norm, [(glob, spec) for glob, spec in config.norm_rules])
    layers = LayerConfig(
        d_model=config.d_model,
        heads=config.heads,
        d_ff=config.d_ff,
        norms=norms,
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
    model = Seq2Seq(
        layers,
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
    sites = norm_sites(model)
    if unmatched := norms.unmatched(sites):
        raise UserError(
            f"norm rule {unmatched[0]!r} matches no norm of this model; "
            f"its norms are named like {sites[0]} and {sites[-1]}"
        )
    return model


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
