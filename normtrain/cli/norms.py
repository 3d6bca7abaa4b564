"""``normtrain norms``: the norms as a table, and a page for each, made from their docstrings."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from normtrain.cli import docstring
from normtrain.cli.common import SETTINGS, debug_option, table

if TYPE_CHECKING:
    from normtrain.norms import NormInfo

_LEGEND = "x: input vector, μ: its mean, σ²: its variance, ε: eps, w: weight, b: bias"
_TOOLS = (
    "In Python only: L1, L-infinity and top-k batch norms, bounded weight norm, the weight-decay\n"
    "correction (normtrain.norms.batch, .batch_swap, .weight, .decay; docs/norms.md)."
)
_NEXT = "A norm's page: normtrain norms show NAME"

# The table shows formulas in short form; the page shows them in full.
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
_HOLDS = {
    "scale": "a positive factor on the input vector",
    "shift": "one number added to every feature",
}
_NOTHING = "-"


@click.group(context_settings=SETTINGS)
@debug_option
def norms() -> None:
    """List or show normalizers."""


@norms.command("list")
@debug_option
def list_norms() -> None:
    """Every norm: name, short formula, parameters, paper.

    The table goes to stdout, with one line for each norm after the heading; notes go to stderr.
    """
    from normtrain.norms import norm_info, norm_names

    click.echo(table(overview([norm_info(name) for name in norm_names()])))
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


def overview(infos: list[NormInfo]) -> list[tuple[str, str, str, str]]:
    """Return the rows of the table, the heading first, for at most 100 columns.

    Names are never shortened; formulas, parameters and papers are, with an ellipsis.
    """
    names = ["name", *(info.name for info in infos)]
    parameters = ["parameters"] + [elided(short_parameters(i.parameters), 24) for i in infos]
    papers = ["paper", *(elided(short_source(info.source), 21) for info in infos)]
    taken = sum(max(map(len, column)) + 2 for column in (names, parameters, papers))
    room = max(20, docstring.WIDEST - taken)
    formulas = ["formula", *(short_formula(info.formula, room) for info in infos)]
    return list(zip(names, formulas, parameters, papers, strict=True))


def elided(text: str, room: int) -> str:
    """Return the text on one line, cut with an ellipsis if longer than ``room``."""
    text = " ".join(text.split())
    return text if len(text) <= room else text[: room - 1].rstrip() + "…"


def shorthand(formula: str) -> str:
    """Return a formula with symbols in place of words: σ² for ``variance``."""
    for words, letters in _SHORTER:
        formula = re.sub(words, letters, formula)
    return formula


def short_formula(formula: str, room: int) -> str:
    """Return as many clauses of a formula, in symbols, as fit; at least (part of) the first."""
    clauses = [shorthand(clause) for clause in _clauses(" ".join(formula.split()))]
    for count in range(len(clauses), 0, -1):
        short = ", ".join(clauses[:count] + ["…"] * (count < len(clauses)))
        if len(short) <= room:
            return short or _NOTHING
    return elided(clauses[0], room)


def _clauses(formula: str) -> list[str]:
    """Return the parts between the commas outside of brackets."""
    parts, depth, start = list[str](), 0, 0
    for at, sign in enumerate(formula):
        depth += (sign in "([{") - (sign in ")]}")
        if depth == 0 and formula.startswith(", ", at):
            parts.append(formula[start:at])
            start = at + 2
    return [*parts, formula[start:]]


def short_parameters(parameters: str) -> str:
    """Return the parameters without remarks in brackets, in symbols."""
    bare, nested = parameters, 1
    while nested:
        bare, nested = re.subn(r"\s*\([^()]*\)", "", bare)
    return shorthand(bare).strip() or _NOTHING


def short_source(source: str) -> str:
    """Return authors and year, as in a citation; else the arXiv number; else the text.

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
    """Return the parts of a norm's page, to be separated by empty lines.

    Args:
        info: the norm.
        width: columns to wrap to.
        runs: which kernels run the norm on this machine; None leaves the line out.
    """
    text = docstring.parse(info.description)
    summary, prose = _summary(info, text.paragraphs)
    parts = [docstring.rewrapped(f"{info.name}: {summary}" if summary else info.name, width)]
    if info.formula:
        parts.append(_formula(info.formula, width))
    parts += [docstring.rewrapped(paragraph, width) for paragraph in prose]
    if info.options:
        parts.append(_options(info, text.arguments, width))
    holds = [_HOLDS.get(key, key) for key in info.invariances]
    facts = {
        "parameters": info.parameters,
        "unchanged by": "; ".join(holds) or "nothing declared",
        "source": info.source,
    }
    if runs is not None:
        facts["runs here by"] = runs
    parts.append(
        table([("", key, docstring.plain(fact) or "-") for key, fact in facts.items()], width)
    )
    parts.append("\n".join(_use(info)))
    return parts


def _formula(formula: str, width: int) -> str:
    """Return the formula, indented; one clause on each line if it is too long for one line."""
    whole = docstring.rewrapped(formula, width, "    ")
    if "\n" not in whole:
        return whole
    clauses = _clauses(" ".join(formula.split()))
    return "\n".join(docstring.rewrapped(clause, width, "    ") for clause in clauses)


def _summary(info: NormInfo, paragraphs: list[str]) -> tuple[str, list[str]]:
    """Return the summary and the prose after it, which does not repeat it."""
    if not paragraphs:
        return info.summary, []
    if paragraphs[0].startswith(info.summary):  # the summary is the first line of a paragraph
        return paragraphs[0], paragraphs[1:]
    return info.summary, paragraphs


def option_text(value: object) -> str:
    """Return an option's value as in a spec string: ``true``, ``1e-5``."""
    if value is None:
        return "unset"
    text = str(value)
    return text.lower() if isinstance(value, bool) else re.sub(r"e([-+])0+(?=\d)", r"e\1", text)


def _options(info: NormInfo, meanings: dict[str, str], width: int) -> str:
    rows = [("", "option", "default", "")]
    for name, value in info.options.items():
        rows.append(("", name, option_text(value), meanings.get(name, "")))
    return table(rows, width)


def _use(info: NormInfo) -> list[str]:
    option = next(iter(info.options.items()), None)
    spec = info.name
    if option is not None:
        value = "VALUE" if option[1] is None else option_text(option[1])
        spec = f"{info.name}:{option[0]}={value}"
    return [
        "  everywhere            normtrain fit --recipe envi --norm " + spec,
        "  on some modules       --norm-at 'encoder.*=" + info.name + "'",
        "  on queries and keys   --set model.qk_norm=" + info.name,
        "  on embeddings         --set model.embedding_norm=" + info.name,
    ]
