"""Encodings of pairs: the filter, the cache, the memory map."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from normtrain.data.cache import CACHE_VARIABLE
from normtrain.errors import RunError, UserError
from normtrain.tasks.translation import encoding
from normtrain.tasks.translation.corpora import Pairs
from normtrain.tasks.translation.encoding import EncodedPairs, cached_tokenizer, encode_pairs
from normtrain.tasks.translation.tokenizer import Tokenizer, train_tokenizer

PAIRS = Pairs(
    ["one two", "", "one " * 30, "three four five", "six"],
    ["hai ba", "bốn", "năm sáu", "bảy " * 40, "tám chín mười"],
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([*PAIRS.source, *PAIRS.target, "seven eight nine ten"], 400)


def encode(tokenizer: Tokenizer, cache: Path, name: str = "train", limit: int = 20) -> EncodedPairs:
    return encode_pairs(PAIRS, tokenizer, max_length=limit, cache_dir=cache, name=name)


def rows(encoded: EncodedPairs) -> list[list[list[int]]]:
    sides = (encoded.source, encoded.target)
    return [[side.row(i).tolist() for side in sides] for i in range(len(encoded))]


def test_training_drops_and_counts_empty_and_long_pairs(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    encoded = encode(tokenizer, tmp_path)
    assert encoded.index.tolist() == [0, 4]
    for row, line in zip(rows(encoded), encoded.index, strict=True):
        assert row == tokenizer.encode_batch([PAIRS.source[line], PAIRS.target[line]])
    assert encoded.target_lengths.tolist() == [len(target) for _, target in rows(encoded)]
    report = encoded.report
    assert (report.empty, report.too_long, report.dropped) == (1, 2, 3)
    longest = max(len(ids) for ids in tokenizer.encode_batch(PAIRS.target)) + 1
    assert report.longest_target == longest
    text = " ".join(report.lines("train"))
    assert "dropped 1 pairs with an empty side" in text
    assert f"dropped 2 pairs longer than max_length=20 (the longest has {longest}" in text


def test_outside_training_nothing_is_dropped(tokenizer: Tokenizer, tmp_path: Path) -> None:
    encoded = encode(tokenizer, tmp_path, "valid")
    assert encoded.index.tolist() == [0, 1, 2, 3, 4]
    report = encoded.report
    assert (report.dropped, report.truncated_sources, report.truncated_targets) == (0, 1, 1)
    assert encoded.source.row(2).tolist() == tokenizer.encode(PAIRS.source[2])[:19]
    assert len(encoded.source.row(1)) == 0
    assert "truncated 1 source sentences" in " ".join(report.lines("valid"))


def test_max_length_counts_the_eos(tokenizer: Tokenizer, tmp_path: Path) -> None:
    longest = max(len(ids) for ids in tokenizer.encode_batch([*PAIRS.source, *PAIRS.target]))
    assert encode(tokenizer, tmp_path, limit=longest + 1).report.too_long == 0
    assert encode(tokenizer, tmp_path, limit=longest).report.too_long == 1
    with pytest.raises(UserError, match="no training pair fits max_length=2"):
        encode(tokenizer, tmp_path, limit=2)
    with pytest.raises(UserError, match="max_length must be >= 2"):
        encode(tokenizer, tmp_path, limit=1)


def test_a_second_start_encodes_nothing(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, trained = encode(tokenizer, tmp_path), cached_tokenizer(PAIRS, 400, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(encoding, "_build", lambda *_: pytest.fail("encoded again"))
        patch.setattr(encoding, "train_tokenizer", lambda *_: pytest.fail("trained again"))
        second = encode(tokenizer, tmp_path)
        assert cached_tokenizer(PAIRS, 400, tmp_path).fingerprint == trained.fingerprint
    assert rows(second) == rows(first)
    assert second.report == first.report
    # Other settings are other entries.
    assert len(encode(tokenizer, tmp_path, limit=99)) != len(first)
    assert len(encode(tokenizer, tmp_path, "valid")) == len(PAIRS)
    assert cached_tokenizer(PAIRS, 310, tmp_path).vocab_size < trained.vocab_size


@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "seal"])
def test_a_damaged_entry_is_rebuilt(tokenizer: Tokenizer, tmp_path: Path, damage: str) -> None:
    expected = rows(encode(tokenizer, tmp_path))
    (entry,) = tmp_path.iterdir()
    data = entry / "pairs.arrow"
    raw = data.read_bytes()
    if damage == "cut":
        data.write_bytes(raw[:-100])
    elif damage == "flip":
        data.write_bytes(raw[:300] + bytes([raw[300] ^ 1]) + raw[301:])
    elif damage == "gone":
        data.unlink()
    else:
        (entry / "entry.json").write_text("{")
    assert rows(encode(tokenizer, tmp_path)) == expected
    assert [path.name for path in tmp_path.iterdir()] == [entry.name]
    assert data.read_bytes() == raw


def test_sequences_are_views_of_the_memory_map(tokenizer: Tokenizer, tmp_path: Path) -> None:
    encoded = encode(tokenizer, tmp_path)
    source = encoded.source.row(0)
    assert not source.flags.owndata
    assert not source.flags.writeable
    assert np.shares_memory(source, encoded.source.values)
    (file,) = encoded._dataset.cache_files
    assert Path(file["filename"]).is_file()
    pickled = pickle.dumps(encoded)  # a worker maps the file again
    assert len(pickled) < 1000
    assert rows(pickle.loads(pickled)) == rows(encoded)


def test_a_cache_that_cannot_be_written_says_so(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=CACHE_VARIABLE):
        encode(tokenizer, tmp_path / "file" / "cache")
