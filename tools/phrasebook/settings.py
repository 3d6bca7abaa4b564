"""Weather, clock times, dates, ages, prices, amounts, countries and languages."""

from tools.phrasebook import grammar as g
from tools.phrasebook import tenses as t
from tools.phrasebook.english import with_article
from tools.phrasebook.grammar import Action, Draw, Pair
from tools.phrasebook.lexicon import Verb, lexicon
from tools.phrasebook.numbers import (
    WEEKDAYS,
    clock,
    date,
    english_number,
    vietnamese_number,
)
from tools.phrasebook.statements import Construction, says, timed

LEX = lexicon()
_WEATHER = (("hot", "nóng"), ("cold", "lạnh"), ("cool", "mát"), ("sunny", "nắng"), ("warm", "ấm"))
_PLACES = LEX.cities + tuple(row[:2] for row in LEX.countries)


def weather(d: Draw) -> Pair:
    """``It was very cold in Hue yesterday.``, ``It is about to rain.``"""
    city, vi_city = d.pick(LEX.cities)
    kind = d.number(0, 5)
    if kind == 0:
        verb, vi = d.pick((("rain", "mưa"), ("snow", "có tuyết")))
        en = f"it will {verb} in {city}"
        d.note("weather", city, verb)
        return says(timed(d, (en, f"trời sẽ {vi} ở {vi_city}"), "future", True))
    if kind == 1:
        d.note("weather", city, "rained")
        return says(timed(d, (f"it rained in {city}", f"trời đã mưa ở {vi_city}"), "past", True))
    adjective, vi = d.pick(_WEATHER)
    d.note("weather", city, adjective)
    if kind == 2:
        return f"is it {adjective} in {city}?", f"trời ở {vi_city} có {vi} không?"
    if kind == 3:
        pair = f"it was very {adjective} in {city}", f"trời ở {vi_city} rất {vi}"
        return says(timed(d, pair, "past", True))
    degree, pattern = d.pick((("very", "rất {}"), ("quite", "khá {}"), ("not", "không {}")))
    return f"it is {degree} {adjective} in {city}.", f"trời ở {vi_city} {pattern.format(vi)}."


_EVENTS = (
    ("the train", "tàu", "leave", "khởi hành"),
    ("the bus", "xe buýt", "leave", "khởi hành"),
    ("the lesson", "buổi học", "begin", "bắt đầu"),
    ("the film", "bộ phim", "begin", "bắt đầu"),
    ("the party", "bữa tiệc", "begin", "bắt đầu"),
    ("the meeting", "cuộc họp", "begin", "bắt đầu"),
    ("the meeting", "cuộc họp", "end", "kết thúc"),
    ("the party", "bữa tiệc", "end", "kết thúc"),
)


def clock_time(d: Draw) -> Pair:
    """``It is half past seven.``, ``The train will leave at ten twenty.``"""
    en, vi = clock(d.number(1, 12), d.pick((0, 0, 10, 15, 20, 25, 30, 30, 35, 40, 45, 50)))
    kind = d.number(0, 9)
    if kind == 0:
        return f"it is {en} now.", f"bây giờ là {vi}."
    what, vi_what, verb, vi_verb = d.pick(_EVENTS)
    d.note("clock", what, en)
    if kind < 3:
        return f"will {what} {verb} at {en}?", f"{vi_what} sẽ {vi_verb} lúc {vi} phải không?"
    if kind < 6:
        return f"{what} will {verb} at {en}.", f"{vi_what} sẽ {vi_verb} lúc {vi}."
    day, vi_day = d.pick(WEEKDAYS)
    d.note("event day", what, day)
    en = f"{what} will {verb} at {en} on {day}."
    return en, f"{vi_what} sẽ {vi_verb} lúc {vi} vào {vi_day}."


_OCCASIONS = (
    ("the meeting", "cuộc họp"),
    ("the party", "bữa tiệc"),
    ("the wedding", "đám cưới"),
    ("the exam", "kỳ thi"),
    ("the festival", "lễ hội"),
)


def dates(d: Draw) -> Pair:
    """``The wedding is on March 15.``, ``Today is Monday, May 5.``"""
    month, day = d.number(1, 12), d.number(1, 28)
    year = d.number(1975, 2004)
    kind = d.number(0, 4)
    if kind == 0:
        weekday, vi_weekday = d.pick(WEEKDAYS)
        word, vi = d.pick((("today", "hôm nay"), ("tomorrow", "ngày mai")))
        en_date, vi_date = date(day, month)
        d.note("date", weekday, str(day))
        return f"{word} is {weekday}, {en_date}.", f"{vi} là {vi_weekday}, {vi_date}."
    if kind == 1:
        occasion, vi = d.pick(_OCCASIONS)
        en_date, vi_date = date(day, month)
        d.note("date", occasion, f"{month}.{day}")
        return f"{occasion} is on {en_date}.", f"{vi} diễn ra vào {vi_date}."
    subject = d.pick((g.pronoun, g.name))(d)
    d.note("born", subject.key, str(year))
    if kind == 2:
        en_date, vi_date = date(day, month, year)
        en = f"{subject.en} {t.was(subject.agr)} born on {en_date}."
        return en, f"{subject.vi} sinh {vi_date}."
    city, vi_city = d.pick(_PLACES)
    d.note("city", city, str(year))
    if kind == 3:
        en = f"{subject.en} {t.was(subject.agr)} born in {city} in {year}."
        return en, f"{subject.vi} sinh ra ở {vi_city} vào năm {year}."
    en = f"{subject.en} moved to {city} in {year}."
    return en, f"{subject.vi} đã chuyển đến {vi_city} vào năm {year}."


_PRICED = tuple(
    n
    for n in LEX.things
    if n.tags & {"read", "dev", "access", "cloth", "ware", "toy", "fruit", "furn", "tool", "snack"}
)


def price(d: Draw) -> Pair:
    """``This shirt costs two hundred and fifty thousand dong.``"""
    noun = d.pick(_PRICED)
    item = g.thing(d, noun, d.pick(("the", "this", "that")))
    costly = bool(noun.tags & {"dev", "furn", "instr", "cloth", "access"})
    if not costly or d.chance(0.4):
        value = d.number(20, 199) * 5 if costly else d.number(5, 99)
        amount, vi_amount = english_number(value), vietnamese_number(value)
        en, vi = f"{amount} thousand dong", f"{vi_amount} nghìn đồng"
    else:
        value = d.number(11, 99) if d.chance(0.7) else d.number(100, 999)
        en, vi = f"{english_number(value)} dollars", f"{vietnamese_number(value)} đô la"
    d.note("amount", noun.en, str(value))
    return f"{item.en} costs {en}.", f"{item.vi} giá {vi}."


_COUNTED = (
    ("this book has {} pages", "quyển sách này có {} trang"),
    ("that novel has {} pages", "quyển tiểu thuyết đó có {} trang"),
    ("the school has {} pupils", "ngôi trường có {} học sinh"),
    ("this hotel has {} rooms", "khách sạn này có {} phòng"),
    ("the factory has {} workers", "nhà máy có {} công nhân"),
    ("the village has {} houses", "ngôi làng có {} ngôi nhà"),
    ("there are {} students in the class", "có {} sinh viên trong lớp"),
    ("there are {} people at the party", "có {} người ở bữa tiệc"),
    ("the bridge is {} meters long", "cây cầu dài {} mét"),
    ("the mountain is {} meters high", "ngọn núi cao {} mét"),
)


def amount(d: Draw) -> Pair:
    """``That novel has two hundred and five pages.``"""
    en, vi = d.pick(_COUNTED)
    value = d.number(11, 99) if d.chance(0.5) else d.number(100, 999)
    if d.chance(0.1):
        value = d.number(1, 9) * 100 + d.number(1, 9)
    d.note("amount", en, str(value))
    return says((en.format(english_number(value)), vi.format(vietnamese_number(value))))


_AGES = {
    "grandmother": (60, 99),
    "grandfather": (60, 99),
    "mother": (40, 79),
    "father": (40, 79),
    "wife": (20, 69),
    "husband": (20, 69),
    "son": (2, 30),
    "daughter": (2, 30),
}


def age(d: Draw) -> Pair:
    """``His grandmother is eighty-one years old.``"""
    subject = d.pick((g.pronoun, g.name, g.kin, g.kin))(d)
    if subject.key == "parents":
        d.combinations.clear()
        return age(d)
    adult = subject.key.startswith("M") and " " in subject.key
    low, high = (30, 79) if adult else _AGES.get(subject.key, (11, 59))
    value = d.number(low, high)
    d.note("age", subject.key, str(value))
    kind = d.number(0, 3)
    years, vi = f"{english_number(value)} years old", f"{vietnamese_number(value)} tuổi"
    if kind == 0:
        return f"{subject.en} will be {years} next year.", f"năm sau {subject.vi} sẽ {vi}."
    if kind == 1:
        return f"{subject.en} {t.be(subject.agr)} not {years}.", f"{subject.vi} không phải {vi}."
    return f"{subject.en} {t.be(subject.agr)} {years}.", f"{subject.vi} {vi}."


def order(d: Draw) -> Pair:
    """``I would like two cups of coffee, please.``"""
    masses = [m for m in LEX.masses if m.tags & g.MEASURES.keys()]
    amount_, vi = g.measured(d, d.pick(masses))
    kind = d.number(0, 4)
    if kind == 0:
        return f"{amount_}, please.", f"cho tôi {vi}."
    if kind == 1:
        return f"we need {amount_}.", f"chúng tôi cần {vi}."
    if kind == 2:
        subject = g.pronoun(d)
        return says(
            timed(d, (f"{subject.en} bought {amount_}", f"{subject.vi} đã mua {vi}"), "past")
        )
    if kind == 3:
        return f"may I have {amount_}?", f"tôi có thể lấy {vi} không?"
    return f"I would like {amount_}.", f"tôi muốn {vi}."


def country(d: Draw) -> Pair:
    """``She comes from Japan.``, ``They can speak French.``"""
    subject = g.person(d)
    land, vi_land, people, vi_people, vi_language = d.pick(LEX.countries)
    d.note("country", subject.key, land)
    en, vi, s = subject.en, subject.vi, "s" if subject.agr == "3" else ""
    patterns = (
        (f"{en} come{s} from {land}.", f"{vi} đến từ {vi_land}."),
        (f"{en} {t.be(subject.agr)} {people}.", f"{vi} là {vi_people}."),
        (f"{en} {t.be(subject.agr)} not {people}.", f"{vi} không phải là {vi_people}."),
        (f"{en} can speak {people}.", f"{vi} có thể nói {vi_language}."),
        (f"{en} speak{s} {people} very well.", f"{vi} nói {vi_language} rất giỏi."),
        (f"{en} {t.be(subject.agr)} learning {people}.", f"{vi} đang học {vi_language}."),
    )
    return d.pick(patterns)


_TRAVEL = (
    Verb("travel to", "traveled to", "traveled to", "đi du lịch", frozenset(), "", ()),
    Verb("live in", "lived in", "lived in", "sống ở", frozenset(), "", ()),
    Verb("work in", "worked in", "worked in", "làm việc ở", frozenset(), "", ()),
    Verb("study in", "studied in", "studied in", "học ở", frozenset(), "", ()),
)


def travel(d: Draw) -> Pair:
    """``He used to live in Da Nang.``, ``We traveled to Hue last year.``"""
    subject = g.person(d)
    verb = d.pick(_TRAVEL)
    city, vi = d.pick(_PLACES)
    d.note("object", verb.en, city)
    tense = d.pick(("past", "future", "want", "used", "never", "progressive", "plan"))
    pair = t.clause(d, subject, Action(verb, city, f"{verb.vi} {vi}"), tense)
    return says(timed(d, pair, tense) if tense in ("past", "future") else pair)


_PLAIN = frozenset(
    [
        "new",
        "old",
        "light",
        "cheap",
        "useful",
        "famous",
        "important",
        "fresh",
        "quiet",
        "thick",
        "thin",
    ]
)


def exclamation(d: Draw) -> Pair:
    """``What a beautiful dress!``"""
    noun, adjective = g.described(d, graded=True)
    while adjective.en in _PLAIN:
        noun, adjective = g.described(d, graded=True)
    d.note("modifier", adjective.en, noun.en)
    en = f"what {with_article(f'{adjective.en} {noun.en}')}!"
    return en, f"{noun.vi} {adjective.vi} quá!"


ALL: tuple[tuple[Construction, float], ...] = (
    (weather, 0.6),
    (clock_time, 0.7),
    (dates, 1.4),
    (price, 1.2),
    (amount, 0.9),
    (age, 0.9),
    (order, 0.7),
    (country, 0.9),
    (travel, 0.9),
    (exclamation, 0.3),
)
