"""What every tokenizer of running text can do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

from normtrain.data.cache import fingerprint

#: Part of every cache key: raise it when the same text would give another tokenizer or other ids.
TEXT_TOKENIZER_VERSION = "1"

#: What stands for an unknown word or character in decoded text.
UNKNOWN = "<unk>"


@runtime_checkable
class TextTokenizer(Protocol):
    """Turns running text into ids and back; the text of a user never gives the id `eos`.

    Attributes:
        kind: ``"bpe"``, ``"word"``, ``"byte"`` or ``"char"``.
        vocab_size: ids are 0 to vocab_size-1.
        eos: the id that ends a document (of ``"word"``, a line).
    """

    kind: str
    vocab_size: int
    eos: int

    def encode(self, text: str) -> list[int]:
        """Ids of a text; the empty text gives none."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of many texts."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; ids outside the vocabulary are left out."""
        ...

    def to_json(self) -> str:
        """What `tokenizer_from_json` reads."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides how text is encoded."""
        ...


def fingerprint_of(tokenizer: TextTokenizer) -> str:
    """The fingerprint of any tokenizer, from its kind and its JSON text."""
    return fingerprint(TEXT_TOKENIZER_VERSION, tokenizer.kind, tokenizer.to_json())
