"""Text files: a folder with one file for each split, or a single file cut into three splits."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from normtrain.data.documents import (
    LONGEST_LINE,
    PIECE,
    Documents,
    Piece,
    document,
    in_pieces,
    open_text,
)
from normtrain.data.reading import GZIP_ERRORS, SPLITS, bad_gzip, file_not_found, stems, unreadable
from normtrain.errors import UserError, unknown_name

# Corpora of one file of 100,000,000 bytes, by convention cut at 90 and at 95 million.
_CUT_BY_BYTES = ("enwik8", "text8")
_BYTES = 100_000_000
_CUTS = (0.9, 0.95)

# Endings of files with running text; some of them hold WikiText's articles under headings.
_ENDINGS = ("txt", "tokens", "raw")
_WITH_ARTICLES = ("tokens", "raw")
_HEADING = re.compile(r" = [^=].*[^=] = ?\n")


def load_folder(folder: Path, splits: Sequence[str] | None) -> dict[str, Documents]:
    """Find the files of splits: ``train.txt``, ``ptb.train.txt``, ``wiki.train.tokens``, ….

    A file is one document, but each WikiText article of a ``.tokens`` or ``.raw`` file is one.

    Args:
        folder: holds the files, plain or ``.gz``.
        splits: which splits, by stem; None takes train, valid and, where it exists, test.

    Raises:
        UserError: a split has no file, or several.
    """
    if splits is None:
        splits = [s for s in SPLITS if s != "test" or find_text(folder, "test") is not None]
    found = {}
    for split in splits:
        path = find_text(folder, split)
        if path is None:
            raise file_not_found(folder, " or ".join(f"{stem}.txt" for stem in stems(split)))
        found[split] = file_documents(path)
    return found


def find_text(folder: Path, split: str) -> Path | None:
    """Return a split's file, or None; ``train.txt`` before ``name.train.txt``, plain before gz.

    Raises:
        UserError: several files match equally well.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    for stem in stems(split):
        for prefix in ("", r".+\."):
            pattern = rf"{prefix}{re.escape(stem)}\.(?:{'|'.join(_ENDINGS)})"
            for end in ("", r"\.gz"):
                matches = [name for name in names if re.fullmatch(pattern + end, name)]
                if len(matches) > 1:
                    raise UserError(
                        f"{folder} has several files for the split {split!r}: "
                        f"{', '.join(matches)}; remove all but one"
                    )
                if matches:
                    return folder / matches[0]
    return None


def file_documents(path: Path, begin: int = 0, end: int | None = None) -> Documents:
    """Return the documents between two byte offsets of a file, without a byte-order mark.

    Reading them raises `UserError` if the file is not UTF-8 or is a damaged ``.gz`` file, and
    `RunError` if it cannot be read.
    """
    length = None if end is None else end - begin
    strict = not _is_cut_by_bytes(path)
    ending = path.name.removesuffix(".gz").rpartition(".")[2]

    def texts() -> Iterator[str]:
        with open_text(path) as stream:
            if begin:
                stream.seek(begin)
            first = begin == 0
            for text in in_pieces(stream, path=path, length=length, strict=strict):
                yield text.removeprefix("\ufeff") if first else text
                first = False

    def read() -> Iterator[Piece]:
        return articles(texts()) if ending in _WITH_ARTICLES else document(texts())

    return Documents(read)


def load_file(path: Path, splits: Sequence[str] | None) -> dict[str, Documents]:
    """Cut one file into train, valid and test.

    The cuts are at the first line ends after 90 % and 95 % of the bytes; ``enwik8`` and ``text8``
    are cut after exactly 90 and 95 million bytes.

    Raises:
        UserError: the file is empty, has too few lines or is damaged, or it is named ``enwik8`` or
            ``text8`` and has another size.
        RunError: the file cannot be read.
    """
    wanted = fixed_splits(splits)
    first, second, size = _cuts(path)
    bounds = {"train": (0, first), "valid": (first, second), "test": (second, size)}
    if not 0 < first < second < size:
        raise UserError(
            f"{path} has too few lines to cut into train, valid and test; give a folder with "
            "train.txt, valid.txt and test.txt"
        )
    return {split: file_documents(path, *bounds[split]) for split in wanted}


def fixed_splits(splits: Sequence[str] | None) -> Sequence[str]:
    """Return the requested splits of a corpus that has train, valid and test and no other.

    Raises:
        UserError: a split is not found.
    """
    for split in splits or ():
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
    return SPLITS if splits is None else splits


def standard_cuts(size: int, what: str) -> tuple[int, int, int]:
    """Return where ``enwik8`` and ``text8`` are cut: the ends of the three splits, in bytes.

    Raises:
        UserError: `size` is not 100,000,000.
    """
    if size != _BYTES:
        raise UserError(f"{what} must have {_BYTES:,} bytes, got {size:,}; it is another text")
    return round(_BYTES * _CUTS[0]), round(_BYTES * _CUTS[1]), _BYTES


def articles(texts: Iterable[str]) -> Iterator[Piece]:
    """Cut text in WikiText's format before the blank line above each article's heading.

    A heading is a line ``= Title =`` between blank lines; ``= = Section = =`` is no heading.
    """
    held: list[str] = []
    size, begun = 0, False
    before: list[str] = []
    for line in _whole_lines(texts):
        if len(before) == 2:
            above, heading = before
            if begun and not above.strip() and not line.strip() and _HEADING.fullmatch(heading):
                yield Piece("".join(held), True)
                held, size = [], 0
            held.append(above)
            size, begun = size + len(above), True
            before = [heading]
            if size >= PIECE:
                yield Piece("".join(held), False)
                held, size = [], 0
        before.append(line)
    yield Piece("".join(held + before), True)


def _whole_lines(texts: Iterable[str]) -> Iterator[str]:
    """Lines with their ends; each part of a line too long for one piece counts as a line."""
    for text in texts:
        yield from io.StringIO(text, newline="\n")


def _is_cut_by_bytes(path: Path) -> bool:
    return path.name.removesuffix(".gz") in _CUT_BY_BYTES


def _cuts(path: Path) -> tuple[int, int, int]:
    with open_text(path) as stream:
        try:
            size = stream.seek(0, io.SEEK_END)
            if _is_cut_by_bytes(path):
                return standard_cuts(size, str(path))
            cuts = []
            for share in _CUTS:
                stream.seek(int(size * share))
                while (line := stream.readline(LONGEST_LINE)) and not line.endswith(b"\n"):
                    pass
                cuts.append(stream.tell())
        except GZIP_ERRORS as error:
            raise bad_gzip(path, error, None) from error
        except OSError as error:
            raise unreadable(path, error) from error
    if not size:
        raise UserError(f"{path} is empty; it must have text")
    return cuts[0], cuts[1], size
