"""Putting tokenised English and Vietnamese back into ordinary writing.

Corpora of this field come as Penn Treebank, Stanford or Moses tokens: punctuation spaced out,
``do n't``, brackets as ``-LRB-``. These are the rules that such text needs and no more; what is
already ordinary writing stays as it is, apart from its spacing. Left alone are dashes with spaces
around them, which both languages write so, and split words such as ``gon na``.
"""

from __future__ import annotations

import re

_CLOSING = re.compile(r"""[,.;:!?%)\]}…”»][,.;:!?%)\]}…”»"']*$""")
_OPENING = re.compile(r"[(\[{“‘«¿¡]+$")
_CLITIC = re.compile(r"(?:['’](?:s|t|re|ve|ll|m|d|am|all)|n['’]t)$", re.IGNORECASE)
# O'Reilly, D'Angelo, L'Équipe, which tokenisers part before the apostrophe.
_NAME = re.compile(r"['’][^\W\d_]{2,}$")
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


def detokenize(line: str) -> str:
    """Join the tokens of one line as they are written.

    Args:
        line: tokens separated by white space.

    Returns:
        The line with single spaces, none where the token on either side takes none.
    """
    raw = line.split()
    tokens = [_TREEBANK.get(token, token) for token in raw]
    open_quotes: set[str] = set()
    parts: list[str] = []
    glued = True
    for i in range(len(tokens)):
        text, left, right = _place(tokens, i, open_quotes)
        if raw[i] in ("``", "''"):
            text = '"'
        parts.append(text if glued or left else f" {text}")
        glued = right
    return "".join(parts)


def _place(tokens: list[str], i: int, open_quotes: set[str]) -> tuple[str, bool, bool]:
    """What to write for token ``i``, and whether it joins the token before it, and the next."""
    token = tokens[i]
    before = tokens[i - 1] if i else ""
    after = tokens[i + 1] if i + 1 < len(tokens) else ""
    numbers = before[-1:].isdigit() and after[:1].isdigit()
    if joiner := _JOINER.match(token):
        return joiner[1], True, True
    if token in ('"', "'", "’"):
        return token, *_quote(tokens, i, open_quotes)
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
    if _CLITIC.match(token):
        return token, before[-1:].isalnum(), False
    return token, before in ("O", "D", "L") and _NAME.match(token) is not None, False


def _quote(tokens: list[str], i: int, open_quotes: set[str]) -> tuple[bool, bool]:
    """Whether a lone quotation mark joins the token before it, and the next."""
    token = tokens[i]
    after = tokens[i + 1 :]
    if token in open_quotes:
        open_quotes.discard(token)
        return True, False
    if token == "’":
        return True, False
    closes_later = any(later == token or _closes(later, token) for later in after)
    if token == "'":
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
