"""The tokenizers that learn no units: bytes, and the characters of the training text."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence

from normtrain.data.documents import raw_bytes
from normtrain.data.tokenizers.protocol import UNKNOWN, fingerprint_of
from normtrain.errors import UserError


class ByteTokenizer:
    """The 256 bytes of UTF-8, and `eos` (256). Lossless for any text.

    A lone surrogate that stands for a byte (``surrogateescape``) is that byte; in decoded text
    bytes that aren't UTF-8 are U+FFFD.
    """

    kind = "byte"
    vocab_size = 257
    eos = 256

    def encode(self, text: str) -> list[int]:
        """The text's bytes."""
        return list(raw_bytes(text))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of many texts."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of bytes; `eos` and ids outside the vocabulary are left out."""
        return bytes(i for i in map(int, ids) if 0 <= i < 256).decode("utf-8", "replace")

    def to_json(self) -> str:
        """What `tokenizer_from_json` reads."""
        return json.dumps({"kind": self.kind})

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides how text is encoded."""
        return fingerprint_of(self)


class CharTokenizer:
    """One id for each character of the training text; others are the unknown one.

    Decoding gives the text back, with ``<unk>`` for unknown characters; `eos` is left out.

    Args:
        characters: the vocabulary in the order of its ids, without `eos` (0) and unknown (1).
    """

    kind = "char"
    eos = 0

    def __init__(self, characters: Sequence[str]) -> None:
        self._shown = ["", UNKNOWN, *characters]
        self._ids = {character: i for i, character in enumerate(characters, start=2)}
        self.vocab_size = len(self._shown)

    def encode(self, text: str) -> list[int]:
        """Ids of the characters."""
        get = self._ids.get
        return [get(character, 1) for character in text]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of many texts."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; `eos` and ids outside the vocabulary are left out."""
        size = self.vocab_size
        return "".join(self._shown[i] for i in map(int, ids) if 0 <= i < size)

    def to_json(self) -> str:
        """What `tokenizer_from_json` reads."""
        return json.dumps({"kind": self.kind, "characters": self._shown[2:]})

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides how text is encoded."""
        return fingerprint_of(self)


def train_byte(vocab_size: int | None) -> ByteTokenizer:
    """The byte tokenizer; it learns nothing.

    Raises:
        UserError: `vocab_size` is not what it is in any case.
    """
    if vocab_size not in (None, ByteTokenizer.vocab_size):
        raise UserError(
            f"vocab_size is {vocab_size}; the byte tokenizer always has "
            f"{ByteTokenizer.vocab_size} ids, so leave it out"
        )
    return ByteTokenizer()


def train_char(texts: Iterable[str], vocab_size: int | None) -> CharTokenizer:
    """Take all characters of a text, or the most frequent ones; ties go by code point.

    Args:
        texts: stretches of text.
        vocab_size: ids at most, with `eos` and the unknown one; None takes all characters.

    Raises:
        UserError: there is no text, or `vocab_size` is below 3.
    """
    if vocab_size is not None and vocab_size < 3:
        raise UserError(f"vocab_size is {vocab_size}; characters need at least 3")
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    if not counts:
        raise UserError("there is no text to train a tokenizer on")
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    return CharTokenizer(ranked if vocab_size is None else ranked[: vocab_size - 2])
