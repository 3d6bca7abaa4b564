"""The errors that users see, and helpers for their messages."""

from __future__ import annotations

import difflib
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path


class UserError(ValueError):
    """A mistake of the user; the message says what is wrong and what is accepted."""


class DamagedFile(UserError):
    """A file that is truncated, was changed on the disk, or has another format."""


class RunError(RuntimeError):
    """A run that cannot continue (disk full, out of memory, Hub unreachable), with what to do."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Return the error for an unknown name, with the nearest known ones.

    Args:
        kind: what the name stands for, such as ``"norm"``.
        name: the name that the user wrote.
        known: all accepted names.
    """
    known = sorted(known)
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    if near:
        return UserError(f"unknown {kind} {name!r}; did you mean {', '.join(near)}?")
    return UserError(f"unknown {kind} {name!r}; known: {', '.join(known)}")


def on_one_line(error: BaseException, longest: int = 200) -> str:
    """Return another library's error as one line to quote in a message.

    Args:
        error: the exception.
        longest: the maximum number of characters.
    """
    words = " ".join(str(error).split())
    text = words if type(error) is Exception else f"{type(error).__name__}: {words}"
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def described(error: BaseException) -> str:
    """Describe an exception of the user's code in one line: type, message and position.

    Args:
        error: the exception, with its traceback.

    Returns:
        ``"ValueError: no such size (mine.py:12)"``; the position is the innermost line outside
        installed packages and this one, and is left out if there is none.
    """
    lines = str(error).strip().splitlines()
    what = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    frames = [(f.filename, f.lineno) for f in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename is not None:
        what = f"{type(error).__name__}: {error.msg}"
        frames.append((error.filename, error.lineno))
    theirs = [frame for frame in frames if not _is_installed(frame[0])]
    if not theirs:
        return what
    file, line = theirs[-1]
    path = Path(file)
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f"{what} ({shown}:{line})"


def _is_installed(file: str) -> bool:
    path = Path(file)
    roots = (sysconfig.get_path("stdlib"), Path(__file__).parent)
    return (
        file.startswith("<")
        or not {"site-packages", "dist-packages"}.isdisjoint(path.parts)
        or any(path.is_relative_to(root) for root in roots)
    )
