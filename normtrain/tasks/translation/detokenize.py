"""Detokenization: from tokens back to ordinary writing.

Corpora of this field come as Penn Treebank, Stanford or Moses tokens: punctuation spaced out,
``do n't``, brackets as ``-LRB-``. These are the rules that such text needs and no more; text that
is not tokenized is left as it is, apart from its spacing. Dashes with spaces around them and split
words such as ``gon na`` are left alone.

Languages with rules of their own are English and Vietnamese (clitics, names such as O'Reilly,
straight quotation marks and apostrophes as in English) and French and Italian (elision: ``l'``
joins the next word; French keeps the space before ``? ! : ;`` and inside ``« »``). Any other
language gets the rules for punctuation, brackets and quotation marks alone. Text of languages
written without spaces between words keeps the spaces of its tokens.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_CLOSING = re.compile(r"""[,.;:!?%)\]}…”»][,.;:!?%)\]}…”»"']*$""")
_OPENING = re.compile(r"[(\[{“‘«¿¡]+$")
_CLITIC = re.compile(r"(?:['’](?:s|t|re|ve|ll|m|d|am|all)|n['’]t)$", re.IGNORECASE)
# O'Reilly, D'Angelo, L'Équipe, which tokenizers split before the apostrophe.
_NAME = re.compile(r"['’][^\W\d_]{2,}$")
# An article or pronoun before a vowel; Italian po' is a word of its own.
_ELIDED = re.compile(r"(?!po['’])[^\W\d_]+['’]$", re.IGNORECASE)
_BEFORE_NUMBER = {"$", "£", "€", "#", "US$", "A$", "C$"}
_JOINER = re.compile(r"@(\S)@$")
_TREEBANK = {
    "-LRB-": "(",
    "-RRB-": ")",
    "-LSB-": "[",
    "-RSB-": "]",
    "-LCB-": "{",
    "-RCB-": "}",
    "``": "“",
    "''": "”",
}


class _Rules(NamedTuple):
    """What differs between languages.

    Attributes:
        apostrophes: join English clitics and possessives to the word before them.
        elision: join a word that ends in an apostrophe to the next word.
        spaced: marks that keep the space before them (an opening one: after it).
        low_quotes: „ opens a quotation and “ closes it.
    """

    apostrophes: bool = False
    elision: bool = False
    spaced: frozenset[str] = frozenset()
    low_quotes: bool = False


_ENGLISH = _Rules(apostrophes=True)
_RULES = {
    "en": _ENGLISH,
    "vi": _ENGLISH,
    "fr": _Rules(elision=True, spaced=frozenset("?!:;«»")),
    "it": _Rules(elision=True),
}
_OTHER = _Rules(low_quotes=True)


def detokenize(line: str, lang: str) -> str:
    """Join the tokens of one line as they are written.

    Args:
        line: tokens separated by white space.
        lang: code of the language; a region (``fr-CA``) is ignored. See the module's docstring
            for the languages that have rules of their own.

    Returns:
        The line with single spaces, and none where a token joins its neighbour.
    """
    rules = _RULES.get(re.split("[-_]", lang.lower())[0], _OTHER)
    raw = line.split()
    tokens = [_TREEBANK.get(token, token) for token in raw]
    open_quotes: set[str] = set()
    parts: list[str] = []
    joined = True
    for i in range(len(tokens)):
        text, left, right = _place(tokens, i, open_quotes, rules)
        if raw[i] in ("``", "''"):
            text = '"'
        parts.append(text if joined or left else f" {text}")
        joined = right
    return "".join(parts)


def _place(
    tokens: list[str], i: int, open_quotes: set[str], rules: _Rules
) -> tuple[str, bool, bool]:
    """The text of token ``i``, and whether it joins the token before it, and the next."""
    token = tokens[i]
    before = tokens[i - 1] if i else ""
    after = tokens[i + 1] if i + 1 < len(tokens) else ""
    numbers = before[-1:].isdigit() and after[:1].isdigit()
    if joiner := _JOINER.match(token):
        return joiner[1], True, True
    if token in ('"', "'", "’"):
        return token, *_quote(tokens, i, open_quotes, rules)
    if rules.low_quotes and token in ("„", "“"):
        return token, *_low_quote(token, open_quotes)
    if token in rules.spaced:
        joins = token == ":" and numbers
        return token, joins, joins
    if _CLOSING.match(token):
        if token[-1] in "\"'":
            open_quotes.discard(token[-1])
        return token, True, token == ":" and numbers
    if _OPENING.match(token):
        return token, False, True
    if token in _BEFORE_NUMBER:
        return token, False, after[:1].isdigit()
    if token == "/":
        return token, numbers, numbers
    if rules.elision and _ELIDED.match(token):
        return token, False, True
    if not rules.apostrophes:
        return token, False, False
    if _CLITIC.match(token):
        return token, before[-1:].isalnum(), False
    return token, before in ("O", "D", "L") and _NAME.match(token) is not None, False


def _low_quote(token: str, open_quotes: set[str]) -> tuple[bool, bool]:
    """Whether „ or “ joins the token before it, and the next: “ closes what „ opened."""
    if token == "“" and "„" in open_quotes:
        open_quotes.discard("„")
        return True, False
    if token == "„":
        open_quotes.add(token)
    return False, True


def _quote(tokens: list[str], i: int, open_quotes: set[str], rules: _Rules) -> tuple[bool, bool]:
    """Whether a lone quotation mark joins the token before it, and the next."""
    token = tokens[i]
    after = tokens[i + 1 :]
    if token in open_quotes:
        open_quotes.discard(token)
        return True, False
    if token == "’":
        return True, False
    closes_later = any(later == token or _closes(later, token) for later in after)
    if token == "'" and rules.apostrophes:
        if after and after[0][0].isdigit():  # the '80s
            return False, True
        possessive = i > 0 and tokens[i - 1][-1:] == "s"
        if possessive or not closes_later:
            return True, False
    if not closes_later and all(_CLOSING.match(later) for later in after):
        return True, False
    open_quotes.add(token)
    return False, True


def _closes(token: str, quote: str) -> bool:
    return token.endswith(quote) and _CLOSING.match(token) is not None
