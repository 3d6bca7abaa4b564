"""Noun phrases, verb phrases and clauses, built in both languages at once.

A :class:`Draw` makes every choice and notes the combinations (verb and object, adjective and
noun, subject and tense, …) from which the splits decide what is held out.
"""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from tools.phrasebook.english import with_article
from tools.phrasebook.lexicon import Adjective, Kin, Mass, Noun, Verb, lexicon
from tools.phrasebook.numbers import english_number, vietnamese_number

T = TypeVar("T")
Pair = tuple[str, str]


class Draw:
    """A stream of choices; only ``random.Random.random``, stable on every Python, feeds it."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random
        self.combinations: list[str] = []

    def pick(self, choices: Sequence[T]) -> T:
        """One of ``choices``, all equally likely."""
        return choices[int(self._random() * len(choices))]

    def chance(self, probability: float) -> bool:
        """True with ``probability``."""
        return self._random() < probability

    def number(self, low: int, high: int) -> int:
        """An integer from ``low`` to ``high``, both included."""
        return low + int(self._random() * (high - low + 1))

    def note(self, kind: str, first: str, second: str) -> None:
        """Record that this sentence joins ``first`` and ``second``."""
        self.combinations.append(f"{kind}|{first}|{second}")

    def until(self, make: Callable[["Draw"], T], fits: Callable[[T], bool]) -> T:
        """Draw with ``make`` until the outcome ``fits``; what is thrown away leaves no notes."""
        mark = len(self.combinations)
        while not fits(outcome := make(self)):
            del self.combinations[mark:]
        return outcome


class Phrase(NamedTuple):
    """A noun phrase; ``agr`` is 1 (I), 3 (she) or p (you, they), ``obj`` the form as object."""

    en: str
    vi: str
    agr: str
    obj: str
    key: str


class Action(NamedTuple):
    """A verb with its object: English object text (or empty) and the whole Vietnamese phrase."""

    verb: Verb
    object: str
    vi: str


PRONOUNS = (
    Phrase("I", "tôi", "1", "me", "I"),
    Phrase("you", "bạn", "p", "you", "you"),
    Phrase("he", "anh ấy", "3", "him", "he"),
    Phrase("she", "cô ấy", "3", "her", "she"),
    Phrase("we", "chúng tôi", "p", "us", "we"),
    Phrase("they", "họ", "p", "them", "they"),
)
OWNERS = (
    ("my", "tôi"),
    ("your", "bạn"),
    ("his", "anh ấy"),
    ("her", "cô ấy"),
    ("our", "chúng tôi"),
    ("their", "họ"),
)
_FIRST = frozenset(("I", "we"))
_ADJECTIVES: dict[Noun | Mass, tuple[Adjective, ...]] = {}
_NOUNS: dict[Adjective, tuple[Noun, ...]] = {}
_OBJECTS: dict[Verb, tuple[Noun | Mass, ...]] = {}
_VERBS: dict[Noun | Mass, tuple[Verb, ...]] = {}
PERSON_TAGS = frozenset(("person", "kin", "young"))


def _index() -> None:
    lex = lexicon()
    everything: tuple[Noun | Mass, ...] = (*lex.things, *lex.masses)
    for noun in everything:
        _ADJECTIVES[noun] = tuple(a for a in lex.adjectives if a.tags & noun.tags)
        _VERBS[noun] = tuple(v for v in lex.verbs if v.tags & noun.tags)
    for adjective in lex.adjectives:
        _NOUNS[adjective] = tuple(n for n in lex.things if n.tags & adjective.tags)
    for verb in lex.verbs:
        _OBJECTS[verb] = tuple(n for n in everything if n.tags & verb.tags)


_index()


def adjectives_of(noun: Noun | Mass) -> tuple[Adjective, ...]:
    """The adjectives that make sense with ``noun``."""
    return _ADJECTIVES[noun]


def described(d: Draw, graded: bool = False) -> tuple[Noun, Adjective]:
    """A noun and an adjective for it: chosen from the adjective, so that rare ones are not rare."""
    lex = lexicon()
    while True:
        adjective = d.pick(lex.adjectives)
        if graded and not adjective.graded:
            continue
        if nouns := _NOUNS[adjective]:
            return d.pick(nouns), adjective


# --- people ---------------------------------------------------------------------------------


def kin(d: Draw) -> Phrase:
    """A possessed relative; after *my* Vietnamese needs no ``của``."""
    member: Kin = d.pick(lexicon().kin)
    en, vi = d.pick([o for o in OWNERS if o[0] in member.owners or "all" in member.owners])
    text = f"{en} {member.en}"
    name = f"{member.vi} tôi" if en == "my" else f"{member.vi} của {vi}"
    d.note("kin", en, member.en)
    return Phrase(text, name, "3" if member.agreement == "3s" else "p", text, member.en)


def common_person(d: Draw) -> Phrase:
    """A profession or other person noun with a determiner."""
    noun = d.pick(lexicon().people)
    if "own" in noun.tags and ("common" not in noun.tags or d.chance(0.4)):
        owner, vi_owner = d.pick(OWNERS)
        text = f"{owner} {noun.en}"
        return Phrase(text, f"{noun.vi} của {vi_owner}", "3", text, noun.en)
    det, suffix, many = d.pick(_PERSON_DETERMINERS)
    text = f"{det} {noun.plural if many else noun.en}"
    d.note("determiner", det, noun.en)
    plural = "những " if noun.classifier == "người" else "các "
    vi = f"{plural if many else ''}{noun.vi}{suffix}"
    return Phrase(text, vi, "p" if many else "3", text, noun.en)


_PERSON_DETERMINERS = (
    ("the", "", False),
    ("the", "", False),
    ("this", " này", False),
    ("that", " đó", False),
    ("the", "", True),
    ("these", " này", True),
    ("those", " đó", True),
)


def name(d: Draw) -> Phrase:
    """A person by name."""
    en, vi = d.pick(lexicon().names)
    return Phrase(en, vi, "3", en, en)


def pronoun(d: Draw) -> Phrase:
    """A personal pronoun."""
    return d.pick(PRONOUNS)


def person(d: Draw) -> Phrase:
    """Anybody, as subject or object."""
    roll = d.number(0, 9)
    if roll < 4:
        return pronoun(d)
    return (name, kin, common_person)[roll % 3](d)


def other_person(d: Draw, subject: Phrase | None) -> Phrase:
    """A person who isn't ``subject`` (nor overlaps with it)."""
    if subject is None:
        return person(d)
    taken = subject
    return d.until(
        person,
        lambda someone: (
            someone.en != taken.en
            and someone.key != taken.key
            and not (someone.key in _FIRST and taken.key in _FIRST)
        ),
    )


def possessive(d: Draw) -> Pair:
    """A possessor before an English noun, and what follows the Vietnamese one."""
    if d.chance(0.25):
        en, vi = d.pick(lexicon().names)
        return f"{en}'s", f" của {vi}"
    en, vi = d.pick(OWNERS)
    return en, f" của {vi}"


# --- things ---------------------------------------------------------------------------------


def thing(d: Draw, noun: Noun, kind: str | None = None, plain: bool = False) -> Phrase:
    """A count noun with a determiner; ``kind`` fixes which, ``plain`` leaves adjectives out."""
    kind = kind or d.pick(_KINDS)
    if kind == "owned" and noun.tags & _OWNERLESS:
        kind = "the"
    adjective = None
    if not plain and d.chance(0.4) and _ADJECTIVES[noun]:
        adjective = d.pick(_ADJECTIVES[noun])
        d.note("modifier", adjective.en, noun.en)
    many = kind in ("count", "plurals", "these", "those", "generic", "many")
    en = noun.plural if many else noun.en
    vi = noun.bare if kind == "generic" else noun.vi
    if adjective is not None:
        en, vi = f"{adjective.en} {en}", f"{vi} {adjective.vi}"
    if kind == "owned":
        owner, tail = possessive(d)
        en, vi = f"{owner} {en}", f"{vi}{tail}"
    elif kind == "count":
        number = d.number(2, 12)
        d.note("count", str(number), noun.en)
        en, vi = f"{english_number(number)} {en}", f"{vietnamese_number(number)} {vi}"
    else:
        if kind not in ("a", "generic"):
            d.note("determiner", kind, noun.en)
        en, vi = _DETERMINERS[kind](en, vi)
    return Phrase(en, vi, "p" if many else "3", en, noun.en)


_KINDS = ("a", "a", "a", "the", "the", "the", "this", "that", "owned", "owned") + (
    "count",
    "plurals",
    "these",
    "those",
)
_OWNERLESS = frozenset(("wild", "prey", "nat", "sight"))
_DEFINITE = ("the", "the", "this", "that", "owned", "plurals", "these", "those")
_DETERMINERS: dict[str, Callable[[str, str], Pair]] = {
    "a": lambda en, vi: (with_article(en), f"một {vi}"),
    "the": lambda en, vi: (f"the {en}", vi),
    "this": lambda en, vi: (f"this {en}", f"{vi} này"),
    "that": lambda en, vi: (f"that {en}", f"{vi} đó"),
    "plurals": lambda en, vi: (f"the {en}", f"những {vi}"),
    "these": lambda en, vi: (f"these {en}", f"những {vi} này"),
    "those": lambda en, vi: (f"those {en}", f"những {vi} đó"),
    "many": lambda en, vi: (f"many {en}", f"nhiều {vi}"),
    "generic": lambda en, vi: (en, vi),
}


def definite(d: Draw, noun: Noun, plain: bool = True) -> Phrase:
    """A count noun that is known: the, this, my, …"""
    return thing(d, noun, d.pick(_DEFINITE), plain)


MEASURES = {
    "cup": ("cup", "tách"),
    "glass": ("glass", "cốc"),
    "bottle": ("bottle", "chai"),
    "bowl": ("bowl", "bát"),
    "kilo": ("kilo", "cân"),
    "loaf": ("loaf", "ổ"),
}
_MEASURE_PLURALS = {"glass": "glasses", "loaf": "loaves"}


def measured(d: Draw, mass: Mass) -> Pair:
    """A measured amount: ``two cups of tea``; the mass noun has a measure tag."""
    tag = d.pick(sorted(mass.tags & MEASURES.keys()))
    en, vi = MEASURES[tag]
    d.note("measure", tag, mass.en)
    if d.chance(0.5):
        return f"a {en} of {mass.en}", f"một {vi} {mass.vi}"
    number = d.number(2, 10)
    many = _MEASURE_PLURALS.get(en, f"{en}s")
    return (
        f"{english_number(number)} {many} of {mass.en}",
        f"{vietnamese_number(number)} {vi} {mass.vi}",
    )


def substance(d: Draw, mass: Mass) -> Pair:
    """A mass noun as an object: bare, ``some``, or measured."""
    if mass.tags & MEASURES.keys() and d.chance(0.4):
        return measured(d, mass)
    if d.chance(0.4):
        return f"some {mass.en}", f"một ít {mass.vi}"
    return mass.en, mass.vi


# --- verb phrases ----------------------------------------------------------------------------


def _object(d: Draw, verb: Verb, subject: Phrase | None, noun: Noun | Mass | None) -> Pair:
    """An object for ``verb``, noting the pair of them."""
    wanted = verb.tags & PERSON_TAGS
    if noun is None and wanted and (not _OBJECTS[verb] or d.chance(0.5)):
        if "person" in wanted:
            someone = other_person(d, subject)
        elif "kin" in wanted:
            someone = kin(d)
        else:
            child = d.pick([n for n in lexicon().people if "young" in n.tags])
            someone = Phrase(f"the {child.en}", child.vi, "3", f"the {child.en}", child.en)
        d.note("object", verb.en, someone.key)
        return someone.obj, someone.vi
    chosen = noun or d.pick(_OBJECTS[verb])
    d.note("object", verb.en, chosen.en)
    if isinstance(chosen, Mass):
        return (chosen.en, chosen.vi) if verb.stative else substance(d, chosen)
    kind = "generic" if "g" in verb.flags and d.chance(0.7 if verb.stative else 0.15) else None
    if kind is None and verb.stative and verb.en != "need":
        kind = d.pick(_DEFINITE)
    phrase = thing(d, chosen, kind)
    return phrase.en, phrase.vi


def transitive(
    d: Draw, subject: Phrase | None = None, keep: Callable[[Verb], bool] | None = None
) -> Action:
    """A verb with an object; chosen from the verb in one half, from the object in the other."""
    lex = lexicon()
    while True:
        noun: Noun | Mass | None = None
        if d.chance(0.5):
            noun = d.pick(lex.things) if d.chance(0.8) else d.pick(lex.masses)
            if not _VERBS[noun]:
                continue
            verb = d.pick(_VERBS[noun])
        else:
            verb = d.pick(lex.verbs)
        if keep is None or keep(verb):
            break
    en, vi = _object(d, verb, subject, noun)
    return Action(verb, en, verb.vi.format(vi) if "{" in verb.vi else f"{verb.vi} {vi}")


def active(verb: Verb) -> bool:
    """Whether ``verb`` names an act (and not a state)."""
    return not verb.stative


def wanted(verb: Verb) -> bool:
    """Whether ``verb`` is an act one may intend (nobody plans to lose a key)."""
    return not verb.stative and "u" not in verb.flags


def ongoing(verb: Verb) -> bool:
    """Whether ``verb`` is an act that may be going on (one finds in a moment)."""
    return not verb.stative and "e" not in verb.flags


def act(
    d: Draw,
    subject: Phrase | None = None,
    share: float = 0.3,
    keep: Callable[[Verb], bool] = active,
) -> Action:
    """Something done: an action without object (``share`` of the time) or with one."""
    if d.chance(share):
        verb = d.pick(lexicon().actions)
        return Action(verb, "", verb.vi)
    return transitive(d, subject, keep)
