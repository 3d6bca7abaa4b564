"""Questions with yes or no for an answer, and questions with a question word."""

from tools.phrasebook import grammar as g
from tools.phrasebook import tenses as t
from tools.phrasebook.activities import VEHICLES
from tools.phrasebook.grammar import Action, Draw, Pair, Phrase
from tools.phrasebook.lexicon import Noun, lexicon
from tools.phrasebook.statements import Construction, clear, placed, when

LEX = lexicon()


def _asked(d: Draw) -> Phrase:
    """Somebody a question may be about (one rarely asks about oneself)."""
    return d.until(g.person, lambda someone: someone.key not in ("I", "we"))


def _tail(action: Action) -> str:
    return f" {action.object}" if action.object else ""


def do_you(d: Draw) -> Pair:
    """``Does she like cats?``, ``Do they often play tennis?``"""
    subject = _asked(d)
    if d.chance(0.5):
        action = g.transitive(d, subject, lambda verb: verb.stative)
        often = False
    else:
        action, often = g.act(d, subject, 0.5), True
    d.note("subject", subject.key, "do")
    adverb, vi_adverb = ("often ", "hay ") if often else ("", "")
    en = f"{t.do(subject.agr)} {subject.en} {adverb}{action.verb.en}{_tail(action)}?"
    return en, f"{subject.vi} có {vi_adverb}{action.vi} không?"


def did_you(d: Draw) -> Pair:
    """``Did he wash the car yesterday?``, ``Will he wash the car tomorrow?``"""
    subject = _asked(d)
    action = g.act(d, subject, 0.4, g.wanted)
    word, kind = d.pick((("did", "past"), ("will", "future")))
    d.note("subject", subject.key, word)
    d.note("tense", action.verb.en, word)
    time, vi_time = when(d, kind, True)
    en = f"{word} {subject.en} {action.verb.en}{_tail(action)} {time}?"
    return en, f"{vi_time} {subject.vi} có {action.vi} không?"


def have_you(d: Draw) -> Pair:
    """``Have you read the letter yet?``, ``Has she ever eaten durian?``"""
    subject = _asked(d)
    action = g.act(d, subject, 0.4)
    if action.verb.en in t.ENDLESS:
        d.combinations.clear()
        return have_you(d)
    d.note("tense", action.verb.en, "have")
    head = f"{t.have(subject.agr)} {subject.en}"
    if d.chance(0.5):
        en = f"{head} {action.verb.participle}{_tail(action)} yet?"
        return en, f"{subject.vi} đã {action.vi} chưa?"
    en = f"{head} ever {action.verb.participle}{_tail(action)}?"
    return en, f"{subject.vi} đã bao giờ {action.vi} chưa?"


def is_doing(d: Draw) -> Pair:
    """``Are they watching a film?``"""
    subject = _asked(d)
    action = g.act(d, subject, 0.3, g.ongoing)
    d.note("subject", subject.key, "is doing")
    en = f"{t.be(subject.agr)} {subject.en} {action.verb.ing}{_tail(action)}"
    en, vi = placed(d, (en, f"{subject.vi} có đang {action.vi}"), action.verb, 0.25)
    return en + "?", vi + " không?"


def modal_question(d: Draw) -> Pair:
    """``Can you drive the truck?``, ``Does she want to see a doctor?``"""
    subject = g.person(d)
    action = g.act(d, subject, 0.4, g.wanted)
    kind = d.pick(("can", "should", "want", "need", "have"))
    d.note("subject", subject.key, f"{kind}?")
    d.note("tense", action.verb.en, f"{kind}?")
    vi = {"can": "thể", "should": "nên", "want": "muốn", "need": "cần", "have": "phải"}[kind]
    if kind in ("can", "should"):
        en = f"{kind} {subject.en} {action.verb.en}{_tail(action)}?"
    else:
        en = f"{t.do(subject.agr)} {subject.en} {kind} to {action.verb.en}{_tail(action)}?"
    return en, f"{subject.vi} có {vi} {action.vi} không?"


def who(d: Draw) -> Pair:
    """``Who is cooking the beef?``"""
    nobody = Phrase("who", "ai", "3", "whom", "who")
    action = g.act(d, None, 0.4)
    tense = d.pick(("progressive", "past", "future", "can", "want", "must", "just"))
    if tense == "past":
        time, vi_time = when(d, "past")
        en, vi = t.clause(d, nobody, action, tense)
        return f"{en} {time}?", f"{vi} {vi_time}?"
    en, vi = t.clause(d, nobody, action, tense)
    return en + "?", vi + "?"


_WHAT = tuple(
    v for v in LEX.verbs if not v.tags & g.PERSON_TAGS and "{" not in v.vi and "e" not in v.flags
)


def what(d: Draw) -> Pair:
    """``What is she reading?``, ``What did they buy yesterday?``"""
    subject = _asked(d)
    verb = d.pick(_WHAT)
    d.note("subject", subject.key, "what")
    kind = d.pick(("now", "past", "future", "want", "do"))
    d.note("what", verb.en, kind)
    who_, vi = subject.en, subject.vi
    if kind == "do":
        time, vi_time = when(d, past := d.pick(("past", "future")), True)
        word, particle = ("did", "đã") if past == "past" else ("will", "sẽ")
        return f"what {word} {who_} do {time}?", f"{vi_time} {vi} {particle} làm gì?"
    if kind == "now" and not verb.stative:
        return f"what {t.be(subject.agr)} {who_} {verb.ing}?", f"{vi} đang {verb.vi} gì?"
    if kind in ("past", "future") and not verb.stative:
        word, particle = ("did", "đã") if kind == "past" else ("will", "sẽ")
        time, vi_time = when(d, kind, True)
        return f"what {word} {who_} {verb.en} {time}?", f"{vi_time} {vi} {particle} {verb.vi} gì?"
    if kind == "want":
        return f"what {t.do(subject.agr)} {who_} want to {verb.en}?", f"{vi} muốn {verb.vi} gì?"
    return f"what {t.do(subject.agr)} {who_} {verb.en}?", f"{vi} {verb.vi} gì?"


_ASKABLE = tuple(v for v in LEX.actions if v.groups != ("",))


_LOST = tuple(n for n in LEX.things if n.tags & {"small", "animal", "access", "veh"})


def where(d: Draw) -> Pair:
    """``Where are my keys?``, ``Where does your mother work?``"""
    if d.chance(0.5):
        noun = d.pick(_LOST)
        phrase = g.thing(d, noun, d.pick(("the", "owned", "owned", "plurals")))
        return f"where {t.be(phrase.agr)} {phrase.en}?", f"{phrase.vi} ở đâu?"
    subject = _asked(d)
    d.note("subject", subject.key, "where")
    if d.chance(0.3):
        return f"where {t.be(subject.agr)} {subject.en}?", f"{subject.vi} ở đâu?"
    verb = d.pick(_ASKABLE)
    d.note("tense", verb.en, "where")
    if d.chance(0.5):
        return f"where {t.be(subject.agr)} {subject.en} {verb.ing}?", (
            f"{subject.vi} đang {verb.vi} ở đâu?"
        )
    en = f"where {t.do(subject.agr)} {subject.en} usually {verb.en}?"
    return en, f"{subject.vi} thường {verb.vi} ở đâu?"


def when_question(d: Draw) -> Pair:
    """``When will you sell the car?``, ``When did she sign the contract?``"""
    subject = _asked(d)
    action = g.act(d, subject, 0.4, g.wanted)
    d.note("subject", subject.key, "when")
    d.note("tense", action.verb.en, "when")
    if d.chance(0.5):
        en = f"when will {subject.en} {action.verb.en}{_tail(action)}?"
        return en, f"khi nào {subject.vi} sẽ {action.vi}?"
    en = f"when did {subject.en} {action.verb.en}{_tail(action)}?"
    return en, f"{subject.vi} đã {action.vi} khi nào?"


def why(d: Draw) -> Pair:
    """``Why do they hate snakes?``, ``Why did he sell the house?``"""
    subject = _asked(d)
    d.note("subject", subject.key, "why")
    roll = d.number(0, 3)
    if roll == 0:
        quality = d.pick([q for q in LEX.qualities if "state" in q.tags])
        d.note("why", subject.key, quality.en)
        return f"why {t.be(subject.agr)} {subject.en} so {quality.en}?", (
            f"tại sao {subject.vi} {quality.vi} thế?"
        )
    if roll == 1:
        action = g.transitive(d, subject, lambda verb: verb.stative)
        return f"why {t.do(subject.agr)} {subject.en} {action.verb.en}{_tail(action)}?", (
            f"tại sao {subject.vi} {action.vi}?"
        )
    action = g.act(d, subject, 0.4, g.wanted)
    if roll == 2:
        en = f"why did {subject.en} {action.verb.en}{_tail(action)}?"
        return en, f"tại sao {subject.vi} lại {action.vi}?"
    en = f"why {t.do(subject.agr)} {subject.en} want to {action.verb.en}{_tail(action)}?"
    return en, f"tại sao {subject.vi} muốn {action.vi}?"


def _sorted_nouns(*tags: str) -> tuple[Noun, ...]:
    return tuple(n for n in LEX.things if n.tags & set(tags))


_OWNABLE = _sorted_nouns("read", "access", "cloth", "dev", "veh", "toy", "tool", "pet", "ware")


_COLORED = _sorted_nouns("veh", "cloth", "access", "furn", "pet", "toy")
_PRICED = _sorted_nouns("buy", "veh", "pet", "farm")


def which(d: Draw) -> Pair:
    """``Which shirt do you like?``, ``Whose umbrella is this?``, ``What color is the car?``"""
    roll = d.number(0, 2)
    if roll == 0:
        noun = d.pick(_OWNABLE)
        subject = _asked(d)
        d.note("which", subject.key, noun.en)
        verb, vi = d.pick((("like", "thích"), ("need", "cần"), ("want to buy", "muốn mua")))
        d.note("which", verb, noun.en)
        return f"which {noun.en} {t.do(subject.agr)} {subject.en} {verb}?", (
            f"{subject.vi} {vi} {noun.vi} nào?"
        )
    if roll == 1:
        noun = d.pick(_OWNABLE)
        word, vi = d.pick((("this", "đây"), ("that", "đó")))
        d.note("whose", word, noun.en)
        return f"whose {noun.en} is {word}?", f"{vi} là {noun.vi} của ai?"
    noun = d.pick(_COLORED)
    phrase = g.thing(d, noun, d.pick(("the", "owned", "this", "that")), plain=True)
    d.note("color", phrase.en.split()[0], noun.en)
    return f"what color is {phrase.en}?", f"{phrase.vi} màu gì?"


def how_many(d: Draw) -> Pair:
    """``How many books do you have?``, ``How old is your son?``, ``How much is the lamp?``"""
    roll = d.number(0, 4)
    if roll == 0:
        subject = g.kin(d) if d.chance(0.5) else _asked(d)
        d.note("subject", subject.key, "how old")
        return f"how old {t.be(subject.agr)} {subject.en}?", f"{subject.vi} bao nhiêu tuổi?"
    noun = d.pick(_PRICED)
    if roll < 3:
        phrase = g.thing(d, noun, d.pick(("the", "this", "that", "these")))
        d.note("price", phrase.en.split()[0], noun.en)
        en = f"how much {'is' if phrase.agr == '3' else 'are'} {phrase.en}?"
        return en, f"{phrase.vi} giá bao nhiêu?"
    subject = _asked(d)
    verb, vi = d.pick((("have", "có"), ("need", "cần"), ("want to buy", "muốn mua")))
    d.note("how many", subject.key, noun.en)
    return f"how many {noun.plural} {t.do(subject.agr)} {subject.en} {verb}?", (
        f"{subject.vi} {vi} bao nhiêu {noun.vi}?"
    )


_PUBLIC = tuple(p for p in LEX.places if "public" in p.groups)


def travel_question(d: Draw) -> Pair:
    """``How do you go to the museum?``, ``Do you go to the zoo by bus?``"""
    subject = _asked(d)
    place = d.pick(_PUBLIC)
    d.note("travel", subject.key, place.en)
    if d.chance(0.5):
        en = f"how {t.do(subject.agr)} {subject.en} go to {place.en}?"
        return en, f"{subject.vi} {place.going} bằng phương tiện gì?"
    by, vi = d.pick(VEHICLES)
    d.note("vehicle", place.en, by)
    en = f"{t.do(subject.agr)} {subject.en} go to {place.en} by {by}?"
    return en, f"{subject.vi} có {place.going} bằng {vi} không?"


assert all(clear(v) or not v.stative for v in LEX.verbs)

ALL: tuple[tuple[Construction, float], ...] = (
    (do_you, 1.2),
    (did_you, 1.2),
    (have_you, 1.2),
    (is_doing, 1.0),
    (modal_question, 1.3),
    (who, 1.0),
    (what, 1.2),
    (where, 1.0),
    (when_question, 1.0),
    (why, 1.2),
    (which, 1.0),
    (how_many, 1.1),
    (travel_question, 0.5),
)
