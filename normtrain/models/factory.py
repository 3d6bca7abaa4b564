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
    """What :func:`build_model` reads; a recipe's ``model`` section has it all."""

    norm: str
    norm_rules: Sequence[Sequence[str]]
    placement: str
    qk_norm: str
    d_model: int
    heads: int
    encoder_layers: int
    decoder_layers: int
    d_ff: int
    activation: str
    dropout: float
    attention_dropout: float
    activation_dropout: float
    word_dropout: float
    positions: str
    max_positions: int
    tie: str
    bias: bool


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
    rules = [(glob, spec) for glob, spec in config.norm_rules]
    norms = NormRules.of(config.norm, rules)
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
    )
    model.norms = norms
    sites = norm_sites(model)
    if unmatched := norms.unmatched(sites):
        raise UserError(
            f"norm rule {unmatched[0]!r} matches no norm of this model; "
            f"its norms are named like {sites[0]} and {sites[-1]}"
        )
    return model


def norm_sites(model: nn.Module) -> list[str]:
    """Full names of the places in a model where the norm rules apply, in order."""
    names = [name for name, _ in model.named_modules()]
    return [n for n in names if n.rsplit(".", 1)[-1] in ("norm", "norm_out")]
