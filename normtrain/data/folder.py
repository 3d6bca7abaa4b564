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
_BOM = b"\xef\xbb\xbf"
_CHUNK = 1 << 20


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
            raise _missing(folder, split, language)
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
    raw = raw.removeprefix(_BOM)
    if not raw:
        raise UserError(f"{path} is empty; it needs one sentence on each line")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_utf8(path, raw, error) from error
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
    except gzip.BadGzipFile as error:
        hint = "" if parts else "; take '.gz' off its name if it is plain text"
        raise UserError(f"{path}{_last_line(parts)} is not valid gzip ({error}){hint}") from error
    except (EOFError, zlib.error) as error:
        raise UserError(
            f"{path} is truncated or damaged{_last_line(parts)} ({error}); copy it again"
        ) from error
    return b"".join(parts)


def _last_line(parts: list[bytes]) -> str:
    """Where reading stopped, to the nearest megabyte before it."""
    count = sum(part.count(b"\n") for part in parts)
    return f" after line {count:,}" if count else ""


def _not_utf8(path: Path, raw: bytes, error: UnicodeDecodeError) -> UserError:
    line = raw.count(b"\n", 0, error.start) + 1
    column = error.start - raw.rfind(b"\n", 0, error.start)
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return UserError(f"{path}, line 1: this is UTF-16; save the file as UTF-8")
    return UserError(
        f"{path}, line {line}: byte {column} (0x{raw[error.start]:02x}) is not valid UTF-8; "
        "save the file as UTF-8"
    )


def _missing(folder: Path, split: str, language: str) -> UserError:
    if not folder.is_dir():
        return UserError(f"there is no folder {folder}")
    wanted = " or ".join(f"{stem}.{language}" for stem in STEMS.get(split, (split,)))
    there = sorted({path.name for path in folder.iterdir() if path.is_file()})
    listing = ", ".join(there[:12]) + (", …" if len(there) > 12 else "") if there else "nothing"
    return UserError(f"{folder} has no {wanted} (plain or .gz); it holds {listing}")
