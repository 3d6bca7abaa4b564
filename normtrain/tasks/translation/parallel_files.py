"""Parallel text files in a folder: ``train.en`` and ``train.vi``, plain or gzip.

A line ends at ``\\n`` (with or without ``\\r`` before it) and nowhere else: U+2028, U+0085 and the
other characters that `str.splitlines` also breaks at occur inside sentences of real corpora.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path

from normtrain.data.reading import (
    GZIP_ERRORS,
    bad_gzip,
    file_not_found,
    not_utf8,
    stems,
    unreadable,
)
from normtrain.data.text import clean_lines
from normtrain.errors import UserError

_BOM = b"\xef\xbb\xbf"
_CHUNK = 1 << 20
Sides = tuple[list[str], list[str]]


def read_parallel_folder(
    folder: Path, splits: Sequence[str] | None, source_lang: str, target_lang: str
) -> dict[str, Sides]:
    """Read splits from ``<split>.<language>`` files.

    Args:
        folder: holds the files.
        splits: any names; None takes train, valid and, where a file of it exists, test.
        source_lang: language of the source files.
        target_lang: language of the target files.

    Returns:
        ``{split: (source lines, target lines)}``, cleaned, equally many on both sides.

    Raises:
        UserError: a file is missing, empty, not UTF-8 or truncated, the line counts differ, or no
            line has text on both sides.
        RunError: a file cannot be read.
    """
    languages = (source_lang, target_lang)
    if splits is None:
        has_test = any(_find(folder, "test", language) for language in languages)
        splits = ["train", "valid", *(["test"] if has_test else [])]
    return {split: _read_split(folder, split, languages) for split in splits}


def _read_split(folder: Path, split: str, languages: tuple[str, str]) -> Sides:
    paths = []
    for language in languages:
        path = _find(folder, split, language)
        if path is None:
            raise file_not_found(folder, " or ".join(f"{s}.{language}" for s in stems(split)))
        paths.append(path)
    source, target = (read_lines(path) for path in paths)
    if len(source) != len(target):
        raise UserError(
            f"{paths[0]} has {len(source):,} lines and {paths[1]} has {len(target):,}; "
            "parallel files must have one line for each sentence on both sides"
        )
    if not any(s and t for s, t in zip(source, target, strict=True)):
        raise UserError(f"{paths[0]} and {paths[1]}: no line has text on both sides")
    return source, target


def _find(folder: Path, split: str, language: str) -> Path | None:
    """The file of one side of a split, or None; a plain file is preferred to a ``.gz`` one."""
    for stem in stems(split):
        for name in (f"{stem}.{language}", f"{stem}.{language}.gz"):
            if (folder / name).is_file():
                return folder / name
    return None


def read_lines(path: Path) -> list[str]:
    """Read one text file as cleaned lines (see `normtrain.data.text`).

    Raises:
        UserError: the file is empty, truncated, not gzip though it is named ``.gz``, or not
            UTF-8; the message names the file and the line.
        RunError: the file cannot be read.
    """
    try:
        raw = _gunzip(path) if path.suffix == ".gz" else path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    raw = raw.removeprefix(_BOM)
    if not raw:
        raise UserError(f"{path} is empty; it must have one sentence on each line")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        at = error.start
        line, column = raw.count(b"\n", 0, at) + 1, at - raw.rfind(b"\n", 0, at)
        raise not_utf8(path, line, column, raw[at], raw[:2]) from error
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return clean_lines(lines)


def _gunzip(path: Path) -> bytes:
    parts: list[bytes] = []
    try:
        with gzip.open(path, "rb") as stream:
            while part := stream.read(_CHUNK):
                parts.append(part)
    except GZIP_ERRORS as error:
        lines = sum(part.count(b"\n") for part in parts) if parts else None
        raise bad_gzip(path, error, lines) from error
    return b"".join(parts)
