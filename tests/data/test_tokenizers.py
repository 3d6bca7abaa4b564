"""Tokenizers of running text: round trips, the field's conventions, tokenizers of model folders."""

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from language_texts import sentences

from normtrain.data.documents import documents_of
from normtrain.data.tokenizers.bpe import END_OF_TEXT, BpeTokenizer, bpe_from_folder
from normtrain.data.tokenizers.build import (
    cached_text_tokenizer,
    tokenizer_from_json,
    train_text_tokenizer,
)
from normtrain.data.tokenizers.protocol import TextTokenizer
from normtrain.errors import RunError, UserError

TEXTS = [sentences(80, seed) for seed in range(3)]
SIZES = {"bpe": 400, "word": None, "byte": None, "char": None}


@pytest.fixture(scope="module")
def bpe() -> BpeTokenizer:
    made = train_text_tokenizer("bpe", TEXTS, 400)
    assert isinstance(made, BpeTokenizer)
    return made


def trained(kind: str) -> TextTokenizer:
    return train_text_tokenizer(kind, TEXTS, SIZES[kind])


@given(st.text() | st.text(alphabet=" \t\n\r\x0b\x1c\xa0\u2028ab'ls1!é"))
@example("")
@example("  a \t b\n\n\n  c \r\n")
@example("<|endoftext|> <|endoftext|><|endoftext|>")
@example("<eos> <unk> </s>")
@example("😀👩‍👩‍👧 Tiếng Việt e\u0302\u0301 \u1ebf")
@example("\x00\x01\x7f\u200b\ufeff \u2028\u0085")
@example("Ġ Ċ Ā \u0100\u0120")
@example("a\xa0  b \x1c! !\x1c! \n\n\n a's 's  \t x\r\n\r\n")
@settings(max_examples=200, deadline=None)
def test_bpe_and_bytes_give_any_text_back(bpe: BpeTokenizer, text: str) -> None:
    for tokenizer in (bpe, trained("byte")):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.eos not in ids
        assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert bpe._by_words  # encoding word by word gives what the library's rules give
    assert bpe.encode(text) == bpe._encode_directly([text])[0]


def test_the_cache_of_words_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("normtrain.data.tokenizers.bpe._CACHED", 200)
    tokenizer = train_text_tokenizer("bpe", TEXTS, 300)
    assert isinstance(tokenizer, BpeTokenizer)
    for i in range(200):
        text = f"word{i} and {i * i}"
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert len(tokenizer._cached) < 60


@given(st.binary(max_size=60))
@settings(max_examples=100, deadline=None)
def test_bytes_that_are_not_utf8_are_kept(bpe: BpeTokenizer, raw: bytes) -> None:
    text = raw.decode("utf-8", "surrogateescape")
    assert trained("byte").encode(text) == list(raw)
    ids = bpe.encode(text)
    assert bpe._core.token_to_id(END_OF_TEXT) not in ids
    assert bpe.decode(ids) == raw.decode("utf-8", "replace")


def test_characters() -> None:
    tokenizer = trained("char")
    assert tokenizer.decode(tokenizer.encode(TEXTS[0])) == TEXTS[0]
    assert len(tokenizer.encode(TEXTS[0])) == len(TEXTS[0])
    assert tokenizer.vocab_size == 2 + len(set("".join(TEXTS)))
    assert tokenizer.encode("Z") == [1]
    assert tokenizer.decode([*tokenizer.encode("aZ"), 0, 10**6, -1]) == "a<unk>"
    assert train_text_tokenizer("char", TEXTS, 5).vocab_size == 5


def test_words_follow_the_fields_convention() -> None:
    tokenizer = train_text_tokenizer("word", ["b a b\n", "<unk> <eos> c\n"], None)
    ids = {word: tokenizer.encode(word)[0] for word in ["a", "b", "c", "<unk>", "<eos>", "other"]}
    assert tokenizer.eos == 0
    assert ids == {"<unk>": 1, "<eos>": 1, "other": 1, "b": 2, "a": 3, "c": 4}
    assert tokenizer.encode(" a  b\t\n\n c") == [3, 2, 0, 0, 4]
    assert tokenizer.encode("a\r\nb\n") == [3, 0, 2, 0]
    assert tokenizer.decode([3, 2, 0, 0, 4, 1, 99, -1]) == "a b\n\nc <unk>"
    assert tokenizer.vocab_size == 5
    frequent = train_text_tokenizer("word", ["c c b b a a a\n"], 4)
    assert [frequent.encode(word)[0] for word in "abc"] == [2, 3, 1]


def test_bpe_learns_words(bpe: BpeTokenizer) -> None:
    assert bpe.eos == 0
    assert bpe.vocab_size <= 400
    assert len(bpe.encode(" vector")) == 1
    assert len(bpe.encode(TEXTS[0])) < 0.5 * len(TEXTS[0])
    assert bpe.decode([bpe.eos, *bpe.encode("a"), 10**6, -1]) == "a"
    smallest = train_text_tokenizer("bpe", TEXTS, 257)
    assert smallest.vocab_size == 257
    assert len(smallest.encode("né")) == 3


@pytest.mark.parametrize("kind", SIZES)
def test_every_kind_keeps_the_protocol(kind: str) -> None:
    tokenizer = trained(kind)
    assert isinstance(tokenizer, TextTokenizer)
    assert tokenizer.kind == kind
    assert tokenizer.encode("") == []
    texts = [*TEXTS, "", "\udc80", "the <|endoftext|> norm \ud800"]
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]
    if kind in ("bpe", "byte"):
        assert tokenizer.decode(tokenizer.encode("a \ud800 b")) == "a ? b"
    read = tokenizer_from_json(tokenizer.to_json())
    for again in (read, copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert again.fingerprint == tokenizer.fingerprint
        assert (again.kind, again.vocab_size) == (kind, tokenizer.vocab_size)
        assert again.eos == tokenizer.eos
        assert again.encode_batch(texts) == tokenizer.encode_batch(texts)


@pytest.mark.parametrize("kind", SIZES)
def test_training_is_deterministic(kind: str) -> None:
    texts = [f"w{i % 37} số {i} từ{i % 11} {chr(0x4E00 + i)}\n" for i in range(600)]
    size = 700 if kind == "bpe" else None
    one = train_text_tokenizer(kind, texts, size)
    assert one.to_json() == train_text_tokenizer(kind, iter(texts), size).to_json()
    assert (one.fingerprint == trained(kind).fingerprint) == (kind == "byte")


@pytest.mark.parametrize(
    ("kind", "texts", "size", "words"),
    [
        ("bpe", TEXTS, None, "needs a vocab_size"),
        ("bpe", TEXTS, 256, "vocab_size must be >= 257"),
        ("word", TEXTS, 2, "vocab_size must be >= 3"),
        ("char", TEXTS, 0, "vocab_size must be >= 3"),
        ("byte", TEXTS, 300, "vocab_size .* 257 ids; got 300"),
        ("bep", TEXTS, 300, "unknown tokenizer 'bep'; did you mean bpe"),
        ("bpe", [""], 400, "no text"),
        ("word", [], None, "no text"),
        ("char", [""], None, "no text"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    kind: str, texts: list[str], size: int | None, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        train_text_tokenizer(kind, texts, size)


@pytest.mark.parametrize(
    "text",
    [
        *("", "{}", "not json", "[]", '{"a":' * 100_000),
        *('{"kind": "word"}', '{"kind": "bpe", "rules": {}}'),
        *('{"kind": "word", "words": "abc"}', '{"kind": "char", "characters": ["a", 1]}'),
    ],
)
def test_a_foreign_file_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="not a tokenizer file"):
        tokenizer_from_json(text)
    with pytest.raises(UserError, match="unknown tokenizer 'wrod'; did you mean word"):
        tokenizer_from_json('{"kind": "wrod"}')


def test_a_trained_tokenizer_is_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = documents_of(lambda: TEXTS)
    one = cached_text_tokenizer(texts, "bpe", 300, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("normtrain.data.tokenizers.build.train_bpe", lambda *_: pytest.fail("again"))
        assert cached_text_tokenizer(texts, "bpe", 300, tmp_path).fingerprint == one.fingerprint
    cached_text_tokenizer(texts, "bpe", 310, tmp_path)
    cached_text_tokenizer(texts, "word", None, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


# Tokenizers of Hugging Face folders


@pytest.fixture
def foreign(tmp_path: Path) -> Callable[..., Path]:
    """A folder as `transformers` saves it, with GPT-2's or Llama's rules."""

    def write(style: str, eos: object = None) -> Path:
        from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers
        from tokenizers import pre_tokenizers as pre

        if style == "llama":
            names = ["<unk>", "<s>", "</s>", *[f"<0x{b:02X}>" for b in range(256)]]
            vocab = {name: i for i, name in enumerate([*names, "▁", "a", "b", "▁a"])}
            options = {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
            core = Tokenizer(models.BPE(vocab, [("▁", "a")], **options))
            replace = normalizers.Replace(" ", "▁")
            core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
            bytes_back = [decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
            core.decoder = decoders.Sequence([decoders.Replace("▁", " "), *bytes_back])
            core.add_special_tokens([AddedToken(name) for name in names[:3]])
        else:
            core = Tokenizer(models.BPE())
            core.pre_tokenizer = pre.ByteLevel(add_prefix_space=False)
            core.decoder = decoders.ByteLevel()
            alphabet = pre.ByteLevel.alphabet()
            core.train_from_iterator(
                TEXTS,
                trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False),
            )
            core.add_special_tokens(["<|endoftext|>"])  # the last id, as in GPT-2
        core.save(str(tmp_path / "tokenizer.json"))
        if eos is not None:
            (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
        return tmp_path

    return write


def test_gpt2s_tokenizer_is_read(foreign: Callable[..., Path]) -> None:
    folder = foreign("gpt2")
    tokenizer = bpe_from_folder(folder)
    assert tokenizer.eos == tokenizer.vocab_size - 1
    text = "the norm <|endoftext|> né\n\n  x"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.eos not in tokenizer.encode(text)
    plain = (folder / "tokenizer.json").read_text(encoding="utf-8")
    assert tokenizer_from_json(plain).encode(text) == tokenizer.encode(text)


@pytest.mark.parametrize("eos", ["</s>", {"content": "</s>", "lstrip": False}])
def test_llamas_tokenizer_is_read(foreign: Callable[..., Path], eos: object) -> None:
    tokenizer = bpe_from_folder(foreign("llama", eos))
    assert tokenizer.eos == 2
    assert not tokenizer._by_words
    ids = tokenizer.encode("a b</s> né")
    assert 2 not in ids
    assert tokenizer.decode(ids) == "a b</s> né"
    assert tokenizer.encode("a \udcff")  # its bytes have no characters: it becomes U+FFFD
    again = tokenizer_from_json(tokenizer.to_json())
    assert (again.eos, again.encode("a b")) == (2, tokenizer.encode("a b"))
    assert again.fingerprint == tokenizer.fingerprint


def test_a_folder_that_cannot_be_used_says_why(
    foreign: Callable[..., Path], tmp_path: Path
) -> None:
    def refused(words: str, kind: type[Exception] = UserError) -> None:
        with pytest.raises(kind, match=words):
            bpe_from_folder(tmp_path)

    foreign("llama")
    refused(r"tokenizer\.json: .*no token '<\|endoftext\|>'")
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe")
    refused("not UTF-8")
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.json").mkdir()
    refused("cannot read", RunError)
