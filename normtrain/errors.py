"""The two kinds of failure a person sees, and the "did you mean" that goes with the first."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake of the user's: the message says what is wrong and what would be right."""


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
