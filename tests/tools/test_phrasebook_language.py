"""The phrasebook's parts and hand-checked sentences: numbers, forms, tenses, phrases."""

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


@pytest.mark.parametrize(
    ("value", "english", "vietnamese"),
    [
        (0, "zero", "không"),
        (15, "fifteen", "mười lăm"),
        (21, "twenty-one", "hai mươi mốt"),
        (105, "one hundred and five", "một trăm linh năm"),
        (999, "nine hundred and ninety-nine", "chín trăm chín mươi chín"),
        (1_005, "one thousand and five", "một nghìn không trăm linh năm"),
        (2_024, "two thousand and twenty-four", "hai nghìn không trăm hai mươi bốn"),
        (15_500, "fifteen thousand five hundred", "mười lăm nghìn năm trăm"),
    ],
)
def test_number_words(value: int, english: str, vietnamese: str) -> None:
    assert (english_number(value), vietnamese_number(value)) == (english, vietnamese)
    for function in (english_number, vietnamese_number):
        with pytest.raises(ValueError, match="999,999"):
            function(-1 - value)


def test_dates_and_times() -> None:
    assert date(15, 3, 1998) == ("March 15, 1998", "ngày 15 tháng 3 năm 1998")
    assert date(1, 12) == ("December 1", "ngày 1 tháng 12")
    assert clock(7, 0) == ("seven o'clock", "bảy giờ")
    assert clock(5, 30) == ("half past five", "năm giờ rưỡi")
    assert clock(1, 15) == ("a quarter past one", "một giờ mười lăm phút")
    assert clock(10, 45) == ("ten forty-five", "mười giờ bốn mươi lăm phút")


def test_english_forms() -> None:
    forms = {
        "watch": "watches",
        "go home": "goes home",
        "cry": "cries",
        "play chess": "plays chess",
    }
    assert {verb: third_person(verb) for verb in forms} == forms
    forms = {"see": "seeing", "write": "writing", "swim": "swimming", "get up": "getting up"}
    forms |= {
        "take a bath": "taking a bath",
        "hug": "hugging",
        "eat": "eating",
        "study": "studying",
    }
    assert {verb: gerund(verb) for verb in forms} == forms
    forms = {"apple": "an apple", "useful pen": "a useful pen", "umbrella": "an umbrella"}
    forms |= {"T-shirt": "a T-shirt", "hour": "an hour", "onion": "an onion", "house": "a house"}
    assert {phrase: with_article(phrase) for phrase in forms} == forms
    plurals = {"mouse": "mice", "wolf": "wolves", "knife": "knives", "box": "boxes", "key": "keys"}
    plurals |= {"goose": "geese", "dictionary": "dictionaries", "tomato": "tomatoes"}
    assert {n.en: n.plural for n in lexicon().things if n.en in plurals} == plurals


GOLDEN = {
    "He did not stay at home last Thursday.": "Anh ấy đã không ở nhà vào thứ năm tuần trước.",
    "He is in the yard.": "Anh ấy ở trong sân.",
    "He does not need to take medicine.": "Anh ấy không cần uống thuốc.",
    "That woman often cooks dinner.": "Người phụ nữ đó hay nấu bữa tối.",
    "That is Mrs. Nga's problem.": "Đó là vấn đề của bà Nga.",
    "Does he go to the cafe by car?": "Anh ấy có đến quán cà phê bằng ô tô không?",
    "Miss Hanh often eats dinner with Mrs. Hoa.": "Cô Hạnh hay ăn tối với bà Hoa.",
    "They want to go to the hotel.": "Họ muốn đến khách sạn.",
    "Have they done homework yet?": "Họ đã làm bài tập về nhà chưa?",
    "The singer who plans to dance is Linh.": "Ca sĩ định nhảy múa là Linh.",
    "She walks quite quickly.": "Cô ấy đi khá nhanh.",
    "Those magazines are on the shelf.": "Những quyển tạp chí đó ở trên giá.",
    "Does the guest have a goat?": "Vị khách có dê không?",
    "Is he wearing four coats?": "Anh ấy có đang mặc bốn chiếc áo khoác không?",
    "Who wants to write that story?": "Ai muốn viết câu chuyện đó?",
    "How many candies does Mrs. Hoa want to buy?": "Bà Hoa muốn mua bao nhiêu cái kẹo?",
    "Last week, you bought a kilo of sugar.": "Tuần trước bạn đã mua một cân đường.",
    "Their professor used to rest in the yard.": "Giáo sư của họ từng nghỉ ngơi trong sân.",
    "It is nine o'clock now.": "Bây giờ là chín giờ.",
    "I understand Thao.": "Tôi hiểu Thảo.",
    "Where is Minh eating lunch?": "Minh đang ăn trưa ở đâu?",
    "There is a cafe opposite the zoo.": "Có một quán cà phê đối diện sở thú.",
    "The durians that Lan ate are not fresh.": "Những quả sầu riêng mà Lan đã ăn không tươi.",
    "They used to study in Berlin.": "Họ từng học ở Berlin.",
    "If you are hungry, you should not dance.": "Nếu bạn đói thì bạn không nên nhảy múa.",
    "What a crowded street!": "Con phố đông đúc quá!",
    "The factory has two hundred and two workers.": "Nhà máy có hai trăm linh hai công nhân.",
    "Next week, my wife will work.": "Tuần sau vợ tôi sẽ làm việc.",
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
        ("progressive", "she is eating the apple", "cô ấy đang ăn quả táo"),
        ("still", "she is still eating the apple", "cô ấy vẫn đang ăn quả táo"),
        ("past", "she ate the apple", "cô ấy đã ăn quả táo"),
        ("future", "she will eat the apple", "cô ấy sẽ ăn quả táo"),
        ("just", "she has just eaten the apple", "cô ấy vừa mới ăn quả táo"),
        ("about", "she is about to eat the apple", "cô ấy sắp ăn quả táo"),
        ("used", "she used to eat the apple", "cô ấy từng ăn quả táo"),
        ("already", "she has already eaten the apple", "cô ấy đã ăn quả táo rồi"),
        ("not yet", "she has not eaten the apple yet", "cô ấy chưa ăn quả táo"),
        ("never", "she has never eaten the apple", "cô ấy chưa bao giờ ăn quả táo"),
        ("not present", "she does not eat the apple", "cô ấy không ăn quả táo"),
        ("not past", "she did not eat the apple", "cô ấy đã không ăn quả táo"),
        ("not future", "she will not eat the apple", "cô ấy sẽ không ăn quả táo"),
        ("can", "she can eat the apple", "cô ấy có thể ăn quả táo"),
        ("must", "she must eat the apple", "cô ấy phải ăn quả táo"),
        ("should", "she should eat the apple", "cô ấy nên ăn quả táo"),
        ("want", "she wants to eat the apple", "cô ấy muốn ăn quả táo"),
        ("not need", "she does not need to eat the apple", "cô ấy không cần ăn quả táo"),
        ("must not", "she must not eat the apple", "cô ấy không được ăn quả táo"),
        ("usually", "she usually eats the apple", "cô ấy thường ăn quả táo"),
        ("hardly", "she never eats the apple", "cô ấy không bao giờ ăn quả táo"),
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


@pytest.mark.parametrize(
    ("kind", "english", "vietnamese"),
    [
        ("a", "an egg", "một quả trứng"),
        ("the", "the egg", "quả trứng"),
        ("this", "this egg", "quả trứng này"),
        ("that", "that egg", "quả trứng đó"),
        ("plurals", "the eggs", "những quả trứng"),
        ("these", "these eggs", "những quả trứng này"),
        ("those", "those eggs", "những quả trứng đó"),
        ("many", "many eggs", "nhiều quả trứng"),
        ("generic", "eggs", "trứng"),
    ],
)
def test_determiners(kind: str, english: str, vietnamese: str) -> None:
    egg = next(n for n in lexicon().things if n.en == "egg")
    phrase = g.thing(Draw(0), egg, kind, plain=True)
    assert (phrase.en, phrase.vi) == (english, vietnamese)
