"""What people and things are like, where they are, whose they are, and how they compare."""

from tools.phrasebook import grammar as g
from tools.phrasebook import tenses as t
from tools.phrasebook.english import with_article
from tools.phrasebook.grammar import Draw, Pair, Phrase
from tools.phrasebook.lexicon import Adjective, lexicon
from tools.phrasebook.statements import Construction, says, timed

LEX = lexicon()
_JOBS = tuple(n for n in LEX.people if "job" in n.tags and n.en != "fisherman")
_STATES = tuple(q for q in LEX.qualities if "state" in q.tags)
_TRAITS = tuple(q for q in LEX.qualities if "trait" in q.tags)
_DEGREES = (
    ("very", "rất {}"),
    ("very", "rất {}"),
    ("quite", "khá {}"),
    ("too", "quá {}"),
    ("not", "không {}"),
    ("not very", "không {} lắm"),
)


_EXCESSIVE = frozenset(
    [
        "big",
        "small",
        "old",
        "expensive",
        "heavy",
        "long",
        "wide",
        "deep",
        "high",
        "dirty",
        "boring",
        "difficult",
        "easy",
        "sweet",
        "sour",
        "fast",
        "dangerous",
        "noisy",
        "crowded",
        "thick",
        "thin",
        "hot",
        "cold",
        "sad",
        "tired",
        "busy",
        "angry",
        "worried",
        "nervous",
        "sleepy",
        "tall",
        "short",
        "young",
        "lazy",
        "shy",
        "strict",
        "stubborn",
        "selfish",
        "careful",
        "generous",
        "confident",
    ]
)


def _individual(d: Draw) -> Phrase:
    """One person (so that *a doctor* fits)."""
    return d.until(g.person, lambda someone: someone.agr != "p" or someone.key == "you")


def job(d: Draw) -> Pair:
    """``My mother is not a teacher.``, ``Is he a pilot?``"""
    subject = d.until(
        d.pick((g.pronoun, g.name, g.kin)),
        lambda someone: someone.agr != "p" or someone.key == "you",
    )
    work = d.pick(_JOBS)
    d.note("job", subject.key, work.en)
    noun, verb = with_article(work.en), t.be(subject.agr)
    kind = d.number(0, 5)
    if kind == 0 and subject.key != "I":
        return f"{verb} {subject.en} {noun}?", f"{subject.vi} có phải là {work.bare} không?"
    pattern, vi = (
        (f"{verb} {noun}", "là"),
        (f"{verb} {noun}", "là"),
        (f"{verb} not {noun}", "không phải là"),
        (f"{'wants' if subject.agr == '3' else 'want'} to become {noun}", "muốn trở thành"),
        (f"used to be {noun}", "từng là"),
        (f"will become {noun}", "sẽ trở thành"),
    )[kind]
    return f"{subject.en} {pattern}.", f"{subject.vi} {vi} {work.bare}."


def _described(d: Draw, adjective: Adjective, subject: Phrase, verb: str) -> Pair:
    """``subject`` with a degree of ``adjective``."""
    if adjective.graded:
        degree, pattern = d.pick(_DEGREES)
        if degree == "too" and adjective.en not in _EXCESSIVE:
            degree, pattern = "extremely", "vô cùng {}"
        return (
            f"{subject.en} {verb} {degree} {adjective.en}",
            f"{subject.vi} {pattern.format(adjective.vi)}",
        )
    if d.chance(0.3):
        no = "không phải" if adjective.vi.startswith("màu ") else "không"
        return f"{subject.en} {verb} not {adjective.en}", f"{subject.vi} {no} {adjective.vi}"
    return f"{subject.en} {verb} {adjective.en}", f"{subject.vi} {adjective.predicate}"


def thing_quality(d: Draw) -> Pair:
    """``Those flowers are very beautiful.``, ``Is this chair comfortable?``"""
    noun, adjective = g.described(d)
    d.note("modifier", adjective.en, noun.en)
    subject = g.definite(d, noun)
    if adjective.graded and d.chance(0.25):
        en = f"{t.be(subject.agr)} {subject.en} {adjective.en}?"
        return en, f"{subject.vi} có {adjective.vi} không?"
    return says(_described(d, adjective, subject, t.be(subject.agr)))


def mass_quality(d: Draw) -> Pair:
    """``The coffee is too hot.``"""
    mass = d.pick([m for m in LEX.masses if g.adjectives_of(m)])
    adjective = d.pick([a for a in g.adjectives_of(mass) if a.graded])
    d.note("modifier", adjective.en, mass.en)
    det, tail = d.pick((("this", " này"), ("this", " này"), ("that", " đó")))
    subject = Phrase(f"{det} {mass.en}", mass.vi + tail, "3", "", mass.en)
    return says(_described(d, adjective, subject, "is"))


def person_quality(d: Draw) -> Pair:
    """``My sister is quite tired.``, ``He was very happy yesterday.``"""
    subject = g.person(d)
    quality = d.pick(_STATES if d.chance(0.5) else _TRAITS)
    d.note("quality", subject.key, quality.en)
    roll = d.number(0, 9)
    if roll < 2 and subject.key != "I":
        en = f"{t.be(subject.agr)} {subject.en} {quality.en}?"
        return en, f"{subject.vi} có {quality.vi} không?"
    if "state" in quality.tags and roll < 6:
        if roll < 4:
            looks = "looks" if subject.agr == "3" else "look"
            return (
                f"{subject.en} {looks} very {quality.en}.",
                f"{subject.vi} trông rất {quality.vi}.",
            )
        return says(timed(d, _described(d, quality, subject, t.was(subject.agr)), "past", True))
    return says(_described(d, quality, subject, t.be(subject.agr)))


_COMPARISONS = (
    ("{be} {more} than", "{a} hơn"),
    ("{be} {more} than", "{a} hơn"),
    ("{be} as {plain} as", "{a} bằng"),
    ("{be} not as {plain} as", "không {a} bằng"),
    ("{be} much {more} than", "{a} hơn nhiều so với"),
)


def _compared(d: Draw, left: Phrase, right: Phrase, adjective: Adjective) -> Pair:
    pattern, vi = d.pick(_COMPARISONS)
    words = {"be": t.be(left.agr), "more": adjective.more, "plain": adjective.en}
    return (
        f"{left.en} {pattern.format(**words)} {right.obj}.",
        f"{left.vi} {vi.format(a=adjective.vi)} {right.vi}.",
    )


def compare_things(d: Draw) -> Pair:
    """``This lamp is more expensive than that clock.``"""
    noun, adjective = g.described(d, graded=True)
    kind = min(noun.tags & adjective.tags)
    other = noun if "animal" in noun.tags else d.pick([n for n in LEX.things if kind in n.tags])
    d.note("modifier", adjective.en, noun.en)
    d.note("compared", noun.en, other.en)
    if other is noun:
        left, right = g.thing(d, noun, "this", True), g.thing(d, noun, "that", True)
    else:
        left, right = (g.thing(d, n, d.pick(("the", "owned", "this")), True) for n in (noun, other))
    return _compared(d, left, right, adjective)


def compare_people(d: Draw) -> Pair:
    """``Minh is not as tall as his father.``"""
    subject = g.person(d)
    other = d.until(
        d.pick((g.name, g.kin, g.common_person)),
        lambda someone: someone.agr == "3" and someone.key != subject.key,
    )
    trait = d.pick(_TRAITS)
    d.note("quality", subject.key, trait.en)
    return _compared(d, subject, other, trait)


def superlative(d: Draw) -> Pair:
    """``This is the oldest car that I have ever seen.``, ``Lan is the kindest person I know.``"""
    if d.chance(0.4):
        subject = _individual(d)
        trait = d.pick(_TRAITS)
        d.note("quality", subject.key, trait.en)
        verb = t.be(subject.agr)
        place, vi = d.pick(_CIRCLES)
        en = f"{subject.en} {verb} the {trait.most} person in {place}."
        return en, f"{subject.vi} là người {trait.vi} nhất trong {vi}."
    noun, adjective = g.described(d, graded=True)
    d.note("modifier", adjective.en, noun.en)
    subject = g.pronoun(d)
    word, vi_word = d.pick((("this", "đây"), ("that", "đó")))
    met, vi_met = next((known for tag, known in _MET if tag in noun.tags), ("seen", "thấy"))
    have = t.have(subject.agr)
    en = f"{word} is the {adjective.most} {noun.en} that {subject.en} {have} ever {met}."
    return en, f"{vi_word} là {noun.vi} {adjective.vi} nhất mà {subject.vi} từng {vi_met}."


_MET = (
    ("fruit", ("eaten", "ăn")),
    ("snack", ("eaten", "ăn")),
    ("read", ("read", "đọc")),
    ("readable", ("read", "đọc")),
    ("song", ("heard", "nghe")),
    ("film", ("watched", "xem")),
    ("game", ("played", "chơi")),
    ("doable", ("done", "làm")),
    ("solvable", ("had", "gặp")),
    ("learnable", ("learned", "học")),
    ("answerable", ("heard", "nghe")),
)
_CIRCLES = (
    ("the class", "lớp"),
    ("the family", "gia đình"),
    ("the village", "làng"),
    ("the office", "văn phòng"),
    ("the group", "nhóm"),
)


ALL: tuple[tuple[Construction, float], ...] = (
    (job, 1.0),
    (thing_quality, 1.6),
    (mass_quality, 0.3),
    (person_quality, 1.5),
    (compare_things, 1.2),
    (compare_people, 0.8),
    (superlative, 1.0),
)
