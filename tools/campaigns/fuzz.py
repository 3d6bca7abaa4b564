"""A campaign of bad inputs: every command has to refuse or fail in one clear line.

    python -m tools.campaigns.fuzz --examples 2000 [--only recipes,overrides] [--seed 1]

After every input: exit code 0, 1 or 2 and no traceback; a refusal (2) leaves nothing, a failure (1)
nothing half written; nothing that a checkpoint holds is executed. What broke a promise is listed
with what repeats it, and its folder is kept.
"""

import argparse
import os
import shlex
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tools.campaigns import (
    bad_checkpoints,
    bad_commands,
    bad_corpora,
    bad_folders,
    bad_overrides,
    bad_recipes,
)
from tools.campaigns.arena import Arena, Case, Outcome
from tools.campaigns.stock import Stock

KINDS: dict[str, Callable[[Stock], st.SearchStrategy[Case]]] = {
    "recipes": bad_recipes.recipe_files,
    "overrides": bad_overrides.overrides,
    "corpora": bad_corpora.corpora,
    "checkpoints": bad_checkpoints.checkpoints,
    "folders": bad_folders.folders,
    "commands": bad_commands.commands,
}
# How much of a campaign each kind is: where there is most to get wrong, and least to wait for.
SHARES = {
    "recipes": 8, "overrides": 6, "corpora": 4, "checkpoints": 8, "folders": 3, "commands": 3,
}  # fmt: skip
CODES = {2: "refused", 1: "failed", 0: "accepted"}


@dataclass
class Tally:
    """What became of the inputs of one kind.

    Attributes:
        codes: inputs by exit code.
        broken: number of the input, the input, what became of it.
        said: the last line of each, where asked for.
    """

    codes: Counter[int] = field(default_factory=Counter)
    broken: list[tuple[int, Case, Outcome]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)


def campaign(
    kind: str, stock: Stock, root: Path, cache: Path, *, examples: int, start: int, at: int = 0
) -> Tally:
    """Run inputs of one kind.

    Args:
        kind: of `KINDS`.
        stock: what they are made from.
        root: where they run.
        cache: the tool's cache folder.
        examples: how many.
        start: the seed; the same seed gives the same inputs.
        at: only the input of this number, from 1; 0 is all.
    """
    arena, tally = Arena(root / kind, stock, cache), Tally()
    strategy = KINDS[kind](stock)
    for number in [at] if at else range(1, examples + 1):
        case, begun = drawn(strategy, start * 1_000_003 + number), time.monotonic()
        outcome = arena.run(case)
        seconds = time.monotonic() - begun
        tally.codes[outcome.code] += 1
        tally.said.append(f"{kind} {number}: {seconds:.2f} s, exit {outcome.code}: {outcome.said}")
        if outcome.broken:
            tally.broken.append((number, case, outcome))
    return tally


def drawn(strategy: st.SearchStrategy[Case], start: int) -> Case:
    """An input of a strategy; the same for the same seed.

    Each is drawn by itself: left to run on, hypothesis varies what it has drawn before, which
    finds the smallest failure soon and few different ones.
    """
    found: list[Case] = []

    @seed(start)
    @settings(
        max_examples=2,  # the first is the simplest there is, the same each time
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def each(case: Case) -> None:
        found.append(case)

    each()
    return found[-1]


def table(tallies: dict[str, Tally]) -> str:
    """The campaign in one table, in Markdown."""
    head = ["kind", "inputs", *(f"{word} ({code})" for code, word in CODES.items()), "broken"]
    rows = [head, ["---"] * len(head)]
    for kind, tally in tallies.items():
        counts = [str(tally.codes[code]) for code in CODES]
        rows.append([kind, str(tally.codes.total()), *counts, str(len(tally.broken))])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def failures(tallies: dict[str, Tally], start: int) -> str:
    """Each broken promise once, with what repeats it."""
    seen: Counter[str] = Counter()
    lines = []
    for kind, tally in tallies.items():
        for number, case, outcome in tally.broken:
            what = "; ".join(outcome.broken)
            seen[what[:70]] += 1
            if seen[what[:70]] > 3:
                continue
            again = f"--only {kind} --seed {start} --at {number}"
            lines.append(f"{kind} {number}: {what}\n  said: {outcome.said[:400]}")
            lines.append(f"  {case.about[:1500]}\n  normtrain {shlex.join(case.words)[:600]}")
            lines.append(f"  repeat: python -m tools.campaigns.fuzz {again}")
    return "\n".join(lines)


def share(kind: str, examples: int, kinds: list[str]) -> int:
    """How many of all inputs are of a kind."""
    return max(1, round(examples * SHARES[kind] / sum(SHARES[each] for each in kinds)))


def main() -> int:
    """Run what the command line asks for; 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--examples", type=int, default=2000, help="inputs of all kinds together")
    parser.add_argument("--only", default=",".join(KINDS), help="kinds, separated by commas")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--at", type=int, default=0, help="only the input of this number")
    parser.add_argument("--keep", type=Path, help="where the folders go; kept where broken")
    parser.add_argument("--said", type=Path, help="write every input's last line here")
    asked = parser.parse_args()
    kinds = asked.only.split(",")
    root = Path(asked.keep or tempfile.mkdtemp(prefix="fuzz-")).resolve()
    cache = root / "cache"
    os.environ |= {"NORMTRAIN_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    stock = Stock(root / "stock")
    tallies = {}
    for kind in kinds:
        begun, count = time.monotonic(), share(kind, asked.examples, kinds)
        options = {"examples": count, "start": asked.seed, "at": asked.at}
        tallies[kind] = campaign(kind, stock, root, cache, **options)
        print(f"{kind}: {count} inputs in {time.monotonic() - begun:.0f} s", file=sys.stderr)
    if asked.said:
        asked.said.write_text("\n".join(line for t in tallies.values() for line in t.said))
    print(table(tallies))
    print(failures(tallies, asked.seed))
    return int(any(tally.broken for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
