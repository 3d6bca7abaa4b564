"""Format docstrings for a terminal: paragraphs, arguments, line width."""

from __future__ import annotations

import re
import shutil
import textwrap
from dataclasses import dataclass, field

WIDEST = 100
_NARROWEST = 48
_HEADING = re.compile(
    r"(args|arguments|parameters|returns|return|yields|raises|attributes|examples?|notes?"
    r"|references|see also|warnings?):"
)
_ARGUMENTS = ("args", "arguments", "parameters")
_ARGUMENT = re.compile(r"\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)")
# Lists, tables and prompts keep their line breaks.
_KEEPS_LINES = re.compile(r"[-*+] |\d+[.)] |>>> |\||[=+~^-]{3}")


@dataclass
class Docstring:
    """The parts of a docstring in Google's style that are shown.

    Attributes:
        paragraphs: the prose before, between and after the sections.
        arguments: the meaning of each argument, one line.
    """

    paragraphs: list[str] = field(default_factory=list)
    arguments: dict[str, str] = field(default_factory=dict)


def parse(text: str) -> Docstring:
    """Parse a docstring as `inspect.getdoc` returns it.

    Sections other than the arguments (returned, raised, attributes) are left out.
    """
    found, section, block = Docstring(), "", list[str]()
    for line in [*text.splitlines(), ""]:
        if line and not line[0].isspace():
            heading = _HEADING.fullmatch(line.strip().lower())
            if heading or section:
                _end(found, section, block)
            section = heading[1] if heading else ""
            block += [] if heading else [line]
        elif line.strip() or section:
            block.append(line)
        else:
            _end(found, section, block)
    _end(found, section, block)
    return found


def _end(found: Docstring, section: str, block: list[str]) -> None:
    """Move the lines read since the last section or paragraph into ``found``."""
    lines = [line.rstrip() for line in block]
    block.clear()
    if section in _ARGUMENTS:
        found.arguments |= _arguments(lines)
    elif not section and any(lines):
        found.paragraphs.append("\n".join(lines).strip("\n"))


def _arguments(lines: list[str]) -> dict[str, str]:
    inner = textwrap.dedent("\n".join(lines)).splitlines()
    meanings: dict[str, list[str]] = {}
    name = None
    for line in inner:
        start = _ARGUMENT.fullmatch(line)
        if start:
            name = start[1]
            meanings[name] = [start[2]]
        elif name is not None:
            meanings[name].append(line.strip())
    return {name: plain(" ".join(filter(None, parts))) for name, parts in meanings.items()}


def plain(text: str) -> str:
    """Return text without reST's backticks and roles."""
    text = re.sub(r"``(.+?)``", r"\1", text, flags=re.DOTALL)
    return re.sub(r"(?::[a-z:]+:)?`([^`]+)`", r"\1", text)


def terminal_width() -> int:
    """Return the terminal's width, from 48 to 100 columns; 100 without a terminal."""
    return max(_NARROWEST, min(WIDEST, shutil.get_terminal_size((WIDEST, 24)).columns))


def rewrapped(text: str, width: int, indent: str = "") -> str:
    """Wrap a paragraph to ``width``; lists, tables and examples keep their lines."""
    text = plain(text)
    if _KEEPS_LINES.match(text) or re.search(r"^\s", text, re.MULTILINE):
        return textwrap.indent(text, indent)
    return textwrap.fill(
        " ".join(text.split()),
        width,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
