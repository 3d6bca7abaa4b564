"""Cleaning that every line of a parallel corpus goes through.

Unicode NFC; every run of white space (including the control characters that Unicode counts as
such) becomes one space, none at the ends; zero-width spaces, word joiners and byte-order marks are
removed, since they split words invisibly, while zero-width joiners stay, since emoji and some
scripts need them; HTML escapes that end in a semicolon (``&apos;`` ``&quot;`` ``&amp;`` ``&#91;``)
are undone once.

Undoing escapes in both the references and the hypotheses does not change a BLEU on tokenized text:
that score only asks which tokens are equal.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable

_INVISIBLE = re.compile("[\u200b\u2060\ufeff]")
_ESCAPE = re.compile(r"&(?:[A-Za-z][A-Za-z0-9]{1,30}|#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6});")
# Tokenized text has a space before the final mark, running text has none.
_FINAL_MARK = re.compile(r"(\s?)[.?!]$")


def fold(text: str) -> str:
    """Return text in NFC with white space folded: what decoding an encoded text gives."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def clean(text: str) -> str:
    """Return one line of a corpus, cleaned by the rules of this module's docstring."""
    if "&" in text:
        text = _ESCAPE.sub(lambda match: html.unescape(match.group()), text)
    return fold(_INVISIBLE.sub("", text))


def clean_lines(lines: Iterable[str]) -> list[str]:
    """Return many lines, each cleaned by `clean`."""
    return [clean(line) for line in lines]


def looks_tokenized(lines: Iterable[str]) -> bool:
    """Return whether text is tokenized (``Hello , world .``).

    Of the lines that end in a full stop, a question mark or an exclamation mark, at least four in
    five must have a space before it. Text without such a line counts as running text.
    """
    marks = [match.group(1) for line in lines if (match := _FINAL_MARK.search(line))]
    return bool(marks) and sum(map(bool, marks)) >= 0.8 * len(marks)
