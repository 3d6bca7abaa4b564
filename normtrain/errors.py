"""The two kinds of failure a person sees, and what helps to word them."""

from __future__ import annotations

import difflib
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path


class UserError(ValueError):
    """A mistake of the user's: the message says what is wrong and what would be right."""


class DamagedFile(UserError):
    """A file that was whole once, or never: cut short, changed on the disk, or of another kind."""


class RunError(RuntimeError):
    """A run that could not go on (disk full, out of memory, hub unreachable), with what to do."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Build the error for a name that is not known, listing the nearest ones.

    Args:
        kind: what the name stands for, for example ``"norm"``.
        name: what the user wrote.
        known: every name that would have been right.

    Returns:
        The error to raise; nothing is raised here.
    """
    known = sorted(known)
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    if near:
        return UserError(f"unknown {kind} {name!r}; did you mean {', '.join(near)}?")
    return UserError(f"unknown {kind} {name!r}; known: {', '.join(known)}")


def on_one_line(error: BaseException, longest: int = 200) -> str:
    """Another program's message as a part of one of ours: its class and words, no line ends.

    Args:
        error: what it raised.
        longest: characters at most.
    """
    words = " ".join(str(error).split())
    text = words if type(error) is Exception else f"{type(error).__name__}: {words}"
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def described(error: BaseException) -> str:
    """One line on a failure in somebody else's code: class, message, and where in their code.

    Args:
        error: what was raised, with its traceback.

    Returns:
        ``"ValueError: no such size (mine.py:12)"``: the innermost line that belongs to no installed
        package and not to this one; without it where there is none.
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
