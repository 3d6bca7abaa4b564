"""How people and animals do things, gifts, outings and requests."""

from tools.phrasebook import grammar as g
from tools.phrasebook import tenses as t
from tools.phrasebook.grammar import Action, Draw, Pair
from tools.phrasebook.lexicon import Verb, lexicon
from tools.phrasebook.statements import WHOLESOME, Construction, says, timed

LEX = lexicon()

_MANNERS = (
    (
        "drive",
        "drove",
        "lái xe",
        (("carefully", "cẩn thận"), ("fast", "nhanh"), ("slowly", "chậm")),
    ),
    ("run", "ran", "chạy", (("fast", "nhanh"), ("slowly", "chậm"))),
    ("walk", "walked", "đi", (("quickly", "nhanh"), ("slowly", "chậm"))),
    ("eat", "ate", "ăn", (("quickly", "nhanh"), ("slowly", "chậm"))),
    ("work", "worked", "làm việc", (("hard", "chăm chỉ"), ("carefully", "cẩn thận"))),
    ("study", "studied", "học", (("hard", "chăm chỉ"), ("well", "giỏi"))),
    ("talk", "talked", "nói chuyện", (("loudly", "to"), ("politely", "lịch sự"))),
    ("laugh", "laughed", "cười", (("loudly", "to"), ("happily", "vui vẻ"))),
    ("sing", "sang", "hát", (("beautifully", "hay"), ("loudly", "to"))),
    ("swim", "swam", "bơi", (("well", "giỏi"), ("fast", "nhanh"))),
)


_EXCESSIVE = frozenset(("fast", "slowly", "quickly", "loudly"))


def manner(d: Draw) -> Pair:
    """``Mr. Son drives very carefully.``"""
    subject = g.person(d)
    base, before, vi, adverbs = d.pick(_MANNERS)
    verb = Verb(base, before, before, vi, frozenset(), "", ())
    how, vi_how = d.pick(adverbs)
    d.note("manner", base, how)
    degrees = (("very", "rất"), ("quite", "khá"), ("too", "quá"))
    degree, vi_degree = d.pick(degrees if how in _EXCESSIVE else degrees[:2])
    tense = d.pick(("present", "present", "should", "past"))
    if tense == "should":
        degree = vi_degree = ""
    en, vi_clause = t.clause(d, subject, Action(verb, "", vi), tense)
    pair = (
        " ".join(f"{en} {degree} {how}".split()),
        " ".join(f"{vi_clause} {vi_degree} {vi_how}".split()),
    )
    return says(timed(d, pair, "past") if tense == "past" else pair)


_BEASTS = tuple(n for n in LEX.things if "animal" in n.tags and n.en != "butterfly")
_HUNTERS = tuple(
    n
    for n in _BEASTS
    if n.en in ["cat", "dog", "goose", "tiger", "lion", "bear", "wolf", "fox", "snake"]
)
_HUNTED = tuple(n for n in _BEASTS if n not in _HUNTERS and n.en not in ("elephant", "crocodile"))
_BEAST_ACTIONS = tuple(
    Verb(en, en, part, vi, frozenset(), "", ())
    for en, part, vi in (
        ("sleep", "slept", "ngủ"),
        ("rest", "rested", "nghỉ ngơi"),
        ("play", "played", "chơi đùa"),
        ("eat", "eaten", "ăn"),
        ("drink water", "drunk water", "uống nước"),
    )
)
_OUTDOORS = (("under the tree", "dưới gốc cây"), ("near the river", "gần sông"))
_WILD_PLACES = (*_OUTDOORS, ("in the forest", "trong rừng"), ("at the zoo", "ở sở thú"))
_HOME_PLACES = (
    *_OUTDOORS,
    ("behind the house", "sau nhà"),
    ("in front of the house", "trước nhà"),
    ("in the garden", "trong vườn"),
    ("in the yard", "trong sân"),
)


def animal(d: Draw) -> Pair:
    """``Two dogs are chasing the hen in the garden.``"""
    chasing = d.chance(0.4)
    beast = d.pick(_HUNTERS if chasing else _BEASTS)
    subject = g.thing(d, beast, d.pick(("a", "the", "the", "this", "owned", "count", "those")))
    if chasing:
        other = d.pick(_HUNTED)
        verb = next(v for v in LEX.verbs if v.en == "chase")
        goal = g.thing(d, other, d.pick(("a", "the", "count")), plain=True)
        d.note("chase", beast.en, other.en)
        action = Action(verb, goal.en, f"{verb.vi} {goal.vi}")
    else:
        verb = d.pick(_BEAST_ACTIONS)
        action = Action(verb, "", verb.vi)
    en, vi = t.clause(d, subject, action, d.pick(("progressive", "progressive", "still")))
    if d.chance(0.7):
        place, vi_place = d.pick(_WILD_PLACES if "wild" in beast.tags else _HOME_PLACES)
        d.note("animal place", beast.en, place)
        en, vi = f"{en} {place}", f"{vi} {vi_place}"
    return en + ".", vi + "."


_GIVING = (
    (
        ("give", "gave", "given"),
        "tặng {r} {o}",
        ("gift", "flower", "toy", "read", "access", "instr"),
    ),
    (("send", "sent", "sent"), "gửi cho {r} {o}", ("send",)),
    (("lend", "lent", "lent"), "cho {r} mượn {o}", ("read", "veh", "tool")),
    (("show", "showed", "shown"), "cho {r} xem {o}", ("pic", "dev", "cloth", "animal")),
    (("buy", "bought", "bought"), "mua cho {r} {o}", ("fruit", "cloth", "toy", "snack")),
)
_GIVEN = {
    forms[0]: tuple(n for n in LEX.things if n.tags & set(tags)) for forms, _, tags in _GIVING
}


def giving(d: Draw) -> Pair:
    """``My friend gave me a gift yesterday.``"""
    subject = g.person(d)
    forms, pattern, _ = d.pick(_GIVING)
    receiver = g.other_person(d, subject)
    noun = d.pick(_GIVEN[forms[0]])
    d.note("object", forms[0], noun.en)
    item = g.thing(d, noun, d.pick(("a", "a", "count", "this", "that")))
    verb = Verb(*forms, "", frozenset(), "", ())
    action = Action(verb, f"{receiver.obj} {item.en}", pattern.format(r=receiver.vi, o=item.vi))
    tense = d.pick(("past", "future", "want", "should", "just", "about", "already"))
    pair = t.clause(d, subject, action, tense)
    return says(timed(d, pair, tense) if tense in ("past", "future") else pair)


_OUTINGS = tuple(p for p in LEX.places if p.groups & {"public", "out"})


def outing(d: Draw) -> Pair:
    """``They go to the market by bus every morning.``"""
    subject = g.person(d)
    place = d.pick(_OUTINGS)
    verb = Verb("go", "went", "gone", "", frozenset(), "", ())
    tense = d.pick(("present", "progressive", "past", "future", "want", "never", "usually"))
    d.note("outing", place.en, tense)
    en, vi = t.clause(d, subject, Action(verb, f"to {place.en}", place.going), tense)
    if "public" in place.groups and d.chance(0.4):
        by, vi_by = d.pick(VEHICLES)
        d.note("vehicle", place.en, by)
        en, vi = f"{en} by {by}", f"{vi} bằng {vi_by}"
    kind = {"present": "habit", "past": "past", "future": "future"}.get(tense)
    return says(timed(d, (en, vi), kind) if kind else (en, vi))


VEHICLES = (
    ("bus", "xe buýt"),
    ("taxi", "taxi"),
    ("train", "tàu hỏa"),
    ("bicycle", "xe đạp"),
    ("motorbike", "xe máy"),
    ("car", "ô tô"),
)


def _command(d: Draw) -> Action:
    """An action one may be asked to do."""
    return g.act(d, g.PRONOUNS[1], 0.5, g.wanted)


def request(d: Draw) -> Pair:
    """``Please open the window.``, ``Remember to feed the dog.``"""
    action = _command(d)
    lead, vi_lead = d.pick(
        (
            ("please", "hãy"),
            ("please do not", "xin đừng"),
            ("do not", "đừng"),
            ("let us", "chúng ta hãy"),
            ("remember to", "hãy nhớ"),
            ("do not forget to", "đừng quên"),
            ("never", "đừng bao giờ"),
        )
    )
    if lead == "let us" and action.object.split()[-1:] in (["me"], ["us"]):
        d.combinations.clear()
        return request(d)
    if action.verb.en in WHOLESOME and vi_lead in ("xin đừng", "đừng", "đừng bao giờ"):
        d.combinations.clear()
        return request(d)
    d.note("tense", action.verb.en, lead)
    en = " ".join(f"{lead} {action.verb.en} {action.object}".split())
    return en + ".", f"{vi_lead} {action.vi}."


ALL: tuple[tuple[Construction, float], ...] = (
    (manner, 0.8),
    (animal, 1.0),
    (giving, 1.2),
    (outing, 1.2),
    (request, 1.3),
)
