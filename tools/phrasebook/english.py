"""English inflection: plurals, verb forms, comparison, the indefinite article."""

from functools import cache

_DOUBLING = frozenset(["cut", "get", "run", "swim", "put", "chat", "hug", "stop"])


@cache
def plural(noun: str) -> str:
    """The regular plural of a noun (irregular ones are written in the lexicon)."""
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return f"{noun}es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}s"


@cache
def third_person(verb: str) -> str:
    """The third person singular of a verb or of a phrase that begins with one."""
    head, _, rest = verb.partition(" ")
    if head == "have":
        head = "has"
    elif head.endswith(("s", "x", "z", "ch", "sh", "o")):
        head += "es"
    elif head.endswith("y") and head[-2] not in "aeiou":
        head = f"{head[:-1]}ies"
    else:
        head += "s"
    return f"{head} {rest}" if rest else head


@cache
def gerund(verb: str) -> str:
    """The -ing form of a verb or of a phrase that begins with one."""
    head, _, rest = verb.partition(" ")
    if head in _DOUBLING:
        head += head[-1]
    elif head.endswith("e") and not head.endswith(("ee", "ye", "oe")):
        head = head[:-1]
    head += "ing"
    return f"{head} {rest}" if rest else head


@cache
def with_article(phrase: str) -> str:
    """``phrase`` with *a* or *an* by the sound it begins with."""
    vowel = phrase[0].lower() in "aeiou" and not phrase.startswith(("use", "uni", "one"))
    if phrase.startswith(("honest", "hour")):
        vowel = True
    return f"{'an' if vowel else 'a'} {phrase}"


@cache
def superlative(adjective: str, comparative: str) -> str:
    """The superlative that goes with a comparative (``more`` marks a periphrastic one)."""
    return f"most {adjective}" if comparative == "more" else f"{comparative[:-1]}st"
