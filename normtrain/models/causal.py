"""The decoder-only Transformer: a language model as a plain module, and its decoding state."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from normtrain.errors import UserError
from normtrain.models.attention import KeyValueCache
from normtrain.models.blocks import EncoderLayer, Stack
from normtrain.models.config import CausalLMConfig, TransformerConfig
from normtrain.models.embedding import TokenModel
from normtrain.models.positions import Positions, check_fits
from normtrain.models.rotary import Rotary

_STD = 0.02


class CausalLM(TokenModel):
    """Decoder-only Transformer (Radford et al. 2018) with any norm at any place.

    Weights are initialised as in GPT-2 (Radford et al. 2019): matrices normal with standard
    deviation 0.02, those that write into the stream divided by ``sqrt(2 * layers)``, biases 0.
    Embedding vectors are multiplied by ``sqrt(d_model)`` only with an ``embedding_norm``.

    Args:
        config: sizes, norms and positions: ``rotary`` (Su et al. 2021: queries and keys are
            rotated, after their norms), ``learned`` or ``sinusoidal`` (vectors added to the
            tokens'), or ``none`` (Haviv et al. 2022: only the causal mask gives the order).
        vocab_size: number of token ids.

    Attributes:
        norms: the rules it was built with.
        max_positions: longest sequence, in tokens.

    Raises:
        UserError: a norm does not exist.
    """

    always_scaled: ClassVar[bool] = False

    def __init__(self, config: CausalLMConfig, vocab_size: int) -> None:
        super().__init__(config, vocab_size, tied=config.tie)
        d, longest = config.stream, config.max_positions
        self.max_positions = longest
        self.embedding = nn.Embedding(vocab_size, d)
        self.positions: Positions | Rotary | None = None
        if config.positions == "rotary":
            self.positions = Rotary(longest, config.d_model // config.heads, config.rotary_base)
        elif config.positions != "none":
            self.positions = Positions(config.positions, longest, d)
        self.decoder = Stack(config, config.layers, "decoder", partial(EncoderLayer, causal=True))
        self.head = nn.Linear(d, vocab_size, bias=config.head_bias)
        if config.tie:
            self.head.weight = self.embedding.weight
        self._reset_weights()

    def _reset_weights(self) -> None:
        nn.init.normal_(self.embedding.weight, std=_STD)
        if isinstance(self.positions, Positions) and self.positions.kind == "learned":
            nn.init.normal_(self.positions.weight, std=_STD)
        layers = self._layers()
        for layer in layers:
            _reset(layer.attention.query_key_value, _STD)
            _reset(layer.feed_forward.inner, _STD)
            for writer in (layer.attention.output, layer.feed_forward.outer):
                _reset(writer, _STD / (2 * len(layers)) ** 0.5)
        if not self.tied:
            _reset(self.head, _STD)
        elif self.head.bias is not None:
            nn.init.zeros_(self.head.bias)

    def _layers(self) -> list[EncoderLayer]:
        return cast(list[EncoderLayer], list(self.decoder.layers))

    @property
    def position_kind(self) -> str:
        """The value of ``positions`` that describes this model, also after a conversion."""
        if self.positions is None:
            return "none"
        return self.positions.kind if isinstance(self.positions, Positions) else "rotary"

    def changed_config(self, config: TransformerConfig) -> dict[str, Any]:
        """Return what `TokenModel.changed_config` does, with tying and positions."""
        tie = self.head.weight is self.embedding.weight
        return {**super().changed_config(config), "tie": tie, "positions": self.position_kind}

    def _enter(self, tokens: Tensor, start: int = 0) -> tuple[Tensor, Tensor | None]:
        """Return the input of the stack, ``(batch, time, stream)``, and the rotation."""
        check_fits(start + tokens.size(1), self.max_positions)
        added = self.positions if isinstance(self.positions, Positions) else None
        x = self.embed(tokens, self.embedding, added, start)
        if isinstance(self.positions, Rotary):
            return x, self.positions(tokens.size(1), start)
        return x, None

    def hidden(self, tokens: Tensor) -> Tensor:
        """Return the output of the stack, ``(batch, time, stream)``, before the output matrix."""
        x, rotation = self._enter(tokens)
        return self.decoder(x, None, rotation)

    def forward(self, tokens: Tensor) -> Tensor:
        """Next-token logits.

        Args:
            tokens: ``(batch, time)`` int64. Attention is causal, so padding on the right of a
                shorter row does not change the logits before it.

        Returns:
            ``(batch, time, vocab_size)``.

        Raises:
            UserError: the sequence is longer than ``max_positions``.
        """
        return self.logits(self.hidden(tokens))

    def start(self, rows: int) -> CausalState:
        """Return the state to decode ``rows`` sequences of equal length from the first token."""
        return CausalState(rows, [KeyValueCache() for _ in self.decoder.layers])

    def prefill(self, tokens: Tensor, state: CausalState, *, last: bool = False) -> Tensor:
        """Feed the next tokens of every row; logits equal those of `forward`.

        Args:
            tokens: ``(rows, time)`` int64, with ``time >= 1``.
            state: from :meth:`start`; advanced in place.
            last: whether to return only the logits after the last token.

        Returns:
            Next-token logits ``(rows, time, vocab_size)``, or ``(rows, 1, vocab_size)``.

        Raises:
            UserError: the sequence is longer than ``max_positions``, or ``tokens`` has another
                shape.
        """
        if tokens.ndim != 2 or tokens.size(0) != state.rows or tokens.size(1) < 1:
            shape = tuple(tokens.shape)
            raise UserError(f"tokens must be ({state.rows}, time) with time >= 1, got {shape}")
        x, rotation = self._enter(tokens, state.length)
        for layer, cache in zip(self._layers(), state.caches, strict=True):
            x = layer.step(x, cache, rotation)
        state.length += tokens.size(1)
        if state.output is None:
            state.output = self.output_matrix()
        return self.logits(self.decoder.norm(x[:, -1:] if last else x), state.output)

    def step(self, tokens: Tensor, state: CausalState) -> Tensor:
        """Feed one token to every row.

        Args:
            tokens: ``(rows,)`` int64.
            state: from :meth:`start`; advanced in place.

        Returns:
            Next-token logits ``(rows, vocab_size)``.

        Raises:
            UserError: as for :meth:`prefill`.
        """
        return self.prefill(tokens[:, None], state)[:, 0]


@dataclass
class CausalState:
    """The state of a decoding between two steps.

    Attributes:
        rows: number of sequences.
        caches: per layer, keys and values of the tokens so far.
        length: tokens fed so far, the same for every row.
        output: ``(vocab_size, stream)``, the output matrix, after any embedding norm.
    """

    rows: int
    caches: list[KeyValueCache]
    length: int = 0
    output: Tensor | None = None


def _reset(linear: nn.Linear, std: float) -> None:
    nn.init.normal_(linear.weight, std=std)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
