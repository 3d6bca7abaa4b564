"""Encoded text: one array, counts, a stream to disk, nothing half-written."""

import pickle
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from language_texts import sentences

from normtrain.data import documents as documents_module
from normtrain.data.documents import Documents, documents_of
from normtrain.data.tokenizers.build import train_text_tokenizer
from normtrain.data.tokenizers.protocol import TextTokenizer
from normtrain.tasks.language import encoding
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
@settings(max_examples=30, deadline=None)
def test_small_pieces_change_nothing_for_words_and_bytes(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    if not "".join(texts).strip():
        return
    seen = []
    for piece in (1 << 16, 7):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(documents_module, "PIECE", piece)
            cache = tmp_path_factory.mktemp("cache")
            both = [encode_text(made(texts), t, cache_dir=cache) for t in (WORD, BYTE)]
            seen.append([(text.tokens.tolist(), text.counts) for text in both])
    assert seen[0] == seen[1]


def test_large_vocabularies_take_four_bytes(tmp_path: Path) -> None:
    many = " ".join(f"w{i}" for i in range(70_000)) + "\n"
    tokenizer = train_text_tokenizer("word", [many], None)
    encoded = encode_text(made([many]), tokenizer, cache_dir=tmp_path)
    assert encoded.tokens.dtype == np.uint32
    assert encoded.tokens.tolist() == tokenizer.encode(many)


@pytest.mark.extended
@pytest.mark.parametrize("tokenizer", [BYTE, BPE], ids=lambda t: t.kind)
def test_encoding_streams(
    tokenizer: TextTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 MB of text pass through a tenth of that, and no document outlives its turn."""
    monkeypatch.setattr(documents_module, "PIECE", 4096)
    monkeypatch.setattr(encoding, "_TOGETHER", 2)
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


def test_a_second_start_encodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = encode(BPE, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(encoding, "_encoded", lambda *_: pytest.fail("encoded again"))
        second = encode(BPE, tmp_path)
    assert second.tokens.tolist() == first.tokens.tolist()
    assert second.counts == first.counts
    for tokenizer in (BPE, BYTE, CHAR):  # other settings are other entries
        for mark in (True, False):
            encode(tokenizer, tmp_path, mark)
    encode_text(made(TEXTS[:1]), BPE, cache_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 7


def test_the_array_is_mapped_and_a_worker_maps_it_again(tmp_path: Path) -> None:
    encoded = encode(BPE, tmp_path)
    assert isinstance(encoded.tokens, np.memmap)
    assert not encoded.tokens.flags.writeable
    pickled = pickle.dumps(encoded)
    assert len(pickled) < 1000
    assert pickle.loads(pickled).tokens.tolist() == encoded.tokens.tolist()


# As the field counts: WikiText-2 (Merity et al. 2017), the Penn Treebank (Mikolov et al. 2010).
