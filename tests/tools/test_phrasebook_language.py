"""The phrasebook's components and hand-checked sentences: numbers, forms, tenses, phrases."""

import pytest

from tools.phrasebook import grammar as g
from tools.phrasebook import tenses as t
from tools.phrasebook.english import gerund, third_person, with_article
from tools.phrasebook.generate import generate
from tools.phrasebook.grammar import Action, Draw
from tools.phrasebook.lexicon import lexicon
from tools.phrasebook.numbers import clock, date, english_number, vietnamese_number

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
        (10, "ten", "mười"),
        (11, "eleven", "mười một"),
        (15, "fifteen", "mười lăm"),
        (20, "twenty", "hai mươi"),
        (21, "twenty-one", "hai mươi mốt"),
        (24, "twenty-four", "hai mươi bốn"),
        (25, "twenty-five", "hai mươi lăm"),
        (55, "fifty-five", "năm mươi lăm"),
        (100, "one hundred", "một trăm"),
        (101, "one hundred and one", "một trăm linh một"),
        (105, "one hundred and five", "một trăm linh năm"),
        (110, "one hundred and ten", "một trăm mười"),
        (115, "one hundred and fifteen", "một trăm mười lăm"),
        (121, "one hundred and twenty-one", "một trăm hai mươi mốt"),
        (999, "nine hundred and ninety-nine", "chín trăm chín mươi chín"),
        (1_000, "one thousand", "một nghìn"),
        (1_005, "one thousand and five", "một nghìn không trăm linh năm"),
        (2_024, "two thousand and twenty-four", "hai nghìn không trăm hai mươi bốn"),
        (15_500, "fifteen thousand five hundred", "mười lăm nghìn năm trăm"),
    ],
)
def test_number_words(value: int, english: str, vietnamese: str) -> None:
    assert (english_number(value), vietnamese_number(value)) == (english, vietnamese)


@pytest.mark.parametrize("value", [-1, 1_000_000])
def test_numbers_out_of_range(value: int) -> None:
    with pytest.raises(ValueError, match="999,999"):
        vietnamese_number(value)
    with pytest.raises(ValueError, match="999,999"):
        english_number(value)


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
    "Will he cook dinner next year?": "Năm sau anh ấy có nấu bữa tối không?",
    "He is in the yard.": "Anh ấy ở trong sân.",
    "This crocodile is still sleeping at the zoo.": "Con cá sấu này vẫn đang ngủ ở sở thú.",
    "He does not need to take medicine.": "Anh ấy không cần uống thuốc.",
    "Thao is trying to play football.": "Thảo đang cố gắng chơi bóng đá.",
    "That woman often cooks dinner.": "Người phụ nữ đó hay nấu bữa tối.",
    "Is it warm in Berlin?": "Trời ở Berlin có ấm không?",
    "That is Mrs. Nga's problem.": "Đó là vấn đề của bà Nga.",
    "That beef is very delicious.": "Thịt bò đó rất ngon.",
    "Does he go to the cafe by car?": "Anh ấy có đến quán cà phê bằng ô tô không?",
    "This film is sadder than that film.": "Bộ phim này buồn hơn bộ phim đó.",
    "Miss Hanh often eats dinner with Mrs. Hoa.": "Cô Hạnh hay ăn tối với bà Hoa.",
    "His wife is fifty-nine years old.": "Vợ của anh ấy năm mươi chín tuổi.",
    "They want to go to the hotel.": "Họ muốn đến khách sạn.",
    "Does Mr. Binh like roses?": "Ông Bình có thích hoa hồng không?",
    "Have they done homework yet?": "Họ đã làm bài tập về nhà chưa?",
    "You need to go to bed because you are tired.": "Bạn cần đi ngủ vì bạn mệt.",
    "The singer who plans to dance is Linh.": "Ca sĩ định nhảy múa là Linh.",
    "That doctor is walking in the garden.": "Bác sĩ đó đang đi bộ trong vườn.",
    "She walks quite quickly.": "Cô ấy đi khá nhanh.",
    "We are not patient.": "Chúng tôi không kiên nhẫn.",
    "Those magazines are on the shelf.": "Những quyển tạp chí đó ở trên giá.",
    "She used to be an actor.": "Cô ấy từng là diễn viên.",
    "Does the guest have a goat?": "Vị khách có dê không?",
    "When will Mrs. Nga play football?": "Khi nào bà Nga sẽ chơi bóng đá?",
    "Is he wearing four coats?": "Anh ấy có đang mặc bốn chiếc áo khoác không?",
    "You play football at four o'clock.": "Bạn chơi bóng đá lúc bốn giờ.",
    "Who wants to write that story?": "Ai muốn viết câu chuyện đó?",
    "What is their lawyer buying?": "Luật sư của họ đang mua gì?",
    "How many candies does Mrs. Hoa want to buy?": "Bà Hoa muốn mua bao nhiêu cái kẹo?",
    "I am Italian.": "Tôi là người Ý.",
    "Last week, you bought a kilo of sugar.": "Tuần trước bạn đã mua một cân đường.",
    "Do they need to sleep?": "Họ có cần ngủ không?",
    "Their professor used to rest in the yard.": "Giáo sư của họ từng nghỉ ngơi trong sân.",
    "Are these peaches expensive?": "Những quả đào này có đắt không?",
    "It is nine o'clock now.": "Bây giờ là chín giờ.",
    "Which novel does Mai like?": "Mai thích quyển tiểu thuyết nào?",
    "I understand Thao.": "Tôi hiểu Thảo.",
    "Why does my grandfather need a candle?": "Tại sao ông tôi cần một cây nến?",
    "Where is Minh eating lunch?": "Minh đang ăn trưa ở đâu?",
    "Tuan rarely swims after watering the flowers.": "Tuấn hiếm khi bơi sau khi tưới hoa.",
    "There is a cafe opposite the zoo.": "Có một quán cà phê đối diện sở thú.",
    "Do not forget to rent the rooms.": "Đừng quên thuê những căn phòng.",
    "The durians that Lan ate are not fresh.": "Những quả sầu riêng mà Lan đã ăn không tươi.",
    "I am as kind as Nam.": "Tôi tốt bụng bằng Nam.",
    "They used to study in Berlin.": "Họ từng học ở Berlin.",
    "He believes that they will eat breakfast.": "Anh ấy tin rằng họ sẽ ăn sáng.",
    "If you are hungry, you should not dance.": "Nếu bạn đói thì bạn không nên nhảy múa.",
    "That cupboard costs forty-four dollars.": "Cái tủ đó giá bốn mươi bốn đô la.",
    "What a crowded street!": "Con phố đông đúc quá!",
    "There are two broken radios on the floor.": "Có hai chiếc radio bị hỏng trên sàn nhà.",
    "The factory has two hundred and two workers.": "Nhà máy có hai trăm linh hai công nhân.",
    "Although I am worried, I want to study.": "Mặc dù tôi lo lắng nhưng tôi muốn học.",
    "Next week, my wife will work.": "Tuần sau vợ tôi sẽ làm việc.",
}


def test_golden_sentences() -> None:
    """Pairs written out and checked by hand, over all constructions."""
    known = {
        sentence.english: sentence.vietnamese for rows in generate().values() for sentence in rows
    }
    assert len(GOLDEN) >= 40
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
