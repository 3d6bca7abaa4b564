"""The report of what `swap_norms` did."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Replaced:
    """One norm that was replaced.

    Attributes:
        name: its module name, the first if it has several.
        old: its class.
        new: the spec of the new norm; as a rule for this name it builds it again.
        parameters_before: the number of its parameters' elements.
        parameters_after: that number of the new norm.
        note: what was not carried over, and the norm's other names.
    """

    name: str
    old: str
    new: str
    parameters_before: int
    parameters_after: int
    note: str = ""


@dataclass
class SwapReport:
    """What `swap_norms` replaced, what it skipped, and what it cannot reach.

    Attributes:
        replaced: the norms replaced, in the order of the model.
        skipped: the names of norms that were not replaced, each with the reason.
        notes: functional norms, other references to the old norms, and the like.
        rules: the (pattern, norm) rules that were applied; the last match wins.
    """

    replaced: list[Replaced] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rules: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        """Format a table of what was replaced, then what was skipped, then the notes."""
        before = sum(one.parameters_before for one in self.replaced)
        after = sum(one.parameters_after for one in self.replaced)
        rows = [
            (o.name, o.old, o.new, f"{o.parameters_before:,}", f"{o.parameters_after:,}", o.note)
            for o in self.replaced
        ]
        total = (f"{len(rows)} replaced", "", "", f"{before:,}", f"{after:,}", "")
        head = ("module", "from", "to", "before", "after", "note")
        lines = _table([head, *rows, total]) if rows else ["nothing replaced"]
        lines += [f"skipped: {name}: {reason}" for name, reason in self.skipped]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    """Align the columns; the two of numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i in (3, 4) else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
