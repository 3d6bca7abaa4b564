"""The phrasebook's grammar: the shipped text, correct sentences, and splits by combinations."""

from __future__ import annotations

import lzma
import re
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from normtrain.data import phrasebook as shipped
from tools.phrasebook.__main__ import write
from tools.phrasebook.generate import (
    CONSTRUCTIONS,
    Sentence,
    generate,
    is_held_out,
    phrasebook_splits,
    words,
)
from tools.phrasebook.grammar import Draw
from tools.phrasebook.lexicon import lexicon
from tools.phrasebook.numbers import vietnamese_number

pytestmark = pytest.mark.extended
SHIPPED = Path(shipped.__file__).parent


def everything() -> list[Sentence]:
    return [sentence for rows in generate().values() for sentence in rows]


def test_the_shipped_text_is_what_the_grammar_generates() -> None:
    for split, sides in phrasebook_splits().items():
        for language, lines in zip(("en", "vi"), sides, strict=True):
            packed = (SHIPPED / f"{split}.{language}.xz").read_bytes()
            assert lzma.decompress(packed) == "".join(f"{line}\n" for line in lines).encode(), (
                "the phrasebook changed: raise PHRASEBOOK_VERSION and run "
                "python -m tools.phrasebook normtrain/data/phrasebook"
            )
    assert sum(path.stat().st_size for path in SHIPPED.glob("*.xz")) < 1_500_000


def test_the_program_writes_the_shipped_files(tmp_path: Path) -> None:
    write(tmp_path)
    for path in SHIPPED.glob("*.xz"):
        written = (tmp_path / path.name).read_bytes()
        assert lzma.decompress(written) == lzma.decompress(path.read_bytes())


def test_sizes_and_lengths() -> None:
    splits = phrasebook_splits()
    assert [len(splits[s][0]) for s in ("train", "valid", "test")] == [30_000, 500, 1_000]
    lengths = [len(en.split()) for en in splits["train"][0]]
    assert 6.5 <= sum(lengths) / len(lengths) <= 9
    assert max(lengths) <= 24
    shares = Counter(sentence.construction for sentence in generate()["train"])
    assert len(shares) == len(CONSTRUCTIONS) >= 50
    assert max(shares.values()) < 0.05 * 30_000


def test_every_english_sentence_has_one_translation() -> None:
    known = {sentence.english: sentence.vietnamese for sentence in everything()}
    assert len(known) == len(everything())
    for index, (construction, _) in enumerate(CONSTRUCTIONS):
        draw = Draw(7 * index)
        for _ in range(300):
            en, vi = (text[0].upper() + text[1:] for text in construction(draw))
            assert known.setdefault(en, vi) == vi


def test_test_sentences_are_new_combinations_of_common_words() -> None:
    splits, sentences = phrasebook_splits(), generate()
    for side in (0, 1):
        train, valid, test = (set(splits[split][side]) for split in ("train", "valid", "test"))
        assert not train & test
        assert not train & valid
        assert not valid & test
        counts = Counter(w for line in splits["train"][side] for w in words(line))
        assert min(counts[word] for line in valid | test for word in words(line)) >= 10
    seen = {c for s in sentences["train"] for c in s.combinations}
    assert not any(map(is_held_out, seen))
    parts = {(c.split("|")[0], p) for c in seen for p in c.split("|")[1:]}
    asked: list[str] = []
    for sentence in sentences["test"] + sentences["valid"]:
        new = [c for c in sentence.combinations if is_held_out(c)]
        assert new
        asked += new
    kinds = {"object", "modifier", "subject", "tense", "place"}
    assert kinds <= {c.split("|")[0] for c in asked}
    known = sum((c.split("|")[0], p) in parts for c in asked for p in c.split("|")[1:])
    assert known / (2 * len(asked)) > 0.97
    # The same, read off the sentences instead of the combinations that they note.
    plurals = {noun.en: noun.plural for noun in lexicon().things}
    modified = {tuple(c.split("|")[1:]) for c in asked if c.startswith("modifier|")}
    text = "\n".join(splits["train"][0]).lower()
    checked = [(first, second) for first, second in modified if second in plurals]
    assert len(checked) > 10
    for first, second in checked:
        assert not re.search(rf"\b{first} ({second}|{plurals[second]})\b", text), (first, second)


def test_text_is_clean() -> None:
    for sentence in everything():
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
_WRONG = re.compile(
    r"\b(he|she|it) (are|have|do|were|want|need|like)\b|\b(I|you|we|they) (is|has|does)\b"
    r"|\b(you|we|they) was\b|\bI (are|were)\b|^(These|Those) \w+ (is|was|has)\b"
)
_ALLOWED = re.compile(
    r"^(Does|Did|Will|Should|Can|Why|What|When|Where|Which|How|Who|Whose)|\b(does|did)\b"
    r"| and | who "
)


def test_english_articles_and_agreement() -> None:
    for sentence in everything():
        for article, word in _AN.findall(sentence.english):
            vowel = (word[0].lower() in "aeiou" and word != "useful") or word == "honest"
            assert article.lower() == ("an" if vowel else "a"), sentence.english
        if not _ALLOWED.search(sentence.english):
            assert not _WRONG.search(sentence.english), sentence.english


def test_classifiers_follow_the_lexicon() -> None:
    """After a number stands exactly the noun's own classifier."""
    by_name = {noun.en: noun for noun in lexicon().people + lexicon().things}
    checked = 0
    for sentence in everything():
        for combination in sentence.combinations:
            kind, number, name = combination.split("|")
            if kind == "count":
                counted = f"{vietnamese_number(int(number))} {by_name[name].vi}"
                assert counted in sentence.vietnamese.lower(), sentence
                checked += 1
    assert checked > 500
    expected = {
        "cat": "con", "table": "cái", "car": "chiếc", "book": "quyển", "newspaper": "tờ",
        "letter": "bức", "picture": "bức", "apple": "quả", "potato": "củ", "house": "ngôi",
        "rose": "bông", "knife": "con", "river": "con", "man": "người", "mountain": "ngọn",
        "bridge": "cây", "island": "hòn", "film": "bộ", "teacher": "", "song": "",
    }  # fmt: skip
    assert {name: by_name[name].classifier for name in expected} == expected


def test_the_lexicon_has_no_duplicates_and_all_of_it_is_used() -> None:
    entries = lexicon().entries()
    assert len(entries) >= 550
    keys = Counter((part, en) for part, en, _ in entries)
    assert max(keys.values()) == 1
    text = "\n".join(phrasebook_splits()["train"][0]).lower()
    for part, en, vi in entries:
        assert en.isascii()
        assert unicodedata.is_normalized("NFC", vi)
        assert vi.replace("{}", "").strip()
        assert part == "verb" or en.lower() in text, en
