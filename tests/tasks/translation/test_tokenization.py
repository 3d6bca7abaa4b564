"""The tokenizer gives back every text, and users' text never becomes a special id."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from normtrain.data.cache import fingerprint
from normtrain.data.text import clean, fold, looks_tokenized
from normtrain.errors import UserError
from normtrain.models.token_ids import BOS, EOS, PAD, UNK
from normtrain.tasks.translation.tokenizer import Tokenizer, train_tokenizer

LINES = [
    "The cat sees two birds , and then a third one .",
    "Con mèo nhìn thấy hai con chim , rồi một con nữa .",
    "x<0x41><0x41> x<0x41> x<0x41> x</s> x</s> x</s> x<pad> x<pad> <pad> <pad>",
    "Chúng tôi sẽ đi đến trường vào ngày mai ▁ ▁ .",
] * 3


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(LINES, 420)


def folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


@given(st.text())
@example("")
@example("  a \t b\n")
@example("😀👩‍👩‍👧 Tiếng Việt 中文")
@example("<pad> <s> </s> <unk> </s></s><pad>")
@example("<0x41><0x0A> x<0x41>")
@example("▁ ▁▁a▁ b▁")
@example("▁\ufdd0 a\ufdd0▁")
@example("\x00\x01\x7f\u200b\ufeff")
@example("e\u0302\u0301 \u1ebf")
@settings(max_examples=400, deadline=None)
def test_decoding_gives_the_text_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == folded(text)
    assert not {PAD, BOS, EOS, UNK} & set(ids)
    assert all(0 <= i < tokenizer.vocab_size for i in ids)


def test_any_code_point_survives(tokenizer: Tokenizer) -> None:
    texts = ["x" + chr(code) for code in range(0, 0x110000, 211) if not 0xD800 <= code < 0xE000]
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_batch(texts)] == [
        folded(text) for text in texts
    ]


def test_specials_are_the_first_four_ids_and_decode_to_nothing(tokenizer: Tokenizer) -> None:
    assert (PAD, BOS, EOS, UNK) == (0, 1, 2, 3)
    ids = tokenizer.encode("a cat")
    assert tokenizer.decode([BOS, *ids, EOS, PAD, UNK, 10**6, -1]) == "a cat"


def test_bytes_that_are_no_text_decode_to_the_replacement_character(tokenizer: Tokenizer) -> None:
    half = tokenizer.encode("😀")[:-1]
    assert tokenizer.decode(half).endswith("\ufffd")


def test_a_lone_surrogate_is_encoded(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a \ud800 b")) == "a ? b"


def test_common_words_are_one_token(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode("con mèo")) <= 4
    assert len(tokenizer.encode("Con")) == 1


def test_batches_equal_single_texts(tokenizer: Tokenizer) -> None:
    texts = [*LINES, "", "▁x"]
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


def test_training_is_deterministic() -> None:
    lines = [f"w{i % 37} số {i} từ{i % 11} {chr(0x4E00 + i)}" for i in range(600)]
    assert train_tokenizer(lines, 700).to_json() == train_tokenizer(iter(lines), 700).to_json()


def test_json_keeps_everything(tokenizer: Tokenizer) -> None:
    again = Tokenizer.from_json(tokenizer.to_json())
    assert again.encode_batch(LINES) == tokenizer.encode_batch(LINES)
    assert again.fingerprint == tokenizer.fingerprint
    assert again.vocab_size == tokenizer.vocab_size


def test_other_text_gives_another_fingerprint(tokenizer: Tokenizer) -> None:
    assert train_tokenizer(LINES[:2], 420).fingerprint != tokenizer.fingerprint


def test_a_small_corpus_gives_fewer_ids_than_asked() -> None:
    small = train_tokenizer(["a b c"], 5000)
    assert small.vocab_size < 300
    assert small.decode(small.encode("zebra")) == "zebra"


def test_the_vocabulary_is_never_larger_than_asked() -> None:
    # More different characters than there is room for: the rare ones go to bytes.
    lines = ["".join(map(chr, range(0x4E00, 0x4E00 + 500))), "common words " * 50]
    trained = train_tokenizer(lines, 320)
    assert trained.vocab_size <= 320
    assert trained.decode(trained.encode(lines[0])) == lines[0]


@pytest.mark.parametrize("vocab_size", [0, 260, 299])
def test_a_vocabulary_too_small_is_refused(vocab_size: int) -> None:
    with pytest.raises(UserError, match="at least 300"):
        train_tokenizer(LINES, vocab_size)


@pytest.mark.parametrize("lines", [[], ["", "  "]])
def test_no_text_is_refused(lines: list[str]) -> None:
    with pytest.raises(UserError, match="no text"):
        train_tokenizer(lines, 400)


@pytest.mark.parametrize("text", ["", "{}", "not json"])
def test_a_foreign_file_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="not a tokenizer"):
        Tokenizer.from_json(text)


def test_another_librarys_tokenizer_is_refused() -> None:
    from tokenizers import Tokenizer as Core
    from tokenizers import models

    foreign = Core(models.BPE(vocab={"a": 0, "b": 1}, merges=[])).to_str()
    with pytest.raises(UserError, match="normtrain"):
        Tokenizer.from_json(foreign)


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("it &apos;s &quot; so &quot; &#91; x &#93; &amp; &lt;", 'it \'s " so " [ x ] & <'),
        ("&amp;quot;", "&quot;"),
        ("AT&T &copy R&D; a & b", "AT&T &copy R&D; a & b"),
        ("a\u200bb\ufeffc", "abc"),
        ("👩\u200d👧", "👩\u200d👧"),
        (" a\u00a0\t b\u2028c\u0085 ", "a b c"),
        ("e\u0302\u0301", "\u1ebf"),
    ],
)
def test_cleaning(raw: str, cleaned: str) -> None:
    assert clean(raw) == cleaned


def test_folding_leaves_escapes() -> None:
    assert fold("a  &amp; b") == "a &amp; b"


@pytest.mark.parametrize(
    ("lines", "tokenized"),
    [
        (["Xin chào .", "Ai đó ?", "không"], True),
        (["Xin chào.", "Ai đó?", "không"], False),
        (["a ."] * 4 + ["b."], True),
        (["a ."] * 3 + ["b."], False),
        (["không dấu"], False),
        ([], False),
    ],
)
def test_tokenized_text_is_told_apart(lines: list[str], tokenized: bool) -> None:
    assert looks_tokenized(lines) is tokenized


def test_fingerprints_know_where_parts_end() -> None:
    assert fingerprint("ab", "c") != fingerprint("a", "bc")
