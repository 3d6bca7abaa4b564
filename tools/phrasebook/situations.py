"""Whose things are, where things and people are, and who has what."""

from tools.phrasebook import grammar as g
from tools.phrasebook import tenses as t
from tools.phrasebook.english import with_article
from tools.phrasebook.grammar import Draw, Pair
from tools.phrasebook.lexicon import Noun, lexicon
from tools.phrasebook.numbers import english_number, vietnamese_number
from tools.phrasebook.statements import Construction, says, timed

LEX = lexicon()

_OWNED = tuple(n for n in LEX.things if not n.tags & {"wild", "prey", "nat", "sight"})


def this_is(d: Draw) -> Pair:
    """``This is my umbrella.``, ``Are those your books?``"""
    noun = d.pick(_OWNED)
    near, vi_near, plural = d.pick(
        (("this", "đây", False), ("that", "đó", False), ("these", "đây", True))
    )
    owner, tail = g.possessive(d)
    d.note("owner", owner, noun.en)
    en = f"{owner} {noun.plural if plural else noun.en}"
    vi = f"{'những ' if plural else ''}{noun.vi}{tail}"
    verb = "are" if plural else "is"
    kind = d.number(0, 3)
    if kind == 0:
        return f"{verb} {near} {en}?", f"{vi_near} có phải là {vi} không?"
    if kind == 1:
        return f"{near} {verb} not {en}.", f"{vi_near} không phải là {vi}."
    return f"{near} {verb} {en}.", f"{vi_near} là {vi}."


PREPOSITIONS = {
    "on": "trên",
    "under": "dưới",
    "next to": "bên cạnh",
    "near": "gần",
    "behind": "sau",
    "in": "trong",
}
_SMALL = tuple(n for n in LEX.things if "small" in n.tags and "animal" not in n.tags)
_PETS = tuple(n for n in LEX.things if "pet" in n.tags)
_SITES = tuple(p for p in LEX.places if "build" in p.groups)
_SITE_PREPOSITIONS = (
    ("near", "gần"),
    ("next to", "bên cạnh"),
    ("behind", "phía sau"),
    ("in front of", "phía trước"),
    ("opposite", "đối diện"),
)


_PET_ANCHORS = frozenset(
    ("the table", "the chair", "the bed", "the floor", "the window", "the door")
)


def _spot(d: Draw, noun: Noun) -> Pair:
    """Where in a room ``noun`` may be."""
    anchors = LEX.anchors
    if "pet" in noun.tags:
        anchors = tuple(a for a in anchors if a[0] in _PET_ANCHORS)
    en, vi, prepositions = d.pick(anchors)
    preposition = d.pick(sorted(prepositions))
    d.note("spot", noun.en, en)
    return f"{preposition} {en}", f"{PREPOSITIONS[preposition]} {vi}"


def location(d: Draw) -> Pair:
    """``The keys are on the table.``, ``Is the cat under the bed?``"""
    noun = d.pick(_PETS if d.chance(0.15) else _SMALL)
    subject = g.definite(d, noun)
    en, vi = _spot(d, noun)
    verb = t.be(subject.agr)
    kind = d.number(0, 4)
    if kind == 0:
        return f"{verb} {subject.en} {en}?", f"{subject.vi} có ở {vi} không?"
    if kind == 1:
        return f"{subject.en} {verb} not {en}.", f"{subject.vi} không ở {vi}."
    return f"{subject.en} {verb} {en}.", f"{subject.vi} ở {vi}."


def person_location(d: Draw) -> Pair:
    """``My father is in the garden.``, ``They were at the airport yesterday.``"""
    subject = g.person(d)
    place = d.pick(LEX.places)
    d.note("located", subject.key, place.en)
    en, vi = place.at
    vi = vi if vi.startswith("ở ") else f"ở {vi}"
    kind = d.number(0, 4)
    if kind == 0 and subject.key != "I":
        return f"{t.be(subject.agr)} {subject.en} {en}?", f"{subject.vi} có ở {place.vi} không?"
    if kind == 1:
        return f"{subject.en} {t.be(subject.agr)} not {en}.", f"{subject.vi} không {vi}."
    if kind == 2:
        return says(
            timed(d, (f"{subject.en} {t.was(subject.agr)} {en}", f"{subject.vi} đã {vi}"), "past")
        )
    return f"{subject.en} {t.be(subject.agr)} {en}.", f"{subject.vi} {vi}."


def site(d: Draw) -> Pair:
    """``The bank is opposite the hotel.``, ``Is there a pharmacy near the hotel?``"""
    first, second = d.pick(_SITES), d.pick(_SITES)
    while second is first:
        second = d.pick(_SITES)
    preposition, vi = d.pick(_SITE_PREPOSITIONS)
    d.note("site", first.en, second.en)
    noun = first.en.removeprefix("the ")
    kind = d.number(0, 3)
    if kind == 0:
        en = f"is there {with_article(noun)} {preposition} {second.en}?"
        return en, f"có {first.vi} nào {vi} {second.vi} không?"
    if kind == 1:
        en = f"there is {with_article(noun)} {preposition} {second.en}."
        return en, f"có một {first.vi} {vi} {second.vi}."
    if kind == 2:
        return f"is {first.en} {preposition} {second.en}?", (
            f"{first.vi} có ở {vi} {second.vi} không?"
        )
    return f"{first.en} is {preposition} {second.en}.", f"{first.vi} ở {vi} {second.vi}."


def existence(d: Draw) -> Pair:
    """``There are three cups on the table.``, ``Are there any eggs in the basket?``"""
    noun = d.pick(_PETS if d.chance(0.1) else _SMALL)
    en, vi = _spot(d, noun)
    kind = d.number(0, 5)
    if kind == 0:
        return f"are there any {noun.plural} {en}?", f"có {noun.vi} nào {vi} không?"
    if kind == 1:
        return f"there are no {noun.plural} {en}.", f"không có {noun.vi} nào {vi}."
    if kind == 2:
        return f"how many {noun.plural} are there {en}?", f"có bao nhiêu {noun.vi} {vi}?"
    some = g.thing(d, noun, d.pick(("a", "count", "many")))
    return f"there {t.be(some.agr)} {some.en} {en}.", f"có {some.vi} {vi}."


_HAD = tuple(
    n
    for n in LEX.things
    if n.tags & {"pet", "farm", "read", "dev", "access", "cloth", "veh", "toy", "instr", "furn"}
)
_RELATIVES = (
    "older brother",
    "younger brother",
    "older sister",
    "younger sister",
    "son",
    "daughter",
)


def having(d: Draw) -> Pair:
    """``She has two older brothers.``, ``Do they have a car?``"""
    subject = g.person(d)
    if d.chance(0.25):
        member = d.pick([k for k in LEX.kin if k.en in _RELATIVES])
        number = d.number(2, 5)
        d.note("kin count", str(number), member.en)
        en = f"{subject.en} {t.have(subject.agr)} {english_number(number)} {member.en}s."
        return en, f"{subject.vi} có {vietnamese_number(number)} {member.vi}."
    noun = d.pick(_HAD)
    d.note("has", subject.key, noun.en)
    kind = d.number(0, 3)
    if kind == 0 and subject.key != "I":
        return f"{t.do(subject.agr)} {subject.en} have {with_article(noun.en)}?", (
            f"{subject.vi} có {noun.bare} không?"
        )
    if kind == 1:
        return f"{subject.en} {t.do(subject.agr)} not have {with_article(noun.en)}.", (
            f"{subject.vi} không có {noun.bare}."
        )
    item = g.thing(d, noun, d.pick(("a", "count", "many")))
    return f"{subject.en} {t.have(subject.agr)} {item.en}.", f"{subject.vi} có {item.vi}."


ALL: tuple[tuple[Construction, float], ...] = (
    (this_is, 1.0),
    (location, 1.0),
    (person_location, 0.8),
    (site, 0.5),
    (existence, 1.0),
    (having, 1.0),
)
