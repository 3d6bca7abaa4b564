"""The report of a conversion."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class ConversionReport:
    """What an exact conversion changed, by module or parameter name.

    Attributes:
        to: ``"rmsnorm"``, ``"crmsnorm"`` or ``"layernorm"``.
        replaced: for each norm, what it was and what it is now.
        recentred: what writes into a residual stream and had its mean over features removed.
        folded: for each module that reads a norm's output, the norm whose gain and bias it took.
        left: norms that do not read a residual stream, with what they are.
        notes: whatever else changed.
    """

    to: str
    replaced: dict[str, tuple[str, str]] = field(default_factory=dict)
    recentred: list[str] = field(default_factory=list)
    folded: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Return a summary of a few lines."""
        kinds: dict[tuple[str, str], int] = {}
        for pair in self.replaced.values():
            kinds[pair] = kinds.get(pair, 0) + 1
        lines = [f"{count} × {old} → {new}" for (old, new), count in kinds.items()]
        if self.recentred:
            lines.append(f"recentred: {len(self.recentred)} (first {self.recentred[0]})")
        if self.folded:
            lines.append(f"gains and biases folded into {len(self.folded)} modules")
        if self.left:
            lines.append(f"left alone, not on a residual stream: {', '.join(self.left)}")
        return "\n".join([*lines, *self.notes])
