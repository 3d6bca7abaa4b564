"""Sentences of two clauses: relative clauses, because, if, when, although, that, and."""

from tools.phrasebook import grammar as g
from tools.phrasebook import tenses as t
from tools.phrasebook.grammar import Action, Draw, Pair, Phrase
from tools.phrasebook.lexicon import Verb, lexicon
from tools.phrasebook.statements import Construction, clear, says, timed

LEX = lexicon()
_BY_NAME = {verb.en: verb for verb in LEX.actions}
_QUALITY = {quality.en: quality for quality in LEX.qualities}
_CAUSES = tuple((_QUALITY[state], tuple(_BY_NAME[a] for a in acts)) for state, acts in LEX.reasons)
_WEATHERS = (
    ("it is raining", "trời đang mưa", ("stay at home", "close the window", "go home")),
    ("it is hot", "trời nóng", ("swim", "turn on the fan", "open the window", "take a bath")),
    ("it is cold", "trời lạnh", ("stay at home", "close the door", "close the window")),
    ("it is dark", "trời tối", ("turn on the light", "go home", "go to bed")),
)


_MOODS = frozenset(("cry", "laugh", "smoke", "sing", "dance", "walk", "play the guitar"))
_BURDENED = tuple(
    _QUALITY[q] for q in ("tired", "sick", "busy", "hungry", "thirsty", "sad", "worried", "sleepy")
)
_EFFORTS = tuple(
    _BY_NAME[a]
    for a in (
        *("work", "study", "exercise", "go shopping", "go fishing", "cook dinner", "walk"),
        *("wash the dishes", "clean the house", "water the flowers", "do homework", "dance"),
        *("play football", "play tennis", "play chess", "ride a bicycle", "drive to work"),
        *("learn Vietnamese", "learn French", "learn Japanese", "swim", "run", "talk", "sing"),
    )
)


def _cause(d: Draw) -> tuple[Phrase, Pair, Verb]:
    """A person, why they act (a clause about them, or the weather), and what they do."""
    if d.chance(0.35):
        subject = g.person(d)
        en, vi, acts = d.pick(_WEATHERS)
        act = _BY_NAME[d.pick(acts)]
    else:
        subject = g.pronoun(d)
        state, verbs = d.pick(_CAUSES)
        act = d.pick(verbs)
        en, vi = f"{subject.en} {t.be(subject.agr)} {state.en}", f"{subject.vi} {state.vi}"
        d.note("reason", state.en, act.en)
    d.note("reason of", subject.key, act.en)
    return subject, (en, vi), act


def _hindered(d: Draw) -> tuple[Phrase, Pair, Verb]:
    """Somebody whose state keeps them from doing something."""
    subject, state, act = g.pronoun(d), d.pick(_BURDENED), d.pick(_EFFORTS)
    d.note("hindrance", state.en, act.en)
    cause = f"{subject.en} {t.be(subject.agr)} {state.en}", f"{subject.vi} {state.vi}"
    return subject, cause, act


def because(d: Draw) -> Pair:
    """``I want to rest because I am tired.``, ``Because it is hot, they are swimming.``"""
    if d.chance(0.4):
        subject, cause, verb = _hindered(d)
        tense = d.pick(("not want", "cannot", "should not"))
    else:
        subject, cause, verb = _cause(d)
        moods = ("want", "progressive")
        tense = d.pick(moods if verb.en in _MOODS else ("want", "need", "must", "decided"))
    effect = t.clause(d, subject, Action(verb, "", verb.vi), tense)
    if d.chance(0.5):
        return f"because {cause[0]}, {effect[0]}.", f"vì {cause[1]} nên {effect[1]}."
    return f"{effect[0]} because {cause[0]}.", f"{effect[1]} vì {cause[1]}."


def condition(d: Draw) -> Pair:
    """``If you are sick, you should see a doctor.``"""
    if d.chance(0.4):
        subject, cause, verb = _hindered(d)
        tense = d.pick(("should not", "not need", "must not"))
    else:
        subject, cause, verb = _cause(d)
        while verb.en in _MOODS:
            d.combinations.clear()
            subject, cause, verb = _cause(d)
        tense = d.pick(("should", "can", "future", "must"))
    effect = t.clause(d, subject, Action(verb, "", verb.vi), tense)
    if d.chance(0.6):
        return f"if {cause[0]}, {effect[0]}.", f"nếu {cause[1]} thì {effect[1]}."
    return f"{effect[0]} if {cause[0]}.", f"{effect[1]} nếu {cause[1]}."


def although(d: Draw) -> Pair:
    """``Although she is tired, she is still working.``"""
    subject, cause, verb = _hindered(d)
    d.note("although", subject.key, verb.en)
    tense = d.pick(("still", "want", "must"))
    en, vi = t.clause(d, subject, Action(verb, "", verb.vi), tense)
    return f"although {cause[0]}, {en}.", f"mặc dù {cause[1]} nhưng {vi}."


_EVENTS = tuple(v for v in LEX.actions if v.groups != ("",))
_QUIET = tuple(_BY_NAME[a] for a in ("sleep", "work", "study", "rest", "do homework", "eat dinner"))
_LOUD = tuple(
    _BY_NAME[a]
    for a in (
        *("sing", "talk", "laugh", "dance", "smoke", "watch television", "listen to music"),
        *("turn on the light", "open the window", "play the piano", "play the guitar"),
    )
)


def while_when(d: Draw) -> Pair:
    """``When my father called, I was cooking dinner.``, ``I sing while she is cooking.``"""
    first = g.person(d)
    other = g.other_person(d, first)
    d.note("subject", first.key, "while")
    kind = d.number(0, 2)
    if kind == 2:
        one, two = d.pick(_QUIET), d.pick(_LOUD)
        d.note("two acts", one.en, two.en)
        return (
            f"when {first.en} {t.be(first.agr)} {one.ing}, please do not {two.en}.",
            f"khi {first.vi} đang {one.vi}, xin đừng {two.vi}.",
        )
    one, two = d.pick(_EVENTS), d.pick(_EVENTS)
    d.note("two acts", one.en, two.en)
    if kind == 0:
        return (
            f"{first.en} {t.be(first.agr)} {one.ing} while {other.en} {t.be(other.agr)} {two.ing}.",
            f"{first.vi} đang {one.vi} trong khi {other.vi} đang {two.vi}.",
        )
    return (
        f"when {other.en} called, {first.en} {t.was(first.agr)} {one.ing}.",
        f"khi {other.vi} gọi điện, {first.vi} đang {one.vi}.",
    )


_ROUTINE = tuple(
    _BY_NAME[a]
    for a in (
        *("get up", "take a bath", "eat breakfast", "eat lunch", "eat dinner", "go to bed"),
        *("do homework", "wash the dishes", "clean the house", "exercise", "cook dinner", "swim"),
        *("drive to work", "take medicine", "watch television", "listen to music"),
        *("water the flowers", "turn off the light", "play tennis", "play football", "run"),
        *("go shopping", "study", "close the window", "turn on the fan", "rest", "tell stories"),
    )
)
_DAY_ENDS = frozenset(("get up", "go to bed"))


def before_after(d: Draw) -> Pair:
    """``She takes a bath before going to bed.``"""
    subject = g.person(d)
    one, two = d.pick(_ROUTINE), d.pick(_ROUTINE)
    while two is one or one.en in _DAY_ENDS:
        one, two = d.pick(_ROUTINE), d.pick(_ROUTINE)
    word, vi_word = d.pick((("before", "trước khi"), ("after", "sau khi")))
    if two.en in _DAY_ENDS:
        word, vi_word = ("after", "sau khi") if two.en == "get up" else ("before", "trước khi")
    tense = d.pick(("usually", "often", "should", "always", "want", "sometimes", "rarely"))
    d.note("two acts", one.en, two.en)
    en, vi = t.clause(d, subject, Action(one, "", one.vi), tense)
    return f"{en} {word} {two.ing}.", f"{vi} {vi_word} {two.vi}."


def _relative_act(verb: Verb) -> bool:
    return not verb.stative and clear(verb) and not verb.tags & g.PERSON_TAGS


def relative_object(d: Draw) -> Pair:
    """``The book that I bought yesterday is very interesting.``"""
    noun, adjective = g.described(d)
    verbs = [v for v in LEX.verbs if v.tags & noun.tags and _relative_act(v) and "{" not in v.vi]
    if not verbs:
        d.combinations.clear()
        return relative_object(d)
    verb = d.pick(verbs)
    subject = g.person(d)
    d.note("object", verb.en, noun.en)
    d.note("modifier", adjective.en, noun.en)
    head = g.thing(d, noun, d.pick(("the", "plurals")), plain=True)
    bare = Action(verb, "", verb.vi)
    tense = d.pick(("past", "past", "progressive", "want", "just"))
    pair = t.clause(d, subject, bare, tense)
    en, vi = timed_end(d, pair) if tense == "past" and d.chance(0.6) else pair
    full, vi_full = f"{head.en} that {en}", f"{head.vi} mà {vi}"
    if adjective.graded:
        degree, pattern = d.pick((("very", "rất {}"), ("quite", "khá {}"), ("not", "không {}")))
        tail, vi_tail = f"{degree} {adjective.en}", pattern.format(adjective.vi)
    else:
        tail, vi_tail = adjective.en, adjective.predicate
    return f"{full} {t.be(head.agr)} {tail}.", f"{vi_full} {vi_tail}."


def timed_end(d: Draw, pair: Pair) -> Pair:
    """A past clause with its time at the end."""
    en, vi = d.pick(LEX.times["past"])
    return f"{pair[0]} {en}", f"{pair[1]} {vi}"


_HEADS = tuple(n for n in LEX.people if "common" in n.tags)
_WORKERS = tuple(n for n in _HEADS if "job" in n.tags and n.en != "fisherman")


def relative_subject(d: Draw) -> Pair:
    """``I know the man who repaired the car.``, ``The girl who is singing is my sister.``"""
    known = d.chance(0.5)
    noun = d.pick(_HEADS if known else _WORKERS)
    head = Phrase(f"the {noun.en}", noun.vi, "3", "", noun.en)
    someone = Phrase("who", "", "3", "", noun.en)
    action = g.act(d, None, 0.5)
    tense = d.pick(("progressive", "just", "want", "plan"))
    en, vi = t.clause(d, someone, action, tense)
    full, vi_full = f"{head.en} {en}", f"{head.vi} {vi.strip()}"
    if known:
        subject = g.person(d)
        verb, verb_vi = d.pick((("like", "thích"), ("admire", "ngưỡng mộ"), ("trust", "tin tưởng")))
        verb = f"{verb}s" if subject.agr == "3" else verb
        d.note("relative", subject.key, noun.en)
        return f"{subject.en} {verb} {full}.", f"{subject.vi} {verb_vi} {vi_full}."
    relative = d.until(
        g.kin if d.chance(0.7) else g.name,
        lambda someone: someone.agr == "3",
    )
    d.note("relative", relative.key, noun.en)
    return f"{full} is {relative.en}.", f"{vi_full} là {relative.vi}."


_THINKING = (
    ("think", "nghĩ"),
    ("believe", "tin"),
    ("know", "biết"),
    ("say", "nói"),
    ("hope", "hy vọng"),
)


def that_clause(d: Draw) -> Pair:
    """``I think that she will buy the red dress.``"""
    subject = g.person(d)
    other = g.other_person(d, subject)
    verb, vi_verb = d.pick(_THINKING)
    tenses = (
        ("future", "can", "not future")
        if verb == "hope"
        else (
            "future",
            "want",
            "cannot",
            "should",
            "already",
            "progressive",
        )
    )
    action = g.act(d, other)
    d.note("thinks", subject.key, verb)
    en, vi = t.clause(d, other, action, d.pick(tenses))
    verb = f"{verb}s" if subject.agr == "3" else verb
    return f"{subject.en} {verb} that {en}.", f"{subject.vi} {vi_verb} rằng {vi}."


def coordination(d: Draw) -> Pair:
    """``I can dance but she cannot dance.``, ``Lan and her brother are dancing.``"""
    first = g.person(d)
    if first.key not in ("I", "you") and d.chance(0.35):
        other = d.until(d.pick((g.name, g.kin)), lambda someone: someone.key != first.key)
        both = Phrase(f"{first.en} and {other.en}", f"{first.vi} và {other.vi}", "p", "", first.key)
        tense = d.pick(("progressive", "future", "want", "often", "just"))
        pair = t.clause(d, both, g.act(d, both, 0.6), tense)
        return says(timed(d, pair, "future") if tense == "future" else pair)
    other = g.other_person(d, first)
    tense = d.pick(("progressive", "want", "can"))
    contrast = {"want": "not want", "can": "cannot"}.get(tense)
    left = g.act(d, first, 0.5)
    en, vi = t.clause(d, first, left, tense)
    if contrast and d.chance(0.5):
        left = left if left.object not in (other.obj, "you") else g.act(d, other, 1.0)
        en2, vi2 = t.clause(d, other, left, contrast)
        return f"{en} but {en2}.", f"{vi} nhưng {vi2}."
    en2, vi2 = t.clause(d, other, g.act(d, other, 0.5), tense)
    return f"{en} and {en2}.", f"{vi} và {vi2}."


ALL: tuple[tuple[Construction, float], ...] = (
    (because, 0.9),
    (condition, 0.9),
    (although, 0.8),
    (while_when, 0.8),
    (before_after, 0.8),
    (relative_object, 1.3),
    (relative_subject, 1.2),
    (that_clause, 1.2),
    (coordination, 1.0),
)
