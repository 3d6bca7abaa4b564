"""The joint tokenizer is lossless, and text is never encoded as a special id; cleaning of text."""

import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

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
@settings(max_examples=200, deadline=None)
def test_decoding_gives_the_text_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == folded(text)
    assert not {PAD, BOS, EOS, UNK} & set(ids)
    assert all(0 <= i < tokenizer.vocab_size for i in ids)


def test_any_code_point_survives_in_a_batch(tokenizer: Tokenizer) -> None:
    texts = ["x" + chr(code) for code in range(0, 0x110000, 211) if not 0xD800 <= code < 0xE000]
    texts += [*LINES, "", "▁x"]
    batch = tokenizer.encode_batch(texts)
    assert [tokenizer.decode(ids) for ids in batch] == [folded(text) for text in texts]
    assert batch[-20:] == [tokenizer.encode(text) for text in texts[-20:]]


def test_special_ids_and_broken_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a cat")
    assert tokenizer.decode([BOS, *ids, EOS, PAD, UNK, 10**6, -1]) == "a cat"
    assert tokenizer.decode(tokenizer.encode("😀")[:-1]).endswith("\ufffd")
    assert tokenizer.decode(tokenizer.encode("a \ud800 b")) == "a ? b"
    assert len(tokenizer.encode("Con")) == 1


def test_training_is_deterministic() -> None:
    lines = [f"w{i % 37} số {i} từ{i % 11} {chr(0x4E00 + i)}" for i in range(600)]
    assert train_tokenizer(lines, 700).to_json() == train_tokenizer(iter(lines), 700).to_json()


def test_json_keeps_everything(tokenizer: Tokenizer) -> None:
    again = Tokenizer.from_json(tokenizer.to_json())
    assert again.encode_batch(LINES) == tokenizer.encode_batch(LINES)
    assert again.fingerprint == tokenizer.fingerprint != train_tokenizer(LINES[:2], 420).fingerprint
    assert again.vocab_size == tokenizer.vocab_size


def test_the_vocabulary_is_at_most_as_large_as_asked() -> None:
    small = train_tokenizer(["a b c"], 5000)
    assert small.vocab_size < 300
    assert small.decode(small.encode("zebra")) == "zebra"
    # More different characters than there is room for: the rare ones become bytes.
    lines = ["".join(map(chr, range(0x4E00, 0x4E00 + 500))), "common words " * 50]
    trained = train_tokenizer(lines, 320)
    assert trained.vocab_size <= 320
    assert trained.decode(trained.encode(lines[0])) == lines[0]


@pytest.mark.parametrize(
    ("lines", "size", "words"),
    [(LINES, 299, "vocab_size must be >= 300"), ([], 400, "no text"), (["", "  "], 400, "no text")],
)
def test_what_cannot_be_trained_is_refused(lines: list[str], size: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        train_tokenizer(lines, size)


def test_foreign_files_are_refused() -> None:
    from tokenizers import Tokenizer as Core
    from tokenizers import models

    for text in ("", "{}", "not json"):
        with pytest.raises(UserError, match="not a tokenizer"):
            Tokenizer.from_json(text)
    with pytest.raises(UserError, match="normtrain"):
        Tokenizer.from_json(Core(models.BPE(vocab={"a": 0, "b": 1}, merges=[])).to_str())


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
    assert fold("a  &amp; b") == "a &amp; b"


@pytest.mark.parametrize(
    ("lines", "tokenized"),
    [
        (["Xin chào .", "Ai đó ?", "không"], True),
        (["Xin chào.", "Ai đó?", "không"], False),
        (["a ."] * 4 + ["b."], True),
        (["a ."] * 3 + ["b."], False),
        (["không dấu"], False),
    ],
)
def test_tokenized_text_is_recognised(lines: list[str], tokenized: bool) -> None:
    assert looks_tokenized(lines) is tokenized
