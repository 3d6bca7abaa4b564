"""Simple statements and requests: who does what, when, where and how."""

from collections.abc import Callable

from tools.phrasebook import grammar as g
from tools.phrasebook import tenses as t
from tools.phrasebook.grammar import Action, Draw, Pair
from tools.phrasebook.lexicon import Place, Verb, lexicon
from tools.phrasebook.numbers import WEEKDAYS, clock, english_number, vietnamese_number

LEX = lexicon()
Construction = Callable[[Draw], Pair]
_UNITS = (("day", "ngày"), ("week", "tuần"), ("month", "tháng"), ("year", "năm"))
_BY_GROUP = {
    group: tuple(p for p in LEX.places if group in p.groups)
    for group in {group for p in LEX.places for group in p.groups}
}


def when(d: Draw, kind: str, front: bool = False) -> Pair:
    """A time expression: ``past``, ``future`` or ``habit``; ``front``: it opens the sentence."""
    roll = d.number(0, 9)
    if kind == "habit":
        if roll < 3:
            en, vi = clock(d.number(1, 12), d.pick((0, 0, 15, 30)))
            return f"at {en}", f"lúc {vi}"
        if roll < 5:
            en, vi = d.pick(WEEKDAYS)
            return f"every {en}", f"mỗi {vi}"
    elif roll < 2:
        en, vi = d.pick(WEEKDAYS)
        lead, tail = ("last", "tuần trước") if kind == "past" else ("next", "tuần sau")
        return f"{lead} {en}", f"{vi} {tail}" if front else f"vào {vi} {tail}"
    elif roll < 4:
        number = d.number(2, 10)
        en, vi = d.pick(_UNITS)
        words, nums = english_number(number), vietnamese_number(number)
        if kind == "past":
            return f"{words} {en}s ago", f"cách đây {nums} {vi}"
        return f"in {words} {en}s", f"{nums} {vi} nữa"
    return d.pick(LEX.times[kind])


def timed(d: Draw, pair: Pair, kind: str, front: bool = False) -> Pair:
    """A clause with a time expression, in front or at the end (the same in both languages).

    With ``front`` the Vietnamese time opens the sentence wherever the English one stands, as it
    does with descriptions (``Hôm qua cô ấy rất vui``).
    """
    opens = kind != "habit" and d.chance(0.4)
    en, vi = when(d, kind, front or opens)
    front = front or vi.endswith(" nữa")
    vietnamese = f"{vi} {pair[1]}" if front or opens else f"{pair[1]} {vi}"
    if opens:
        comma = "," if " " in en else ""
        return f"{en}{comma} {pair[0]}", vietnamese
    return f"{pair[0]} {en}", vietnamese


def somewhere(d: Draw, verb: Verb) -> Place | None:
    """A place where ``verb`` is normally done, or None if it has none."""
    groups = [group for group in verb.groups if group]
    if not groups:
        return None
    place = d.pick(_BY_GROUP[d.pick(groups)])
    d.note("place", verb.en, place.en)
    return place


def placed(d: Draw, pair: Pair, verb: Verb, share: float) -> Pair:
    """A clause followed, in a ``share`` of the cases, by the place where it happens."""
    if not d.chance(share):
        return pair
    place = somewhere(d, verb)
    if place is None:
        return pair
    en, vi = place.at
    return f"{pair[0]} {en}", f"{pair[1]} {vi}"


def says(pair: Pair, mark: str = ".") -> Pair:
    """A finished sentence."""
    return pair[0] + mark, pair[1] + mark


def clear(verb: Verb) -> bool:
    """Whether present and past of ``verb`` look different for every subject."""
    return verb.past != verb.en


def progressive(d: Draw) -> Pair:
    """``She is reading a book in the library.``"""
    subject = g.person(d)
    action = g.act(d, subject)
    pair = t.clause(d, subject, action, d.pick(("progressive", "progressive", "still")))
    return says(placed(d, pair, action.verb, 0.4))


def past(d: Draw) -> Pair:
    """``Yesterday she bought a book at the bookstore.``"""
    subject = g.person(d)
    action = g.act(d, subject)
    pair = t.clause(d, subject, action, d.pick(("past", "past", "past", "not past")))
    return says(timed(d, placed(d, pair, action.verb, 0.15), "past"))


def future(d: Draw) -> Pair:
    """``They will visit the museum next week.``"""
    subject = g.person(d)
    action = g.act(d, subject)
    pair = t.clause(d, subject, action, d.pick(("future", "future", "future", "not future")))
    return says(timed(d, placed(d, pair, action.verb, 0.15), "future"))


def habit(d: Draw) -> Pair:
    """``He drinks coffee every morning.``"""
    subject = g.person(d)
    action = Action(v := d.pick(LEX.actions), "", v.vi) if d.chance(0.4) else _daily(d)
    tense = d.pick(("present", "present", "present", "not present"))
    en, vi = t.clause(d, subject, action, tense)
    time, vi_time = when(d, "habit") if tense == "present" else d.pick(LEX.times["habit"])
    return f"{en} {time}.", f"{vi} {vi_time}."


_DAILY = frozenset(("eat", "drink", "cook", "make", "feed", "wash", "clean", "draw", "read")) | {
    "write",
    "use",
    "wear",
}


def _daily(d: Draw) -> Action:
    return g.transitive(d, None, lambda verb: verb.en in _DAILY)


def frequency(d: Draw) -> Pair:
    """``My father often listens to music in the garden.``"""
    subject = g.person(d)
    action = g.act(d, subject, 0.3)
    tense = d.pick(("always", "usually", "often", "sometimes", "rarely", "hardly"))
    return says(placed(d, t.clause(d, subject, action, tense), action.verb, 0.4))


def perfect(d: Draw) -> Pair:
    """``We have just repaired the bicycle.``"""
    subject = g.person(d)
    tense = d.pick(("just", "about", "used", "already", "not yet", "never"))
    action = g.act(d, subject)
    share = 0.0 if tense in ("already", "not yet") else 0.4
    return says(placed(d, t.clause(d, subject, action, tense), action.verb, share))


def stative(d: Draw) -> Pair:
    """``She likes cats.``, ``They also need a lamp.``"""
    subject = g.person(d)
    action = g.transitive(d, subject, lambda verb: verb.stative and clear(verb))
    return says(t.clause(d, subject, action, d.pick(("present", "present", "not present"))))


_MODALS = ("can", "must", "should", "want", "need", "cannot", "must not", "should not") + (
    "not want",
    "not need",
)


WHOLESOME = frozenset(
    (
        *("see a doctor", "take medicine", "exercise", "study", "get up", "do homework"),
        *("learn Vietnamese", "learn French", "learn Japanese", "go home"),
    )
)


def modal(d: Draw) -> Pair:
    """``You should not smoke in the restaurant.``"""
    subject = g.person(d)
    action = g.act(d, subject)
    tense = d.pick(_MODALS)
    if tense in ("must not", "should not") and action.verb.en in WHOLESOME:
        tense = "should"
    pair = t.clause(d, subject, action, tense)
    return says(placed(d, pair, action.verb, 0.35))


_LEISURE = tuple(
    v for v in LEX.actions if v.groups != ("",) and v.en not in ("sleep", "cry", "wait")
)


def catenative(d: Draw) -> Pair:
    """``He is trying to translate the letter.``"""
    subject = g.person(d)
    tense = d.pick(("like", "try", "start", "plan", "forgot", "decided"))
    if tense in ("like", "start"):
        verb = d.pick(_LEISURE)
        action = Action(verb, "", verb.vi) if d.chance(0.7) else _daily(d)
    else:
        action = g.act(d, subject, 0.5)
    return says(placed(d, t.clause(d, subject, action, tense), action.verb, 0.3))


def companion(d: Draw) -> Pair:
    """``She is playing chess with her brother.``"""
    subject = g.person(d)
    verb = d.pick(_SHARED)
    other = g.other_person(d, subject)
    tense = d.pick(("progressive", "past", "future", "want", "often", "not want", "can"))
    en, vi = t.clause(d, subject, Action(verb, "", verb.vi), tense)
    pair = f"{en} with {other.obj}", f"{vi} với {other.vi}"
    return says(timed(d, pair, tense) if tense in ("past", "future") else pair)


_SHARED = tuple(v for v in LEX.actions if v.en.split()[0] in ("go", "eat", "play", "talk", "dance"))
_SHARED = tuple(v for v in _SHARED if v.en != "go to bed")

ALL: tuple[tuple[Construction, float], ...] = (
    (progressive, 2.0),
    (past, 2.0),
    (future, 1.8),
    (habit, 1.3),
    (frequency, 1.3),
    (perfect, 1.8),
    (stative, 1.3),
    (modal, 2.0),
    (catenative, 1.3),
    (companion, 0.8),
)
