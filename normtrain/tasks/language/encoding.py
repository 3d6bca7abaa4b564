"""A split as one array of token ids on disk, written as a stream and memory-mapped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normtrain.data.cache import cache_root, cached_entry, fingerprint
from normtrain.data.documents import Documents, Piece, raw_bytes
from normtrain.data.tokenizers.protocol import TextTokenizer

_VERSION = "1"
_DATA, _COUNTS = "tokens.bin", "counts.json"
# Pieces that are encoded at once: enough for all cores, and little memory.
_TOGETHER = 16


@dataclass(frozen=True)
class TextCounts:
    """Sizes of a split, for rates that do not depend on the tokenizer.

    Bits per byte and per character divide by `bytes` and `characters`. Word-level perplexity, as
    published for WikiText and the Penn Treebank, divides by `words` and `lines` together, since
    each line end is a word ``<eos>`` there; with the word tokenizer that sum is `tokens`.

    Attributes:
        tokens: ids in the array, with those that end documents.
        words: words between white space.
        lines: line ends; the end of a document without a final line end counts too.
        bytes: of the text in UTF-8.
        characters: code points of the text.
        documents: number of documents.
    """

    tokens: int = 0
    words: int = 0
    lines: int = 0
    bytes: int = 0
    characters: int = 0
    documents: int = 0

    def __add__(self, other: TextCounts) -> TextCounts:
        both = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return TextCounts(**both)


class EncodedText:
    """The token ids of a split.

    Attributes:
        tokens: (tokens,) uint16, or uint32 for vocabularies beyond 65,536; read-only and
            memory-mapped.
        counts: sizes of the text.
        eos: the id that ends a document.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = Path(folder)
        plain = json.loads((self._folder / _COUNTS).read_text(encoding="utf-8"))
        self.eos: int = plain["eos"]
        self.counts = TextCounts(**plain["counts"])
        self.tokens: NDArray[Any] = np.memmap(self._folder / _DATA, plain["dtype"], mode="r")

    def __len__(self) -> int:
        return len(self.tokens)

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker process maps the file again and copies nothing.
        return type(self), (str(self._folder),)


def encode_text(
    documents: Documents,
    tokenizer: TextTokenizer,
    *,
    document_mark: bool = True,
    cache_dir: str | os.PathLike[str] | None = None,
) -> EncodedText:
    """Encode a split, or map its cached encoding; a few pieces are in memory at a time.

    Args:
        documents: the text.
        tokenizer: encodes it, piece by piece.
        document_mark: put `eos` between documents. Ignored for the word tokenizer, which has `eos`
            at every line end, and at the end of a document without a final line end.
        cache_dir: see `normtrain.data.cache.cache_root`.

    Raises:
        UserError: a file of the text cannot be used.
        RunError: the text cannot be read, or the cache cannot be written.
    """
    by_lines = tokenizer.kind == "word"
    mark = document_mark and not by_lines
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
    settings = json.dumps({"version": _VERSION, "mark": mark, "dtype": dtype.name})
    key = fingerprint(settings, documents.fingerprint, tokenizer.fingerprint)

    def build(folder: Path) -> None:
        counts = TextCounts()
        with (folder / _DATA).open("wb") as file:
            for ids, part in _encoded(documents, tokenizer, mark, by_lines):
                np.array(ids, dtype=dtype).tofile(file)
                counts += part
        plain = {"eos": tokenizer.eos, "dtype": dtype.name, "counts": asdict(counts)}
        (folder / _COUNTS).write_text(json.dumps(plain), encoding="utf-8")

    entry = cached_entry(cache_root(cache_dir), f"text-{key[:24]}", build)
    return EncodedText(entry)


def _encoded(
    documents: Documents, tokenizer: TextTokenizer, mark: bool, by_lines: bool
) -> Iterator[tuple[list[int], TextCounts]]:
    """The ids of each piece, with the marks before and after it, and its counts."""
    begins = False  # whether the next piece starts a document other than the first
    ends_line = True
    for pieces in _grouped(documents):
        every = tokenizer.encode_batch([piece.text for piece in pieces])
        for (text, ends), ids in zip(pieces, every, strict=True):
            if begins and mark:
                ids.insert(0, tokenizer.eos)
            ends_line = text.endswith("\n") if text else ends_line
            cut_off = ends and not ends_line
            if cut_off and by_lines:
                ids.append(tokenizer.eos)
            yield ids, _counts(text, len(ids), cut_off, ends)
            begins = ends
            ends_line = ends_line or ends


def _counts(text: str, tokens: int, cut_off: bool, ends: bool) -> TextCounts:
    return TextCounts(
        tokens=tokens,
        words=len(text.split()),
        lines=text.count("\n") + cut_off,
        bytes=len(raw_bytes(text)),
        characters=len(text),
        documents=int(ends),
    )


def _grouped(documents: Documents) -> Iterator[list[Piece]]:
    group: list[Piece] = []
    for piece in documents:
        group.append(piece)
        if len(group) == _TOGETHER:
            yield group
            group = []
    if group:
        yield group
