"""``normtrain norms``: the normalizers as a table, and each as a page, from their docstrings."""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING

import click

from normtrain.cli import docstring
from normtrain.cli.common import SETTINGS, debug_option

if TYPE_CHECKING:
    from normtrain.norms import NormInfo

_LEGEND = "x: a row, μ: its mean, σ²: its variance, ε: eps, w: weight, b: bias"
_TOOLS = (
    "In Python only: L1, L-infinity and top-k batch norms, bounded weight norm, the weight-decay\n"
    "correction (normtrain.norms.batch, .batch_swap, .weight, .decay; docs/norms.md)."
)
_NEXT = "A norm's page: normtrain norms show NAME"

# In the table a formula has little room; the page has it in full.
_SHORTER = [
    (r"\bsqrt\(", "√("),
    (r" - mean\b(?! of\b|\()", "−μ"),
    (r"\bvariance\b", "σ²"),
    (r"\beps\b", "ε"),
    (r"\bweight\b", "w"),
    (r"\bbias\b", "b"),
    (r"\^2\b", "²"),
    (r" \* ", "·"),
    (r" ([/+]) ", r"\1"),
    (r" - ", "−"),
]
_HOLDS = {"scale": "a positive factor on the row", "shift": "one number added to every feature"}
_NOTHING = "-"


@click.group(context_settings=SETTINGS)
@debug_option
def norms() -> None:
    """List or show normalizers."""


@norms.command("list")
@debug_option
def list_norms() -> None:
    """Every norm: name, formula in short, parameters, paper.

    The table goes to stdout, a line a norm after the heading; what explains it goes to stderr.
    """
    from normtrain.norms import norm_info, norm_names

    click.echo("\n".join(table([norm_info(name) for name in norm_names()])))
    click.echo(f"\n{_LEGEND}\n{_TOOLS}\n{_NEXT}", err=True)


@norms.command("show")
@click.argument("name")
@debug_option
def show_norm(name: str) -> None:
    """One norm: what it does, when to use it, its formula, options and paper."""
    from normtrain.bench.measure import what_runs
    from normtrain.norms import norm_info

    info = norm_info(name)
    click.echo("\n\n".join(page(info, docstring.terminal_width(), what_runs(info.name))))


def table(infos: list[NormInfo]) -> list[str]:
    """Aligned lines of at most 100 columns, unless names leave formulas no room: the heading first.

    Names are never shortened; formulas and papers are, with an ellipsis.
    """
    rows = [
        (info.name, short_parameters(info.parameters), elided(short_source(info.source), 21))
        for info in infos
    ]
    heading = ("name", "parameters", "paper")
    name, parameters, paper = (max(map(len, column)) for column in zip(heading, *rows, strict=True))
    parameters = min(parameters, 24)
    room = max(20, docstring.WIDEST - name - parameters - paper - 6)
    formulas = [short_formula(info.formula, room) for info in infos]
    wide = max(map(len, ["formula", *formulas]))
    lines = zip([heading, *rows], ["formula", *formulas], strict=True)
    return [
        f"{row[0]:<{name}}  {formula:<{wide}}  {elided(row[1], parameters):<{parameters}}  {row[2]}"
        for row, formula in lines
    ]


def elided(text: str, room: int) -> str:
    """The text on one line, its end replaced by an ellipsis where it is longer than ``room``."""
    text = " ".join(text.split())
    return text if len(text) <= room else text[: room - 1].rstrip() + "…"


def shorthand(formula: str) -> str:
    """A formula in mathematicians' letters instead of words."""
    for words, letters in _SHORTER:
        formula = re.sub(words, letters, formula)
    return formula


def short_formula(formula: str, room: int) -> str:
    """As many of a formula's clauses, in shorthand, as there is room for; the first in any case."""
    clauses = [shorthand(clause) for clause in _clauses(" ".join(formula.split()))]
    for count in range(len(clauses), 0, -1):
        short = ", ".join(clauses[:count] + ["…"] * (count < len(clauses)))
        if len(short) <= room:
            return short or _NOTHING
    return elided(clauses[0], room)


def _clauses(formula: str) -> list[str]:
    """The parts between the commas that stand in no brackets."""
    parts, depth, start = list[str](), 0, 0
    for at, sign in enumerate(formula):
        depth += (sign in "([{") - (sign in ")]}")
        if depth == 0 and formula.startswith(", ", at):
            parts.append(formula[start:at])
            start = at + 2
    return [*parts, formula[start:]]


def short_parameters(parameters: str) -> str:
    """The parameters without what is said of them in brackets, in a formula's shorthand."""
    bare, nested = parameters, 1
    while nested:
        bare, nested = re.subn(r"\s*\([^()]*\)", "", bare)
    return shorthand(bare).strip() or _NOTHING


def short_source(source: str) -> str:
    """Authors and year, as one cites; else the arXiv number; else the text as it is.

    ``"Zhang, Sennrich 2019, Root…"`` becomes ``"Zhang & Sennrich 2019"``, and three or more
    authors ``"Ba et al. 2016"``.
    """
    cited = re.match(r"(?P<authors>[^\d:]+?),? \(?(?P<year>(?:19|20)\d\d)\b", source)
    if cited is None:
        number = re.search(r"\barXiv:\S+\b", source, re.IGNORECASE)
        return number[0] if number else source.strip() or _NOTHING
    authors = [name for name in re.split(r",\s*|\s+(?:and|&)\s+", cited["authors"]) if name]
    who = f"{authors[0]} et al." if len(authors) > 2 else " & ".join(authors)
    return f"{who} {cited['year']}"


def page(info: NormInfo, width: int, runs: str | None = None) -> list[str]:
    """The parts of a norm's page, to be set apart by empty lines; ``runs`` is what runs it here."""
    text = docstring.parse(info.description)
    summary, prose = _summary(info, text.paragraphs)
    parts = [docstring.rewrapped(f"{info.name}: {summary}" if summary else info.name, width)]
    if info.formula:
        parts.append(_formula(info.formula, width))
    parts += [docstring.rewrapped(paragraph, width) for paragraph in prose]
    if info.options:
        parts.append("\n".join(_options(info, text.arguments, width)))
    holds = [_HOLDS.get(key, key) for key in info.invariances]
    facts = {
        "parameters": info.parameters,
        "unchanged by": "; ".join(holds) or "nothing declared",
        "source": info.source,
    }
    if runs is not None:
        facts["runs here by"] = runs
    parts.append("\n".join(_facts(facts, width)))
    parts.append("\n".join(_use(info)))
    return parts


def _formula(formula: str, width: int) -> str:
    """The formula, indented; a clause a line where it is too long for one."""
    whole = docstring.rewrapped(formula, width, "    ")
    if "\n" not in whole:
        return whole
    clauses = _clauses(" ".join(formula.split()))
    return "\n".join(docstring.rewrapped(clause, width, "    ") for clause in clauses)


def _summary(info: NormInfo, paragraphs: list[str]) -> tuple[str, list[str]]:
    """The summary and the prose after it, which does not say it again."""
    if not paragraphs:
        return info.summary, []
    if paragraphs[0].startswith(info.summary):  # its first line, maybe of several
        return paragraphs[0], paragraphs[1:]
    return info.summary, paragraphs


def option_text(value: object) -> str:
    """An option's value as a spec string has it: ``true``, ``1e-5``."""
    if value is None:
        return "unset"
    text = str(value)
    return text.lower() if isinstance(value, bool) else re.sub(r"e([-+])0+(?=\d)", r"e\1", text)


def _options(info: NormInfo, meanings: dict[str, str], width: int) -> list[str]:
    rows = {name: option_text(value) for name, value in info.options.items()}
    name_width = max(len(name) for name in ["option", *rows])
    value_width = max(len(value) for value in ["default", *rows.values()])
    start = 2 + name_width + 2 + value_width + 2
    lines = [f"  {'option':<{name_width}}  default"]
    for name, value in rows.items():
        head = f"  {name:<{name_width}}  {value:<{value_width}}  "
        lines += _hanging(head, meanings.get(name, ""), start, width)
    return lines


def _facts(facts: dict[str, str], width: int) -> list[str]:
    start = 2 + max(map(len, facts)) + 2
    lines: list[str] = []
    for label, text in facts.items():
        lines += _hanging(f"  {label:<{start - 4}}  ", docstring.plain(text) or "-", start, width)
    return lines


def _hanging(head: str, text: str, start: int, width: int) -> list[str]:
    """Text after a head, its further lines under its first."""
    room = max(20, width - start)
    first, *rest = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) or [""]
    return [(head + first).rstrip(), *(" " * start + line for line in rest)]


def _use(info: NormInfo) -> list[str]:
    option = next(iter(info.options.items()), None)
    spec = info.name
    if option is not None:
        value = "VALUE" if option[1] is None else option_text(option[1])
        spec = f"{info.name}:{option[0]}={value}"
    return [
        "  everywhere            normtrain fit --recipe envi --norm " + spec,
        "  in some places        --norm-at 'encoder.*=" + info.name + "'",
        "  on queries and keys   --set model.qk_norm=" + info.name,
        "  on embeddings         --set model.embedding_norm=" + info.name,
    ]
