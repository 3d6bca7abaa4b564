"""Encoded text: one array, counts, a stream to disk, nothing half-written."""

from __future__ import annotations

import pickle
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from language_texts import real, sentences

from normtrain.data import documents as room
from normtrain.data.cache import CACHE_VARIABLE
from normtrain.data.documents import Documents, documents_of
from normtrain.data.tokenizers.build import cached_text_tokenizer, train_text_tokenizer
from normtrain.data.tokenizers.protocol import TextTokenizer
from normtrain.errors import RunError, UserError
from normtrain.tasks.language import encoding as encoding_room
from normtrain.tasks.language.corpora import load_text
from normtrain.tasks.language.encoding import EncodedText, encode_text

TEXTS = [sentences(40, 1), "no line end", sentences(9, 2), ""]
BPE = train_text_tokenizer("bpe", TEXTS, 320)
WORD = train_text_tokenizer("word", TEXTS, None)
BYTE = train_text_tokenizer("byte", TEXTS, None)
CHAR = train_text_tokenizer("char", TEXTS, None)


def made(texts: list[str]) -> Documents:
    return documents_of(lambda: texts)


def encode(tokenizer: TextTokenizer, cache: Path, mark: bool = True) -> EncodedText:
    return encode_text(made(TEXTS), tokenizer, document_mark=mark, cache_dir=cache)


@pytest.mark.parametrize("tokenizer", [BPE, BYTE, CHAR], ids=lambda t: t.kind)
@pytest.mark.parametrize("mark", [True, False])
def test_the_array_is_the_documents_one_after_the_other(
    tokenizer: TextTokenizer, mark: bool, tmp_path: Path
) -> None:
    expected: list[int] = []
    for i, text in enumerate(TEXTS):
        expected += [tokenizer.eos] * (mark and i > 0) + tokenizer.encode(text)
    encoded = encode(tokenizer, tmp_path, mark)
    assert encoded.tokens.tolist() == expected
    assert encoded.tokens.dtype == np.uint16
    assert encoded.eos == tokenizer.eos
    assert encoded.counts.tokens == len(encoded) == len(expected)


def test_words_have_line_ends_and_no_other_marks(tmp_path: Path) -> None:
    expected: list[int] = []
    for text in TEXTS:
        for line in text.splitlines():
            expected += [WORD.encode(word)[0] for word in line.split()] + [WORD.eos]
    for mark in (True, False):
        encoded = encode(WORD, tmp_path, mark)
        assert encoded.tokens.tolist() == expected
        assert encoded.counts.tokens == encoded.counts.words + encoded.counts.lines
    assert len(list(tmp_path.iterdir())) == 1


def test_counts_are_of_the_text(tmp_path: Path) -> None:
    counts = encode(BPE, tmp_path).counts
    whole = "".join(TEXTS)
    assert counts.words == sum(len(text.split()) for text in TEXTS)
    assert counts.lines == sum(len(text.splitlines()) for text in TEXTS)
    assert counts.bytes == len(whole.encode())
    assert counts.characters == len(whole)
    assert counts.documents == 4
    assert encode(BPE, tmp_path, mark=False).counts.tokens == counts.tokens - 3


@given(st.lists(st.text(alphabet="ab é\n", max_size=60), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_small_pieces_change_nothing_for_words_and_bytes(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    if not "".join(texts).strip():
        return
    patch = pytest.MonkeyPatch()
    seen = []
    for piece in (1 << 16, 7):
        patch.setattr(room, "PIECE", piece)
        cache = tmp_path_factory.mktemp("cache")
        both = [encode_text(made(texts), t, cache_dir=cache) for t in (WORD, BYTE)]
        seen.append([(text.tokens.tolist(), text.counts) for text in both])
    patch.undo()
    assert seen[0] == seen[1]


def test_large_vocabularies_take_four_bytes(tmp_path: Path) -> None:
    many = " ".join(f"w{i}" for i in range(70_000)) + "\n"
    tokenizer = train_text_tokenizer("word", [many], None)
    encoded = encode_text(made([many]), tokenizer, cache_dir=tmp_path)
    assert encoded.tokens.dtype == np.uint32
    assert encoded.tokens.tolist() == tokenizer.encode(many)


@pytest.mark.parametrize("tokenizer", [BYTE, BPE], ids=lambda t: t.kind)
def test_encoding_streams(
    tokenizer: TextTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 MB of text pass through a tenth of that, and no document outlives its turn."""
    monkeypatch.setattr(room, "PIECE", 4096)
    monkeypatch.setattr(encoding_room, "_TOGETHER", 2)
    alive: set[int] = set()
    most = 0

    class Watched(str):
        def __del__(self) -> None:
            alive.discard(id(self))

    def texts() -> Iterator[str]:
        nonlocal most
        for i in range(100):
            text = Watched(f"{i} " + "norm of a vector\n" * 2_400)
            alive.add(id(text))
            most = max(most, len(alive))
            yield text
            del text

    documents = documents_of(texts)
    assert documents.count == 100
    tracemalloc.start()
    try:
        encoded = encode_text(documents, tokenizer, cache_dir=tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert encoded.counts.documents == 100
    assert encoded.counts.bytes > 4e6
    assert most <= 2
    # The seal of the cache entry is read a quarter of a megabyte at a time.
    assert peak < 1e6


def test_the_second_start_encodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = encode(BPE, tmp_path)
    monkeypatch.setattr(encoding_room, "_encoded", lambda *_: pytest.fail("encoded again"))
    second = encode(BPE, tmp_path)
    assert second.tokens.tolist() == first.tokens.tolist()
    assert second.counts == first.counts


def test_other_settings_are_other_entries(tmp_path: Path) -> None:
    for tokenizer in (BPE, BYTE, CHAR):
        for mark in (True, False):
            encode(tokenizer, tmp_path, mark)
    encode_text(made(TEXTS[:1]), BPE, cache_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 7


@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_a_damaged_entry_is_rebuilt(tmp_path: Path, damage: str) -> None:
    expected = encode(BPE, tmp_path).tokens.tolist()
    (entry,) = tmp_path.iterdir()
    data = entry / "tokens.bin"
    raw = data.read_bytes()
    if damage == "gone":
        data.unlink()
    else:
        data.write_bytes(raw[:-2] if damage == "cut" else bytes([raw[0] ^ 1]) + raw[1:])
    assert encode(BPE, tmp_path).tokens.tolist() == expected
    assert [path.name for path in tmp_path.iterdir()] == [entry.name]


@pytest.mark.parametrize(
    "error", [UserError("bad text"), RunError("bad disk"), KeyboardInterrupt()]
)
def test_an_interrupted_build_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    passes = 0

    def texts() -> Iterator[str]:
        nonlocal passes
        passes += 1
        yield sentences(9)
        if passes > 1:
            raise error
        yield sentences(3)

    with pytest.raises(type(error)):
        encode_text(documents_of(texts), BYTE, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=CACHE_VARIABLE):
        encode(BPE, tmp_path / "file" / "cache")


def test_the_array_is_mapped_and_a_worker_maps_it_again(tmp_path: Path) -> None:
    encoded = encode(BPE, tmp_path)
    assert isinstance(encoded.tokens, np.memmap)
    assert not encoded.tokens.flags.writeable
    pickled = pickle.dumps(encoded)
    assert len(pickled) < 1000
    assert pickle.loads(pickled).tokens.tolist() == encoded.tokens.tolist()


# As the field counts: WikiText-2 (Merity et al. 2017), the Penn Treebank (Mikolov et al. 2010).


@pytest.mark.parametrize(
    ("name", "types", "tokens"),
    [
        ("wikitext2", 33_278, (2_088_628, 217_646, 245_569)),
        ("ptb", 10_000, (929_589, 73_760, 82_430)),
    ],
)
def test_words_are_counted_as_published(
    name: str, types: int, tokens: tuple[int, ...], tmp_path: Path
) -> None:
    corpus = load_text(str(real(name)))
    tokenizer = cached_text_tokenizer(corpus.splits["train"], "word", None, tmp_path)
    assert tokenizer.vocab_size == types
    for (split, documents), count in zip(corpus.splits.items(), tokens, strict=True):
        encoded = encode_text(documents, tokenizer, cache_dir=tmp_path)
        assert len(encoded) == count, split
        assert encoded.counts.words + encoded.counts.lines == count


def test_real_text_comes_back(tmp_path: Path) -> None:
    documents = load_text(str(real("tinyshakespeare") / "input.txt.gz")).splits["valid"]
    for kind, size in (("bpe", 500), ("byte", None), ("char", None)):
        tokenizer = train_text_tokenizer(kind, documents.texts(), size)
        encoded = encode_text(documents, tokenizer, cache_dir=tmp_path)
        assert tokenizer.decode(encoded.tokens) == "".join(documents.texts())
