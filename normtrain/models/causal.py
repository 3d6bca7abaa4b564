"""The decoder-only Transformer: a language model as a plain module."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from normtrain.models.blocks import EncoderLayer, LayerConfig, Stack
from normtrain.models.embedding import TokenModel
from normtrain.models.positions import Positions


class CausalLM(TokenModel):
    """Decoder-only Transformer (Radford et al. 2018) with any norm at any place.

    Args:
        config: what all layers share.
        vocab_size: number of token ids.
        layers: number of layers.
        positions: ``"sinusoidal"`` or ``"learned"``.
        max_positions: longest sequence, in tokens.
        tie: whether the output matrix is the embedding matrix.
        embedding_norm: the norm of embedding vectors, see :class:`TokenModel`.
        head_bias: whether the logits have a bias.

    Attributes:
        norms: the rules it was built with.

    Raises:
        ValueError: if ``positions`` or ``embedding_norm`` does not exist.
    """

    def __init__(
        self,
        config: LayerConfig,
        vocab_size: int,
        *,
        layers: int,
        positions: str = "learned",
        max_positions: int = 1024,
        tie: bool = True,
        embedding_norm: str = "none",
        head_bias: bool = False,
    ) -> None:
        super().__init__(config, vocab_size, embedding_norm=embedding_norm, tied=tie)
        d = config.stream
        self.embedding = nn.Embedding(vocab_size, d)
        self.positions = Positions(positions, max_positions, d)
        self.decoder = Stack(config, layers, "decoder", partial(EncoderLayer, causal=True))
        self.head = nn.Linear(d, vocab_size, bias=head_bias)
        nn.init.normal_(self.embedding.weight, std=d**-0.5)
        if tie:
            self.head.weight = self.embedding.weight
        else:
            nn.init.normal_(self.head.weight, std=d**-0.5)
        if head_bias:
            nn.init.zeros_(self.head.bias)

    def hidden(self, tokens: Tensor) -> Tensor:
        """The stack's last vectors, ``(batch, time, stream)``, before the output matrix."""
        return self.decoder(self.embed(tokens, self.embedding, self.positions))

    def forward(self, tokens: Tensor) -> Tensor:
        """Next-token logits.

        Args:
            tokens: ``(batch, time)`` int64.

        Returns:
            ``(batch, time, vocab_size)``; those at a position depend on no later token.
        """
        return self.logits(self.hidden(tokens))
