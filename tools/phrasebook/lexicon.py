"""The bilingual lexicon: typed entries read from the tab-separated files beside this module.

Each file is one part of speech; its first line names the columns. Tags tie nouns to the verbs
and adjectives they go with, which is what keeps generated sentences meaningful.
"""

from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

from tools.phrasebook.english import gerund, plural, superlative, third_person


@dataclass(frozen=True, eq=False)
class Noun:
    """A count noun; ``classifier`` is empty where Vietnamese counts the noun directly."""

    en: str
    plural: str
    classifier: str
    bare: str
    tags: frozenset[str]

    @property
    def vi(self) -> str:
        """The Vietnamese noun with its classifier."""
        return f"{self.classifier} {self.bare}" if self.classifier else self.bare


@dataclass(frozen=True, eq=False)
class Mass:
    """A mass noun: no plural, no classifier, counted through a measure."""

    en: str
    vi: str
    tags: frozenset[str]


@dataclass(frozen=True, eq=False)
class Kin:
    """A relative or friend, always possessed; ``owners`` are the possessive words it takes."""

    en: str
    vi: str
    agreement: str
    owners: frozenset[str]


@dataclass(frozen=True, eq=False)
class Adjective:
    """An adjective of things (``tags``: which nouns) or people (``state`` or ``trait``)."""

    en: str
    vi: str
    comparative: str
    tags: frozenset[str]

    @property
    def graded(self) -> bool:
        """Whether the adjective takes degree words and comparison."""
        return self.comparative != "none"

    @property
    def predicate(self) -> str:
        """The Vietnamese of *is* with the adjective: colors are had (``có màu đỏ``)."""
        return f"có {self.vi}" if self.vi.startswith("màu ") else self.vi

    @property
    def more(self) -> str:
        """The comparative form."""
        return f"more {self.en}" if self.comparative == "more" else self.comparative

    @property
    def most(self) -> str:
        """The superlative form."""
        return superlative(self.en, self.comparative)


@dataclass(frozen=True, eq=False)
class Verb:
    """A verb or a whole action; ``vi`` holds ``{}`` where the object stands, if not at the end."""

    en: str
    past: str
    participle: str
    vi: str
    tags: frozenset[str]
    flags: str
    groups: tuple[str, ...]
    third: str = field(init=False)
    ing: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "third", third_person(self.en))
        object.__setattr__(self, "ing", gerund(self.en))

    @property
    def stative(self) -> bool:
        """Whether the verb takes no progressive and none of the tenses of completed acts."""
        return "s" in self.flags


@dataclass(frozen=True, eq=False)
class Place:
    """A place with the preposition each language uses and how one says going there."""

    en: str
    vi: str
    preposition: str
    vi_preposition: str
    going: str
    groups: frozenset[str]

    @property
    def at(self) -> tuple[str, str]:
        """The place as an adverbial, in both languages."""
        return f"{self.preposition} {self.en}", f"{self.vi_preposition} {self.vi}"


def _rows(name: str) -> list[list[str]]:
    text = files(__package__).joinpath(f"{name}.tsv").read_text(encoding="utf-8")
    return [line.split("\t") for line in text.splitlines() if line and not line.startswith("#")]


def _set(text: str) -> frozenset[str]:
    return frozenset(part for part in text.split(",") if part)


def _nouns(name: str) -> tuple[Noun, ...]:
    return tuple(
        Noun(en, plural(en) if many == "-" else many, "" if cl == "0" else cl, vi, _set(tags))
        for en, many, cl, vi, tags in _rows(name)
    )


def _verbs() -> tuple[Verb, ...]:
    return tuple(
        Verb(en, past, participle, vi, _set(tags), flags, tuple(groups.split(",")))
        for en, past, participle, vi, tags, flags, groups in _rows("verbs")
    )


def _actions() -> tuple[Verb, ...]:
    return tuple(
        Verb(en, past, participle, vi, frozenset(), flags, tuple(groups.split(",")))
        for en, past, participle, vi, flags, groups in _rows("actions")
    )


def _adjectives(name: str) -> tuple[Adjective, ...]:
    return tuple(Adjective(en, vi, more, _set(tags)) for en, vi, more, tags in _rows(name))


@dataclass(frozen=True, eq=False)
class Lexicon:
    """Every table of the phrasebook."""

    things: tuple[Noun, ...]
    people: tuple[Noun, ...]
    kin: tuple[Kin, ...]
    names: tuple[tuple[str, str], ...]
    masses: tuple[Mass, ...]
    adjectives: tuple[Adjective, ...]
    qualities: tuple[Adjective, ...]
    verbs: tuple[Verb, ...]
    actions: tuple[Verb, ...]
    places: tuple[Place, ...]
    countries: tuple[tuple[str, str, str, str, str], ...]
    cities: tuple[tuple[str, str], ...]
    anchors: tuple[tuple[str, str, frozenset[str]], ...]
    times: dict[str, tuple[tuple[str, str], ...]]
    reasons: tuple[tuple[str, tuple[str, ...]], ...]

    def entries(self) -> list[tuple[str, str, str]]:
        """Every entry as (part of speech, English, Vietnamese)."""
        rows = [("noun", n.en, n.vi) for n in self.things + self.people]
        rows += [("noun", m.en, m.vi) for m in self.masses]
        rows += [("kin", k.en, k.vi) for k in self.kin]
        rows += [("adjective", a.en, a.vi) for a in self.adjectives]
        rows += [("quality", q.en, q.vi) for q in self.qualities]
        rows += [("verb", v.en, v.vi) for v in self.verbs + self.actions]
        rows += [("place", p.en, p.vi) for p in self.places]
        rows += [("anchor", en, vi) for en, vi, _ in self.anchors]
        rows += [("name", en, vi) for en, vi in self.names + self.cities]
        rows += [("name", row[0], row[1]) for row in self.countries]
        rows += [("time", en, vi) for kind in self.times.values() for en, vi in kind]
        return rows


@cache
def lexicon() -> Lexicon:
    """The lexicon, read once."""
    times: dict[str, tuple[tuple[str, str], ...]] = {}
    for en, vi, kind in _rows("times"):
        times[kind] = (*times.get(kind, ()), (en, vi))
    return Lexicon(
        things=_nouns("nouns"),
        people=_nouns("people"),
        kin=tuple(Kin(en, vi, agr, _set(own)) for en, vi, agr, own in _rows("kin")),
        names=tuple((en, vi) for en, vi in _rows("names")),
        masses=tuple(Mass(en, vi, _set(tags)) for en, vi, tags in _rows("masses")),
        adjectives=_adjectives("adjectives"),
        qualities=_adjectives("qualities"),
        verbs=_verbs(),
        actions=_actions(),
        places=tuple(Place(a, b, c, d, e, _set(tags)) for a, b, c, d, e, tags in _rows("places")),
        countries=tuple((a, b, c, d, e) for a, b, c, d, e in _rows("countries")),
        cities=tuple((en, vi) for en, vi in _rows("cities")),
        anchors=tuple((en, vi, _set(preps)) for en, vi, preps in _rows("anchors")),
        times=times,
        reasons=tuple((state, tuple(acts.split(","))) for state, acts in _rows("reasons")),
    )
