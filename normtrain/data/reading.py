"""What the readers of text files share: names of splits, paths, and the errors for bad files."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterable
from pathlib import Path

from normtrain.errors import RunError, UserError, unknown_name

#: The splits of a corpus where none are asked for; test is optional.
SPLITS = ("train", "valid", "test")
#: Names a split's files may have, preferred first; any other split is named by itself.
STEMS: dict[str, tuple[str, ...]] = {
    "train": ("train",),
    "valid": ("valid", "dev", "validation", "val"),
    "test": ("test",),
}
#: What reading a damaged ``.gz`` file raises.
GZIP_ERRORS = (gzip.BadGzipFile, EOFError, zlib.error)


def stems(split: str) -> tuple[str, ...]:
    """Return the names that the files of a split may have."""
    return STEMS.get(split, (split,))


def expand_user(source: str) -> Path:
    """Return the path that a user wrote, with ``~`` expanded.

    Raises:
        UserError: the home directory is not found.
    """
    try:
        return Path(source).expanduser()
    except RuntimeError:
        raise UserError(
            f"home directory of {source!r} not found; write ./ before a name that begins with ~"
        ) from None


def corpus_not_found(source: str, known: Iterable[str], path: str, others: str) -> UserError:
    """Build the error for a ``--data`` that names no corpus, folder or file.

    Args:
        source: what the user wrote.
        known: the corpora with a name.
        path: what a path may lead to, for example ``"a folder with train.txt"``.
        others: whatever else is accepted.
    """
    if os.sep in source or source.startswith((".", "~")):
        return UserError(f"{source} not found; give {path}")
    return UserError(f"{unknown_name('corpus', source, known)}; or {path}, or {others}")


def file_not_found(folder: Path, expected: str) -> UserError:
    """Build the error for a folder that is absent or has none of the expected files."""
    if not folder.is_dir():
        return UserError(f"folder {folder} not found")
    names = sorted({path.name for path in folder.iterdir() if path.is_file()})
    listing = ", ".join(names[:12]) + (", …" if len(names) > 12 else "") if names else "no file"
    message = f"{folder} has no {expected} (plain or .gz); it holds {listing}"
    return UserError(message.replace("\n", "\\n"))  # file names may contain newlines


def unreadable(path: Path, error: OSError) -> RunError:
    """Build the error for a file that cannot be read."""
    return RunError(f"cannot read {path}: {error.strerror or error}")


def bad_gzip(path: Path, error: Exception, lines: int | None) -> UserError:
    """Build the error for a damaged ``.gz`` file.

    Args:
        path: the file.
        error: one of `GZIP_ERRORS`.
        lines: how many were read, to the nearest megabyte before the damage; None if the file
            cannot be opened at all.
    """
    where = f" after line {lines:,}" if lines else ""
    if isinstance(error, gzip.BadGzipFile):
        hint = "; remove '.gz' from its name if it is plain text" * (lines is None)
        return UserError(f"{path}{where} is not valid gzip ({error}){hint}")
    return UserError(f"{path} is truncated or damaged{where} ({error}); copy it again")


def not_utf8(path: Path, line: int, column: int, byte: int, head: bytes) -> UserError:
    """Build the error for text that is not UTF-8.

    Args:
        path: the file.
        line: the line of the first invalid byte, from 1.
        column: its byte in that line, from 1.
        byte: its value.
        head: the first two bytes of the file.
    """
    if head in (b"\xff\xfe", b"\xfe\xff"):
        return UserError(f"{path}, line 1: the text is UTF-16; save the file as UTF-8")
    return UserError(
        f"{path}, line {line}: byte {column} (0x{byte:02x}) is not valid UTF-8; "
        "save the file as UTF-8"
    )
