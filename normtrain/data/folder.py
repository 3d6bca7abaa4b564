"""Parallel text files in a folder: ``train.en`` and ``train.vi``, plain or gzip.

A line ends at ``\\n`` (with or without ``\\r`` before it) and nowhere else: U+2028, U+0085 and the
other characters that `str.splitlines` also breaks at occur inside sentences of real corpora.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from normtrain.data.text import clean_lines
from normtrain.errors import RunError, UserError

STEMS: dict[str, tuple[str, ...]] = {
    "train": ("train",),
    "valid": ("valid", "dev", "validation", "val"),
    "test": ("test",),
}
BOM = b"\xef\xbb\xbf"
#: What reading a ``.gz`` file raises when it is damaged.
GZIP_ERRORS = (gzip.BadGzipFile, EOFError, zlib.error)
_CHUNK = 1 << 20


def located(source: str) -> Path:
    """Where a folder or a file lies that a person named; ``~`` is their home.

    Raises:
        UserError: it names a person's home that there is none of.
    """
    try:
        return Path(source).expanduser()
    except RuntimeError:
        raise UserError(
            f"there is no home folder for {source!r}; write ./ before a name that begins with ~"
        ) from None


def find_side(folder: Path, split: str, language: str) -> Path | None:
    """The file of one side of a split, or None; a plain file goes before a ``.gz`` one."""
    for stem in STEMS.get(split, (split,)):
        for name in (f"{stem}.{language}", f"{stem}.{language}.gz"):
            if (folder / name).is_file():
                return folder / name
    return None


def read_split(folder: Path, split: str) -> tuple[list[str], list[str]]:
    """Read one split: ``(English lines, Vietnamese lines)``, equally many and cleaned.

    Raises:
        UserError: a side is missing, empty, not UTF-8 or truncated, the line counts differ, or
            no line has text on both sides.
    """
    paths = []
    for language in ("en", "vi"):
        path = find_side(folder, split, language)
        if path is None:
            wanted = " or ".join(f"{stem}.{language}" for stem in STEMS.get(split, (split,)))
            raise missing(folder, wanted)
        paths.append(path)
    source, target = (read_lines(path) for path in paths)
    if len(source) != len(target):
        raise UserError(
            f"{paths[0]} has {len(source):,} lines and {paths[1]} has {len(target):,}; "
            "parallel files need one line for each sentence on both sides"
        )
    if not any(s and t for s, t in zip(source, target, strict=True)):
        raise UserError(f"{paths[0]} and {paths[1]}: no line has text on both sides")
    return source, target


def read_lines(path: Path) -> list[str]:
    """Read one text file as cleaned lines (see `normtrain.data.text`).

    Raises:
        UserError: the file is empty, truncated, not gzip though it is named ``.gz``, or not
            UTF-8; the message names the file and the line.
        RunError: the file can't be read.
    """
    try:
        raw = _gunzip(path) if path.suffix == ".gz" else path.read_bytes()
    except OSError as error:
        raise RunError(f"can't read {path}: {error.strerror or error}") from error
    raw = raw.removeprefix(BOM)
    if not raw:
        raise UserError(f"{path} is empty; it needs one sentence on each line")
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


def bad_gzip(path: Path, error: Exception, lines: int | None) -> UserError:
    """The error for a ``.gz`` file that can't be read on.

    Args:
        path: the file.
        error: one of `GZIP_ERRORS`.
        lines: how many were read, to the nearest megabyte before the damage; None if the file
            can't be opened at all.
    """
    where = f" after line {lines:,}" if lines else ""
    if isinstance(error, gzip.BadGzipFile):
        hint = "; take '.gz' off its name if it is plain text" * (lines is None)
        return UserError(f"{path}{where} is not valid gzip ({error}){hint}")
    return UserError(f"{path} is truncated or damaged{where} ({error}); copy it again")


def not_utf8(path: Path, line: int, column: int, byte: int, head: bytes) -> UserError:
    """The error for text that is not UTF-8.

    Args:
        path: the file.
        line: where the first wrong byte is, from 1.
        column: which byte of the line it is, from 1.
        byte: its value.
        head: the first two bytes of the file.
    """
    if head in (b"\xff\xfe", b"\xfe\xff"):
        return UserError(f"{path}, line 1: this is UTF-16; save the file as UTF-8")
    return UserError(
        f"{path}, line {line}: byte {column} (0x{byte:02x}) is not valid UTF-8; "
        "save the file as UTF-8"
    )


def missing(folder: Path, wanted: str) -> UserError:
    """The error for a folder that is not there, or has none of the files wanted."""
    if not folder.is_dir():
        return UserError(f"there is no folder {folder}")
    there = sorted({path.name for path in folder.iterdir() if path.is_file()})
    listing = ", ".join(there[:12]) + (", …" if len(there) > 12 else "") if there else "nothing"
    message = f"{folder} has no {wanted} (plain or .gz); it holds {listing}"
    return UserError(message.replace("\n", "\\n"))  # a name may hold a line's end
