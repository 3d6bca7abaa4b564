"""What a swap of norms did, to print, to look up, and to keep in checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

VERSION = 1


@dataclass(frozen=True)
class Replaced:
    """One norm that another took the place of.

    Attributes:
        name: its full name in the model, the first where it has several.
        old: the class it was of.
        new: the spec of the norm that is there now; as a rule for this name it builds it again.
        parameters_before: how many numbers it learned.
        parameters_after: how many the new one learns.
        note: what was not carried over, and where else the norm sits.
    """

    name: str
    old: str
    new: str
    parameters_before: int
    parameters_after: int
    note: str = ""


@dataclass
class SwapReport:
    """What `swap_norms` changed, what it left, and what it could not see into.

    Attributes:
        replaced: the norms replaced, in the order of the model.
        skipped: the names of norms that were left alone, each with the reason.
        notes: what else to know: functional norms, other references to the old norms.
        rules: the rules that were applied, pairs of a pattern and a norm, the last match winning.
    """

    replaced: list[Replaced] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rules: list[tuple[str, str]] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """Dicts, lists, strings and numbers only, for checkpoints (``weights_only=True``)."""
        return {
            "version": VERSION,
            "rules": [[pattern, spec] for pattern, spec in self.rules],
            "replaced": {one.name: one.new for one in self.replaced},
        }

    def __str__(self) -> str:
        """A table of what was replaced, then what was left alone, then the notes."""
        before = sum(one.parameters_before for one in self.replaced)
        after = sum(one.parameters_after for one in self.replaced)
        rows = [
            (o.name, o.old, o.new, f"{o.parameters_before:,}", f"{o.parameters_after:,}", o.note)
            for o in self.replaced
        ]
        total = (f"{len(rows)} replaced", "", "", f"{before:,}", f"{after:,}", "")
        head = ("module", "from", "to", "before", "after", "note")
        lines = _table([head, *rows, total]) if rows else ["nothing replaced"]
        lines += [f"left alone: {name}: {reason}" for name, reason in self.skipped]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    """Columns side by side; the two of numbers flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i in (3, 4) else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
