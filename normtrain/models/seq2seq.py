"""The encoder-decoder Transformer, as a plain module, and its state while decoding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normtrain.data.tokenization import PAD, UNK
from normtrain.errors import UserError
from normtrain.models.attention import KeyValueCache
from normtrain.models.blocks import DecoderLayer, EncoderLayer, LayerConfig
from normtrain.models.positions import Positions

TIES = ("all", "decoder", "none")


class Stack(nn.Module):
    """The layers of an encoder or a decoder and the norm they end with.

    Args:
        config: what all layers share.
        layers: how many.
        name: full name in the model, ``"encoder"`` or ``"decoder"``.
        layer: the class of a layer.
    """

    def __init__(
        self, config: LayerConfig, layers: int, name: str, layer: type[EncoderLayer | DecoderLayer]
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer(config, f"{name}.layers.{i}") for i in range(layers))
        # A post-norm stack ends with a norm already.
        self.norm = (
            nn.Identity()
            if config.placement == "post"
            else config.norms.build(f"{name}.norm", config.d_model)
        )

    def forward(self, x: Tensor, *inputs: Tensor | None) -> Tensor:
        """Run every layer on ``(batch, time, d_model)``, then the norm."""
        for layer in self.layers:
            x = layer(x, *inputs)
        return self.norm(x)


class Seq2Seq(nn.Module):
    """Encoder-decoder Transformer (Vaswani et al. 2017) with any norm at any place.

    Args:
        config: what all layers share.
        vocab_size: number of token ids; id 0 is padding, 3 the unknown token.
        encoder_layers: number of encoder layers.
        decoder_layers: number of decoder layers.
        positions: ``"sinusoidal"`` or ``"learned"``.
        max_positions: longest sequence, in tokens.
        tie: ``"all"`` (source, target and output embeddings are one matrix), ``"decoder"``
            (target and output are) or ``"none"``.
        word_dropout: share of source tokens that training replaces by the unknown token.

    Attributes:
        norms: the rules it was built with.

    Raises:
        ValueError: if ``tie`` is none of the three.
    """

    def __init__(
        self,
        config: LayerConfig,
        vocab_size: int,
        *,
        encoder_layers: int,
        decoder_layers: int,
        positions: str = "sinusoidal",
        max_positions: int = 1024,
        tie: str = "all",
        word_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norms = config.norms
        if tie not in TIES:
            raise UserError(f"tie is one of {', '.join(TIES)}, not {tie!r}")
        d = config.d_model
        self.vocab_size, self.scale, self.word_dropout = vocab_size, math.sqrt(d), word_dropout
        self.target_embedding = nn.Embedding(vocab_size, d, padding_idx=PAD)
        self.source_embedding = (
            self.target_embedding if tie == "all" else nn.Embedding(vocab_size, d, padding_idx=PAD)
        )
        self.source_positions = Positions(positions, max_positions, d)
        self.target_positions = Positions(positions, max_positions, d)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = Stack(config, encoder_layers, "encoder", EncoderLayer)
        self.decoder = Stack(config, decoder_layers, "decoder", DecoderLayer)
        self.head = nn.Linear(d, vocab_size, bias=False)
        if tie != "none":
            self.head.weight = self.target_embedding.weight
        # A dict, not a set: the order must be the same in every process.
        tables = (self.source_embedding.weight, self.target_embedding.weight, self.head.weight)
        for weight in dict.fromkeys(tables):
            nn.init.normal_(weight, std=d**-0.5)
        for table in (self.source_embedding, self.target_embedding):
            nn.init.zeros_(table.weight[PAD])

    def encode(self, source: Tensor) -> tuple[Tensor, Tensor | None]:
        """Read source sentences.

        Args:
            source: ``(batch, source)`` int64, padded with 0.

        Returns:
            The memory ``(batch, source, d_model)`` and the mask ``(batch, 1, 1, source)``, True
            on real tokens, or None where nothing is padded.
        """
        real = source != PAD
        # Without padding attention needs no mask; asking costs a wait only off the CPU.
        on_cpu = source.device.type == "cpu"
        mask = None if on_cpu and bool(real.all()) else real[:, None, None, :]
        if self.training and self.word_dropout:
            dropped = torch.rand(source.shape, device=source.device) < self.word_dropout
            source = source.masked_fill(dropped & real, UNK)
        x = self.source_positions(self.source_embedding(source) * self.scale)
        return self.encoder(self.dropout(x), mask), mask

    def hidden(self, source: Tensor, target_in: Tensor) -> Tensor:
        """The decoder's last vectors, ``(batch, time, d_model)``, before the output matrix."""
        memory, mask = self.encode(source)
        x = self.target_positions(self.target_embedding(target_in) * self.scale)
        return self.decoder(self.dropout(x), memory, mask)

    def forward(self, source: Tensor, target_in: Tensor) -> Tensor:
        """Next-token logits under teacher forcing.

        Args:
            source: ``(batch, source)`` int64 token ids, padded with 0.
            target_in: ``(batch, time)`` int64, the target shifted right by one.

        Returns:
            ``(batch, time, vocab_size)``.
        """
        return self.head(self.hidden(source, target_in))

    def start(self, source: Tensor, beams: int, max_length: int) -> DecodingState:
        """Encode sentences and prepare to decode ``beams`` hypotheses of each.

        Args:
            source: ``(batch, source)`` int64, padded with 0.
            beams: hypotheses a sentence; they lie side by side, sentence by sentence.
            max_length: the longest target, in tokens.

        Raises:
            ValueError: if ``max_length`` is past the model's positions.
        """
        if max_length > self.target_positions.max_positions:
            raise UserError(
                f"decode.max_length={max_length} is longer than model.max_positions="
                f"{self.target_positions.max_positions}"
            )
        memory, mask = self.encode(source)
        layers = cast(list[DecoderLayer], list(self.decoder.layers))
        remembered = [layer.cross_attention.remember(memory) for layer in layers]
        width = 2 * memory.size(-1)
        caches = [KeyValueCache(beams * source.size(0), width, remembered[0][0]) for _ in layers]
        return DecodingState(beams, caches, remembered, mask)

    def step(self, tokens: Tensor, state: DecodingState) -> Tensor:
        """Feed one token to every hypothesis.

        Args:
            tokens: ``(batch * beams,)`` int64.
            state: from :meth:`start`; advanced in place.

        Returns:
            Next-token logits ``(batch * beams, vocab_size)``, float32.
        """
        x = self.target_embedding(tokens[:, None]) * self.scale
        x = self.target_positions(x, start=state.length)
        layers = cast(list[DecoderLayer], list(self.decoder.layers))
        for layer, cache, remembered in zip(layers, state.caches, state.remembered, strict=True):
            x = layer.step(x, cache, remembered, state.mask)
        state.length += 1
        return F.linear(self.decoder.norm(x)[:, 0], self.head.weight).float()


@dataclass
class DecodingState:
    """Everything a decoding remembers between two steps.

    Attributes:
        beams: hypotheses a sentence.
        caches: per decoder layer, keys and values of the tokens so far.
        remembered: per decoder layer, keys and values of the memory, once a sentence.
        mask: ``(batch, 1, 1, source)``, True on real source tokens, or None.
        length: tokens fed so far.
    """

    beams: int
    caches: list[KeyValueCache]
    remembered: list[tuple[Tensor, Tensor]]
    mask: Tensor | None
    length: int = 0

    def reorder(self, index: Tensor) -> None:
        """Make hypothesis i a copy of old hypothesis ``index[i]``, ``(batch * beams,)`` int64."""
        for cache in self.caches:
            cache.select(index)

    def keep(self, sentences: Tensor) -> None:
        """Go on with the given sentences only, ``(n,)`` int64 positions in the batch."""
        offsets = torch.arange(self.beams, device=sentences.device)
        rows = (sentences[:, None] * self.beams + offsets).flatten()
        self.reorder(rows)
        self.remembered = [(k[sentences], v[sentences]) for k, v in self.remembered]
        if self.mask is not None:
            self.mask = self.mask[sentences]
