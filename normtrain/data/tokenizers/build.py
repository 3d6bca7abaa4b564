"""Tokenizers of running text by kind: training, reading, and the cache of trained ones."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from normtrain.data.cache import cache_root, cached_entry, fingerprint
from normtrain.data.documents import PIECES_VERSION, Documents
from normtrain.data.tokenizers.bpe import bpe_from_rules, train_bpe
from normtrain.data.tokenizers.plain import ByteTokenizer, CharTokenizer, train_byte, train_char
from normtrain.data.tokenizers.protocol import TEXT_TOKENIZER_VERSION, TextTokenizer
from normtrain.data.tokenizers.word import WordTokenizer, train_word
from normtrain.errors import UserError, on_one_line, unknown_name

_KINDS = ("bpe", "byte", "char", "word")
_FILE = "tokenizer.json"


def train_text_tokenizer(
    kind: str, documents: Iterable[str], vocab_size: int | None
) -> TextTokenizer:
    """Train a tokenizer of running text; the same text gives the same tokenizer.

    Args:
        kind: ``"bpe"`` (byte-level byte-pair encoding), ``"word"`` (with ``<eos>`` at line ends,
            as WikiText and the Penn Treebank are measured), ``"byte"`` or ``"char"``.
        documents: texts, read once and not kept.
        vocab_size: ids at most. ``"bpe"`` needs one; None takes all words or characters;
            ``"byte"`` takes none.

    Raises:
        UserError: the kind is not found, there is no text, or `vocab_size` cannot be used.
    """
    if kind == "bpe":
        if vocab_size is None:
            raise UserError("bpe needs a vocab_size, for example 8000")
        return train_bpe(documents, vocab_size)
    if kind == "word":
        return train_word(documents, vocab_size)
    if kind == "byte":
        return train_byte(vocab_size)
    if kind == "char":
        return train_char(documents, vocab_size)
    raise unknown_name("tokenizer", kind, _KINDS)


def tokenizer_from_json(text: str) -> TextTokenizer:
    """Read what `TextTokenizer.to_json` wrote, or a ``tokenizer.json`` with ``<|endoftext|>``.

    Raises:
        UserError: the text is no such tokenizer.
    """
    try:
        plain = json.loads(text)
        kind = plain.get("kind")
        if kind is None:
            return bpe_from_rules(text)
        if kind == "bpe":
            return bpe_from_rules(json.dumps(plain["rules"]), plain["eos"])
        if kind == "word":
            return WordTokenizer(_strings(plain["words"]))
        if kind == "byte":
            return ByteTokenizer()
        if kind == "char":
            return CharTokenizer(_strings(plain["characters"]))
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"the text is not a tokenizer file: {on_one_line(error)}") from error
    raise unknown_name("tokenizer", str(kind), _KINDS)


def _strings(vocabulary: Any) -> list[str]:
    if not isinstance(vocabulary, list) or not all(isinstance(each, str) for each in vocabulary):
        raise TypeError("the vocabulary must be a list of strings")
    return vocabulary


def cached_text_tokenizer(
    documents: Documents,
    kind: str,
    vocab_size: int | None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> TextTokenizer:
    """Train a tokenizer on the training documents, or read the one trained before.

    Raises:
        UserError: as `train_text_tokenizer` does.
        RunError: the cache cannot be written.
    """
    import tokenizers

    versions = f"{TEXT_TOKENIZER_VERSION} {PIECES_VERSION} {tokenizers.__version__}"
    key = fingerprint(versions, kind, str(vocab_size), documents.fingerprint)

    def train(folder: Path) -> None:
        trained = train_text_tokenizer(kind, documents.texts(), vocab_size)
        (folder / _FILE).write_text(trained.to_json(), encoding="utf-8")

    entry = cached_entry(cache_root(cache_dir), f"text-tokenizer-{key[:24]}", train)
    return tokenizer_from_json((entry / _FILE).read_text(encoding="utf-8"))
