"""The interface of the tokenizers of running text, and what they share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

from normtrain.data.cache import fingerprint

#: Part of every cache key: raise it when the same text would give another tokenizer or other ids.
TEXT_TOKENIZER_VERSION = "1"

#: Decoded text of an unknown word or character.
UNKNOWN = "<unk>"


@runtime_checkable
class TextTokenizer(Protocol):
    """Encodes running text as ids and decodes it; no text is ever encoded as the id `eos`.

    Attributes:
        kind: ``"bpe"``, ``"word"``, ``"byte"`` or ``"char"``.
        vocab_size: ids are 0 to vocab_size-1.
        eos: the id that ends a document (of ``"word"``, a line).
    """

    kind: str
    vocab_size: int
    eos: int

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; the empty text gives none."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of many texts."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids; ids outside the vocabulary are left out."""
        ...

    def to_json(self) -> str:
        """Return the tokenizer as text that `tokenizer_from_json` reads."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides how text is encoded."""
        return fingerprint(TEXT_TOKENIZER_VERSION, self.kind, self.to_json())
