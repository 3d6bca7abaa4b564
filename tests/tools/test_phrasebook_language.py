"""The phrasebook's parts and hand-checked sentences: numbers, forms, tenses, phrases."""

from collections.abc import Callable

import pytest

from tools.phrasebook import grammar as g
from tools.phrasebook import tenses as t
from tools.phrasebook.english import gerund, third_person, with_article
from tools.phrasebook.generate import generate
from tools.phrasebook.grammar import Action, Draw
from tools.phrasebook.lexicon import lexicon
from tools.phrasebook.numbers import clock, date, english_number, vietnamese_number

pytestmark = pytest.mark.extended
_DIGITS = ["không", "một", "hai", "ba", "bốn", "năm", "sáu", "bảy", "tám", "chín"]


def _reading(value: int) -> str:
    """Digit-by-digit rules, written apart from the package's."""
    if value < 10:
        return _DIGITS[value]
    text = f"{value:03d}"
    words = [] if text[0] == "0" else [_DIGITS[int(text[0])], "trăm"]
    tens, ones = text[1], text[2]
    if tens == "0":
        words += [] if ones == "0" else ["linh", _DIGITS[int(ones)]]
        return " ".join(words)
    words += ["mười"] if tens == "1" else [_DIGITS[int(tens)], "mươi"]
    special = {"0": "", "5": "lăm", "1": "một" if tens == "1" else "mốt"}
    words.append(special.get(ones, _DIGITS[int(ones)]))
    return " ".join(word for word in words if word)


def test_vietnamese_numbers_against_an_independent_reading() -> None:
    for value in range(1000):
        assert vietnamese_number(value) == _reading(value)
    assert len({english_number(value) for value in range(1000)}) == 1000
    assert english_number(2_024) == "two thousand and twenty-four"
    assert vietnamese_number(15_005) == "mười lăm nghìn không trăm linh năm"
    for function in (english_number, vietnamese_number):
        for value in (-1, 1_000_000):
            with pytest.raises(ValueError, match="999,999"):
                function(value)


def test_dates_and_times() -> None:
    assert date(15, 3, 1998) == ("March 15, 1998", "ngày 15 tháng 3 năm 1998")
    assert date(1, 12) == ("December 1", "ngày 1 tháng 12")
    assert clock(7, 0) == ("seven o'clock", "bảy giờ")
    assert clock(5, 30) == ("half past five", "năm giờ rưỡi")
    assert clock(1, 15) == ("a quarter past one", "một giờ mười lăm phút")
    assert clock(10, 45) == ("ten forty-five", "mười giờ bốn mươi lăm phút")


@pytest.mark.parametrize(
    ("function", "forms"),
    [
        (third_person, "watch:watches, go home:goes home, cry:cries"),
        (gerund, "see:seeing, write:writing, swim:swimming, get up:getting up"),
        (with_article, "apple:an apple, useful pen:a useful pen, hour:an hour"),
    ],
)
def test_english_forms(function: Callable[[str], str], forms: str) -> None:
    for pair in forms.split(", "):
        word, form = pair.split(":")
        assert function(word) == form


def test_plurals() -> None:
    plurals = {"mouse": "mice", "wolf": "wolves", "knife": "knives", "box": "boxes", "key": "keys"}
    plurals |= {"goose": "geese", "dictionary": "dictionaries", "tomato": "tomatoes"}
    assert {n.en: n.plural for n in lexicon().things if n.en in plurals} == plurals


GOLDEN = {
    "He did not stay at home last Thursday.": "Anh ấy đã không ở nhà vào thứ năm tuần trước.",
    "He does not need to take medicine.": "Anh ấy không cần uống thuốc.",
    "That is Mrs. Nga's problem.": "Đó là vấn đề của bà Nga.",
    "Miss Hanh often eats dinner with Mrs. Hoa.": "Cô Hạnh hay ăn tối với bà Hoa.",
    "Have they done homework yet?": "Họ đã làm bài tập về nhà chưa?",
    "She walks quite quickly.": "Cô ấy đi khá nhanh.",
    "Does the guest have a goat?": "Vị khách có dê không?",
    "Who wants to write that story?": "Ai muốn viết câu chuyện đó?",
    "Last week, you bought a kilo of sugar.": "Tuần trước bạn đã mua một cân đường.",
    "It is nine o'clock now.": "Bây giờ là chín giờ.",
    "Where is Minh eating lunch?": "Minh đang ăn trưa ở đâu?",
    "The durians that Lan ate are not fresh.": "Những quả sầu riêng mà Lan đã ăn không tươi.",
    "If you are hungry, you should not dance.": "Nếu bạn đói thì bạn không nên nhảy múa.",
    "The factory has two hundred and two workers.": "Nhà máy có hai trăm linh hai công nhân.",
}


def test_golden_sentences() -> None:
    """Pairs written out and checked by hand, over all constructions."""
    known = {
        sentence.english: sentence.vietnamese for rows in generate().values() for sentence in rows
    }
    assert {en: known.get(en) for en in GOLDEN} == GOLDEN


_SHE, _THEY = g.PRONOUNS[3], g.PRONOUNS[5]


@pytest.mark.parametrize(
    ("tense", "english", "vietnamese"),
    [
        ("present", "she eats the apple", "cô ấy ăn quả táo"),
        ("past", "she ate the apple", "cô ấy đã ăn quả táo"),
        ("future", "she will eat the apple", "cô ấy sẽ ăn quả táo"),
        ("just", "she has just eaten the apple", "cô ấy vừa mới ăn quả táo"),
        ("not yet", "she has not eaten the apple yet", "cô ấy chưa ăn quả táo"),
        ("not present", "she does not eat the apple", "cô ấy không ăn quả táo"),
        ("can", "she can eat the apple", "cô ấy có thể ăn quả táo"),
        ("should", "she should eat the apple", "cô ấy nên ăn quả táo"),
        ("not need", "she does not need to eat the apple", "cô ấy không cần ăn quả táo"),
        ("must not", "she must not eat the apple", "cô ấy không được ăn quả táo"),
        ("usually", "she usually eats the apple", "cô ấy thường ăn quả táo"),
    ],
)
def test_tenses(tense: str, english: str, vietnamese: str) -> None:
    verb = next(v for v in lexicon().verbs if v.en == "eat")
    apple = Action(verb, "the apple", "ăn quả táo")
    assert t.clause(Draw(0), _SHE, apple, tense) == (english, vietnamese)


def test_a_verb_around_its_object() -> None:
    verb = next(v for v in lexicon().verbs if v.en == "feed")
    action = Action(verb, "the cat", verb.vi.format("con mèo"))
    pair = t.clause(Draw(0), _THEY, action, "progressive")
    assert pair == ("they are feeding the cat", "họ đang cho con mèo ăn")
