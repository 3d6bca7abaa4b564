"""The tokenizers that learn no units: bytes, and the characters of the training text."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence

from normtrain.data.documents import raw_bytes
from normtrain.data.tokenizers.protocol import UNKNOWN, TextTokenizer
from normtrain.errors import UserError


class ByteTokenizer(TextTokenizer):
    """The 256 bytes of UTF-8, and `eos` (256). Lossless for any text.

    A lone surrogate that stands for a byte (``surrogateescape``) is encoded as that byte; bytes
    that are not UTF-8 are decoded as U+FFFD.
    """

    kind = "byte"
    vocab_size = 257
    eos = 256

    def encode(self, text: str) -> list[int]:
        """Return the bytes of a text."""
        return list(raw_bytes(text))

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of bytes; `eos` and ids outside the vocabulary are left out."""
        return bytes(i for i in map(int, ids) if 0 <= i < 256).decode("utf-8", "replace")

    def to_json(self) -> str:
        """Return the tokenizer as text that `tokenizer_from_json` reads."""
        return json.dumps({"kind": self.kind})


class CharTokenizer(TextTokenizer):
    """One id for each character of the training text; others are the unknown one.

    Decoding gives the text back, with ``<unk>`` for unknown characters; `eos` is left out.

    Args:
        characters: the vocabulary in the order of its ids, without `eos` (0) and unknown (1).
    """

    kind = "char"
    eos = 0

    def __init__(self, characters: Sequence[str]) -> None:
        self._decoded = ["", UNKNOWN, *characters]
        self._ids = {character: i for i, character in enumerate(characters, start=2)}
        self.vocab_size = len(self._decoded)

    def encode(self, text: str) -> list[int]:
        """Return the ids of the characters."""
        get = self._ids.get
        return [get(character, 1) for character in text]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids; `eos` and ids outside the vocabulary are left out."""
        size = self.vocab_size
        return "".join(self._decoded[i] for i in map(int, ids) if 0 <= i < size)

    def to_json(self) -> str:
        """Return the tokenizer as text that `tokenizer_from_json` reads."""
        return json.dumps({"kind": self.kind, "characters": self._decoded[2:]})


def train_byte(vocab_size: int | None) -> ByteTokenizer:
    """Return the byte tokenizer; nothing is learned.

    Raises:
        UserError: `vocab_size` is neither None nor 257.
    """
    if vocab_size not in (None, ByteTokenizer.vocab_size):
        raise UserError(
            f"vocab_size must be left out with the byte tokenizer, which has "
            f"{ByteTokenizer.vocab_size} ids; got {vocab_size}"
        )
    return ByteTokenizer()


def train_char(texts: Iterable[str], vocab_size: int | None) -> CharTokenizer:
    """Take all characters of a text, or the most frequent ones; ties go by code point.

    Args:
        texts: pieces of text.
        vocab_size: ids at most, with `eos` and the unknown one; None takes all characters.

    Raises:
        UserError: there is no text, or `vocab_size` is below 3.
    """
    if vocab_size is not None and vocab_size < 3:
        raise UserError(f"vocab_size must be >= 3 with the char tokenizer, got {vocab_size}")
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    return CharTokenizer(most_frequent(counts, None if vocab_size is None else vocab_size - 2))


def most_frequent(counts: Counter[str], limit: int | None) -> list[str]:
    """Return the keys of counts by falling frequency, equally frequent ones in sorted order.

    Raises:
        UserError: nothing was counted.
    """
    if not counts:
        raise UserError("the training split has no text to train a tokenizer on")
    return sorted(counts, key=lambda key: (-counts[key], key))[:limit]
