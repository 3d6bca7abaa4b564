"""The embedded phrasebook: correct, deterministic, and split by combinations."""

import lzma
import re
import unicodedata
from collections import Counter
from pathlib import Path

from normtrain.data import phrasebook as shipped_files
from tools.phrasebook import generate as generation
from tools.phrasebook.__main__ import write
from tools.phrasebook.generate import CONSTRUCTIONS, generate, is_held_out, phrasebook_splits
from tools.phrasebook.grammar import Draw
from tools.phrasebook.lexicon import lexicon
from tools.phrasebook.numbers import vietnamese_number

SPLITS = phrasebook_splits()
SENTENCES = generate()
EVERYTHING = [sentence for rows in SENTENCES.values() for sentence in rows]


def test_the_shipped_text_is_what_the_grammar_generates(tmp_path: Path) -> None:
    write(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        shipped = Path(shipped_files.__file__).with_name(path.name)
        assert lzma.decompress(shipped.read_bytes()) == lzma.decompress(path.read_bytes()), (
            "the phrasebook changed: raise PHRASEBOOK_VERSION and run "
            "python -m tools.phrasebook normtrain/data/phrasebook"
        )
    assert len(list(tmp_path.iterdir())) == 6


def test_sizes_and_lengths() -> None:
    assert {split: len(en) for split, (en, _) in SPLITS.items()} == {
        "train": 30_000,
        "valid": 500,
        "test": 1_000,
    }
    lengths = [len(en.split()) for en in SPLITS["train"][0]]
    assert 6.5 <= sum(lengths) / len(lengths) <= 9
    assert max(lengths) <= 24
    shares = Counter(sentence.construction for sentence in SENTENCES["train"])
    assert len(shares) == len(CONSTRUCTIONS) >= 50
    assert max(shares.values()) < 0.05 * 30_000


def test_one_translation_for_every_english_sentence() -> None:
    english = [sentence.english for sentence in EVERYTHING]
    assert len(english) == len(set(english))
    again: dict[str, str] = {}
    for index, (construction, _) in enumerate(CONSTRUCTIONS):
        draw = Draw(7 * index)
        for _ in range(300):
            en, vi = construction(draw)
            assert again.setdefault(en, vi) == vi
    known = {sentence.english: sentence.vietnamese for sentence in EVERYTHING}
    for en, vi in again.items():
        full = en[0].upper() + en[1:]
        assert known.get(full, vi[0].upper() + vi[1:]) == vi[0].upper() + vi[1:]


def test_nothing_of_test_or_valid_occurs_in_training() -> None:
    for side in (0, 1):
        train, valid, test = (set(SPLITS[split][side]) for split in ("train", "valid", "test"))
        assert not train & test
        assert not train & valid
        assert not valid & test


def test_held_out_combinations_are_new_and_their_parts_are_known() -> None:
    seen = {c for s in SENTENCES["train"] for c in s.combinations}
    assert not any(is_held_out(combination) for combination in seen)
    parts = {(c.split("|")[0], p) for c in seen for p in c.split("|")[1:]}
    for sentence in SENTENCES["test"] + SENTENCES["valid"]:
        new = [c for c in sentence.combinations if is_held_out(c)]
        assert new
        assert not set(new) & seen
    kinds = {"object", "modifier", "subject", "tense", "place"}
    asked = [c for s in SENTENCES["test"] for c in s.combinations if is_held_out(c)]
    assert kinds <= {c.split("|")[0] for c in asked}
    known = sum((c.split("|")[0], p) in parts for c in asked for p in c.split("|")[1:])
    assert known / (2 * len(asked)) > 0.97


def test_held_out_modifiers_by_their_text() -> None:
    """The same property, read off the sentences instead of the notes."""
    text = "\n".join(SPLITS["train"][0]).lower()
    plurals = {noun.en: noun.plural for noun in lexicon().things}
    checked = 0
    for sentence in SENTENCES["test"]:
        for combination in sentence.combinations:
            kind, first, second = combination.split("|")
            if kind == "modifier" and is_held_out(combination) and second in plurals:
                found = re.search(rf"\b{first} ({second}|{plurals[second]})\b", text)
                assert found is None, combination
                checked += 1
    assert checked > 20


def test_every_word_of_the_test_split_is_common_in_training() -> None:
    for side in (0, 1):
        counts = Counter(w for line in SPLITS["train"][side] for w in generation.words(line))
        for split in ("valid", "test"):
            words = {w for line in SPLITS[split][side] for w in generation.words(line)}
            assert min(counts[word] for word in words) >= 10


def test_text_is_clean() -> None:
    for sentence in EVERYTHING:
        en, vi = sentence.english, sentence.vietnamese
        assert en.isascii()
        assert unicodedata.is_normalized("NFC", vi)
        for line in (en, vi):
            assert line[0].isupper() or line[0].isdigit()
            assert line[-1] in ".?!"
            assert line == " ".join(line.split())
            assert not re.search(r" [.,?!]|[{}|_]", line)
        assert en[-1] == vi[-1] or sentence.construction == "order"


_AN = re.compile(r"\b(an?) ([a-z]\w*)", re.IGNORECASE)
_VOWEL_LETTER_CONSONANT_SOUND = {"useful"}
_CONSONANT_LETTER_VOWEL_SOUND = {"honest"}


def test_a_and_an() -> None:
    checked = 0
    for sentence in EVERYTHING:
        for article, word in _AN.findall(sentence.english):
            vowel = word[0].lower() in "aeiou" and word not in _VOWEL_LETTER_CONSONANT_SOUND
            vowel = vowel or word in _CONSONANT_LETTER_VOWEL_SOUND
            assert article.lower() == ("an" if vowel else "a"), sentence.english
            checked += 1
    assert checked > 3_000


def test_english_agreement() -> None:
    wrong = re.compile(
        r"\b(he|she|it) (are|have|do|were|want|need|like)\b|\b(I|you|we|they) (is|has|does)\b"
        r"|\b(you|we|they) was\b|\bI (are|were)\b|^(These|Those) \w+ (is|was|has)\b"
    )
    allowed = re.compile(
        r"^(Does|Did|Will|Should|Can|Why|What|When|Where|Which|How|Who|Whose)|\b(does|did)\b"
    )
    for sentence in EVERYTHING:
        if not re.search(" and | who ", sentence.english) and not allowed.search(sentence.english):
            assert not wrong.search(sentence.english), sentence.english


def test_classifiers_follow_the_lexicon() -> None:
    """After a number or a demonstrative's noun stands exactly the noun's own classifier."""
    numbers = {vietnamese_number(n) for n in range(2, 13)}
    checked = 0
    for sentence in EVERYTHING:
        for combination in sentence.combinations:
            kind, number, name = combination.split("|")
            if kind == "count":
                noun = next(n for n in lexicon().things if n.en == name)
                wanted = f"{vietnamese_number(int(number))} {noun.vi}"
                assert wanted in sentence.vietnamese.lower(), sentence
                assert vietnamese_number(int(number)) in numbers
                checked += 1
    assert checked > 500
    by_name = {noun.en: noun for noun in lexicon().things + lexicon().people}
    expected = {
        "cat": "con", "table": "cái", "car": "chiếc", "book": "quyển", "newspaper": "tờ",
        "letter": "bức", "picture": "bức", "apple": "quả", "potato": "củ", "house": "ngôi",
        "rose": "bông", "knife": "con", "river": "con", "man": "người", "mountain": "ngọn",
        "bridge": "cây", "island": "hòn", "film": "bộ", "teacher": "", "song": "",
    }  # fmt: skip
    assert {name: by_name[name].classifier for name in expected} == expected


def test_lexicon_is_large_and_has_no_duplicates() -> None:
    entries = lexicon().entries()
    assert len(entries) >= 550
    keys = Counter((part, en) for part, en, _ in entries)
    assert [key for key, count in keys.items() if count > 1] == []
    for _, en, vi in entries:
        assert en.isascii()
        assert unicodedata.is_normalized("NFC", vi)
        assert vi.replace("{}", "").strip()


def test_lexicon_words_are_used() -> None:
    text = "\n".join(SPLITS["train"][0]).lower()
    missing = [
        en for part, en, _ in lexicon().entries() if part != "verb" and en.lower() not in text
    ]
    assert missing == []
