"""The encoder-decoder Transformer, as a plain module, and its state while decoding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from normtrain.errors import UserError
from normtrain.models.attention import KeyValueCache
from normtrain.models.blocks import DecoderLayer, EncoderLayer, Stack
from normtrain.models.config import Seq2SeqConfig, TransformerConfig
from normtrain.models.embedding import TokenModel
from normtrain.models.positions import Positions
from normtrain.models.token_ids import PAD, UNK


class Seq2Seq(TokenModel):
    """Encoder-decoder Transformer (Vaswani et al. 2017) with any norm at any site.

    Args:
        config: sizes, norms, positions, and what is tied: ``all`` (source, target and output
            embeddings are one matrix), ``decoder`` (target and output are), ``embeddings``
            (source and target are) or ``none``.
        vocab_size: number of token ids; 0 is padding, 3 the unknown token.

    Attributes:
        norms: the rules it was built with.

    Raises:
        UserError: a norm does not exist.
    """

    inputs: ClassVar[int] = 2

    def __init__(self, config: Seq2SeqConfig, vocab_size: int) -> None:
        super().__init__(config, vocab_size, tied=config.tie in ("all", "decoder"))
        d, self.word_dropout = config.stream, config.word_dropout
        self.target_embedding = nn.Embedding(vocab_size, d, padding_idx=PAD)
        shared = config.tie in ("all", "embeddings")
        self.source_embedding = (
            self.target_embedding if shared else nn.Embedding(vocab_size, d, padding_idx=PAD)
        )
        self.source_positions = Positions(config.positions, config.max_positions, d)
        self.target_positions = Positions(config.positions, config.max_positions, d)
        self.encoder = Stack(config, config.encoder_layers, "encoder", EncoderLayer)
        self.decoder = Stack(config, config.decoder_layers, "decoder", DecoderLayer)
        self.head = nn.Linear(d, vocab_size, bias=config.head_bias)
        if self.tied:
            self.head.weight = self.target_embedding.weight
        self._reset_tables(d**-0.5)

    def _reset_tables(self, std: float) -> None:
        if self.head.bias is not None:
            nn.init.zeros_(self.head.bias)
        # A dict, not a set: the order must be the same in every process.
        tables = (self.source_embedding.weight, self.target_embedding.weight, self.head.weight)
        for weight in dict.fromkeys(tables):
            nn.init.normal_(weight, std=std)
        for table in (self.source_embedding, self.target_embedding):
            # The gradient through the norm of a zero row is divided by eps, so a normalised
            # output matrix keeps a random row for padding.
            if self.embedding_norm is None or table.weight is not self.head.weight:
                nn.init.zeros_(table.weight[PAD])

    def changed_config(self, config: TransformerConfig) -> dict[str, Any]:
        """Return what `TokenModel.changed_config` does, with tying and positions."""
        tie = cast(Seq2SeqConfig, config).tie
        if self.head.weight is not self.target_embedding.weight:
            tie = "embeddings" if self.source_embedding is self.target_embedding else "none"
        positions = self.target_positions.kind
        return {**super().changed_config(config), "tie": tie, "positions": positions}

    def encode(self, source: Tensor) -> tuple[Tensor, Tensor | None]:
        """Encode source sentences.

        Args:
            source: ``(batch, source)`` int64, padded with 0.

        Returns:
            The memory ``(batch, source, stream)`` and the mask ``(batch, 1, 1, source)``, True
            on tokens that are not padding, or None without padding.
        """
        real = source != PAD
        # Without padding attention needs no mask; checking it would synchronise an accelerator.
        on_cpu = source.device.type == "cpu"
        mask = None if on_cpu and bool(real.all()) else real[:, None, None, :]
        if self.training and self.word_dropout:
            dropped = torch.rand(source.shape, device=source.device) < self.word_dropout
            source = source.masked_fill(dropped & real, UNK)
        x = self.embed(source, self.source_embedding, self.source_positions)
        return self.encoder(x, mask), mask

    def hidden(self, source: Tensor, target_in: Tensor) -> Tensor:
        """Return the decoder's output, ``(batch, time, stream)``, before the output matrix."""
        memory, mask = self.encode(source)
        x = self.embed(target_in, self.target_embedding, self.target_positions)
        return self.decoder(x, memory, mask)

    def forward(self, source: Tensor, target_in: Tensor) -> Tensor:
        """Next-token logits under teacher forcing.

        Args:
            source: ``(batch, source)`` int64 token ids, padded with 0.
            target_in: ``(batch, time)`` int64, the target shifted right by one.

        Returns:
            ``(batch, time, vocab_size)``.
        """
        return self.logits(self.hidden(source, target_in))

    def start(self, source: Tensor, beams: int, max_length: int) -> DecodingState:
        """Encode sentences and prepare to decode ``beams`` hypotheses of each.

        Args:
            source: ``(batch, source)`` int64, padded with 0.
            beams: hypotheses per sentence, in adjacent rows.
            max_length: the longest target, in tokens.

        Raises:
            UserError: ``max_length`` is more than ``max_positions``.
        """
        if max_length > self.target_positions.max_positions:
            raise UserError(
                f"decode.max_length must be <= model.max_positions "
                f"({self.target_positions.max_positions}), got {max_length}"
            )
        memory, mask = self.encode(source)
        layers = cast(list[DecoderLayer], list(self.decoder.layers))
        remembered = [layer.cross_attention.remember(memory) for layer in layers]
        caches = [KeyValueCache() for _ in layers]
        return DecodingState(beams, caches, remembered, mask, self.output_matrix())

    def step(self, tokens: Tensor, state: DecodingState) -> Tensor:
        """Feed one token to every hypothesis.

        Args:
            tokens: ``(batch * beams,)`` int64.
            state: from :meth:`start`; advanced in place.

        Returns:
            Next-token logits ``(batch * beams, vocab_size)``, float32.
        """
        x = self.embed(
            tokens[:, None], self.target_embedding, self.target_positions, start=state.length
        )
        layers = cast(list[DecoderLayer], list(self.decoder.layers))
        for layer, cache, remembered in zip(layers, state.caches, state.remembered, strict=True):
            x = layer.step(x, cache, remembered, state.mask)
        state.length += 1
        return self.logits(self.decoder.norm(x)[:, 0], state.output).float()


@dataclass
class DecodingState:
    """The state of a decoding between two steps.

    Attributes:
        beams: hypotheses per sentence.
        caches: per decoder layer, keys and values of the tokens so far.
        remembered: per decoder layer, keys and values of the memory, once per sentence.
        mask: ``(batch, 1, 1, source)``, True on source tokens that are not padding, or None.
        output: ``(vocab_size, stream)``, the output matrix, after any embedding norm.
        length: tokens fed so far.
    """

    beams: int
    caches: list[KeyValueCache]
    remembered: list[tuple[Tensor, Tensor]]
    mask: Tensor | None
    output: Tensor
    length: int = 0

    def reorder(self, index: Tensor) -> None:
        """Replace hypothesis i by hypothesis ``index[i]``, ``(batch * beams,)`` int64."""
        for cache in self.caches:
            cache.select(index)

    def keep(self, sentences: Tensor) -> None:
        """Keep only the given sentences, ``(n,)`` int64 positions in the batch."""
        offsets = torch.arange(self.beams, device=sentences.device)
        rows = (sentences[:, None] * self.beams + offsets).flatten()
        self.reorder(rows)
        self.remembered = [(k[sentences], v[sentences]) for k, v in self.remembered]
        if self.mask is not None:
            self.mask = self.mask[sentences]
