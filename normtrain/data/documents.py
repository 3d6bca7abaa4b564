"""Text as a stream of pieces: a corpus is read at every pass, and never held in memory.

A split is a sequence of documents, and a document a sequence of pieces of about 65,000 bytes.
Tokens never span pieces. Where a document is cut depends on its text alone: after a line's end,
or, inside a line longer than `LONGEST_LINE` bytes, before a space.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from normtrain.data.reading import GZIP_ERRORS, bad_gzip, not_utf8, unreadable

#: Bytes after which a piece ends with its line.
PIECE = 1 << 16
#: Bytes that are read to find a line's end; longer lines are cut at spaces.
LONGEST_LINE = 1 << 20
#: Part of every cache key: raise it when the same text would be cut elsewhere.
PIECES_VERSION = "1"

# Lone surrogates that stand for no byte (`surrogateescape` uses U+DC80 to U+DCFF).
_NO_BYTE = frozenset(map(chr, [*range(0xD800, 0xDC80), *range(0xDD00, 0xE000)]))


class Piece(NamedTuple):
    """A part of a document's text; ``ends`` is true for the last part of a document."""

    text: str
    ends: bool


@dataclass(frozen=True)
class Documents:
    """The documents of a split, read from their source at every pass.

    Attributes:
        read: starts a pass over the pieces.
    """

    read: Callable[[], Iterator[Piece]]

    def __iter__(self) -> Iterator[Piece]:
        return self.read()

    def texts(self) -> Iterator[str]:
        """Iterate over the text piece by piece: what a tokenizer is trained on."""
        return (piece.text for piece in self)

    @property
    def count(self) -> int:
        """Number of documents; the first use reads them all."""
        return self._scan[1]

    @property
    def empty(self) -> bool:
        """Whether the text is nothing but white space."""
        return self._scan[2]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the text and of the positions where its documents end."""
        return self._scan[0]

    @cached_property
    def _scan(self) -> tuple[str, int, bool]:
        digest, count, empty, size = hashlib.sha256(PIECES_VERSION.encode()), 0, True, 0
        for text, ends in self:
            raw = raw_bytes(text)
            digest.update(raw)
            size += len(raw)
            empty = empty and not text.strip()
            if ends:
                digest.update(b"\0" + size.to_bytes(8, "little"))
                count, size = count + 1, 0
        return digest.hexdigest(), count, empty


def documents_of(texts: Callable[[], Iterable[str]]) -> Documents:
    """Return documents of strings; `texts` starts a new pass over them at every call."""

    def read() -> Iterator[Piece]:
        for text in texts():
            yield from document(in_pieces(io.BytesIO(raw_bytes(text)), strict=False))

    return Documents(read)


def document(texts: Iterable[str]) -> Iterator[Piece]:
    """Iterate over the pieces of one document; an empty document has one empty piece."""
    last: str | None = None
    for text in texts:
        if last is not None:
            yield Piece(last, False)
        last = text
    yield Piece(last or "", True)


def raw_bytes(text: str) -> bytes:
    """Encode as UTF-8; a lone surrogate that stands for a byte gives it, any other ``?``."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return "".join("?" if c in _NO_BYTE else c for c in text).encode("utf-8", "surrogateescape")


def in_pieces(
    stream: BinaryIO,
    *,
    path: Path = Path("the text"),
    length: int | None = None,
    strict: bool = True,
) -> Iterator[str]:
    """Read a stream of UTF-8 in pieces, from its current position.

    Args:
        stream: the text's bytes.
        path: the file to name in errors.
        length: how many bytes to read; None reads to the end.
        strict: reject bytes that are not UTF-8. Else such bytes become lone surrogates (Python's
            ``surrogateescape``), which every byte-level tokenizer keeps.

    Raises:
        UserError: the file is not UTF-8, or is a damaged ``.gz`` file.
        RunError: the file cannot be read.
    """
    held = ""
    for text in _decoded(_blocks(stream, path, length), path, strict):
        if held and text:
            cut = len(held) if held.endswith("\n") else held.rfind(" ")
            cut = cut if cut > 0 else len(held)
            yield held[:cut]
            held = held[cut:]
        held += text
    if held:
        yield held


def open_text(path: Path) -> BinaryIO:
    """Open a plain or ``.gz`` file for reading bytes.

    Raises:
        RunError: the file cannot be read.
    """
    try:
        return cast(BinaryIO, gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb"))
    except OSError as error:
        raise unreadable(path, error) from error


def _blocks(stream: BinaryIO, path: Path, left: int | None) -> Iterator[bytes]:
    """Blocks of `PIECE` bytes and the rest of their last line."""
    lines: int | None = None
    while left is None or left > 0:
        try:
            block = stream.read(PIECE if left is None else min(PIECE, left))
            if block and not block.endswith(b"\n"):
                limit = LONGEST_LINE if left is None else min(LONGEST_LINE, left - len(block))
                block += stream.readline(limit)
        except GZIP_ERRORS as error:
            raise bad_gzip(path, error, lines) from error
        except OSError as error:
            raise unreadable(path, error) from error
        if not block:
            return
        lines = (lines or 0) + block.count(b"\n")
        left = None if left is None else left - len(block)
        yield block


def _decoded(blocks: Iterable[bytes], path: Path, strict: bool) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")("strict" if strict else "surrogateescape")
    # The position of the next byte: whole lines before it, and bytes of its line.
    lines, column, head = 0, 0, b""
    for block in itertools.chain(blocks, [b""]):
        head = head or block[:2]
        raw = decoder.getstate()[0] + block
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            begin = raw.rfind(b"\n", 0, error.start) + 1
            at = error.start - begin + 1 + (0 if begin else column)
            line = lines + raw.count(b"\n", 0, error.start) + 1
            raise not_utf8(path, line, at, raw[error.start], head) from error
        done = len(raw) - len(decoder.getstate()[0])
        begin = raw.rfind(b"\n", 0, done) + 1
        lines, column = lines + raw.count(b"\n", 0, done), done - begin + (0 if begin else column)
        yield text
