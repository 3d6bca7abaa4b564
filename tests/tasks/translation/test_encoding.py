"""Encodings: the filter, the cache, the memory map."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from normtrain.data.cache import CACHE_VARIABLE, cache_root
from normtrain.errors import RunError, UserError
from normtrain.tasks.translation import encoding as room
from normtrain.tasks.translation.corpora import Pairs
from normtrain.tasks.translation.encoding import EncodedPairs, cached_tokenizer, encode_pairs
from normtrain.tasks.translation.tokenizer import Tokenizer, train_tokenizer

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
PAIRS = Pairs(
    ["one two", "", "one " * 30, "three four five", "six"],
    ["hai ba", "bốn", "năm sáu", "bảy " * 40, "tám chín mười"],
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([*PAIRS.source, *PAIRS.target, *WORDS], 400)


def encode(tokenizer: Tokenizer, cache: Path, name: str = "train", limit: int = 20) -> EncodedPairs:
    return encode_pairs(PAIRS, tokenizer, max_length=limit, cache_dir=cache, name=name)


def test_training_drops_empty_and_long_pairs_and_counts_them(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    encoded = encode(tokenizer, tmp_path)
    assert encoded.index.tolist() == [0, 4]
    assert (encoded.report.empty, encoded.report.too_long, encoded.dropped) == (1, 2, 3)
    longest = max(len(ids) for ids in tokenizer.encode_batch(PAIRS.target)) + 1
    assert encoded.report.longest_target == longest
    text = " ".join(encoded.report.lines("train"))
    assert "dropped 1 pairs with an empty side" in text
    assert f"dropped 2 pairs longer than max_length=20 (the longest has {longest}" in text


def test_rows_are_what_the_tokenizer_says(tokenizer: Tokenizer, tmp_path: Path) -> None:
    encoded = encode(tokenizer, tmp_path)
    for row, line in enumerate(encoded.index):
        source, target = encoded.get(row)
        assert source.tolist() == tokenizer.encode(PAIRS.source[line])
        assert target.tolist() == tokenizer.encode(PAIRS.target[line])
        assert encoded.source_lengths[row] == len(source)
        assert encoded.target_lengths[row] == len(target)


def test_outside_training_nothing_is_dropped(tokenizer: Tokenizer, tmp_path: Path) -> None:
    encoded = encode(tokenizer, tmp_path, "valid")
    assert encoded.index.tolist() == [0, 1, 2, 3, 4]
    assert encoded.dropped == 0
    assert (encoded.report.truncated_sources, encoded.report.truncated_targets) == (1, 1)
    assert encoded.get(2)[0].tolist() == tokenizer.encode(PAIRS.source[2])[:19]
    assert len(encoded.get(1)[0]) == 0
    assert "cut 1 source sentences" in " ".join(encoded.report.lines("valid"))


def test_max_length_counts_the_end_of_the_sentence(tokenizer: Tokenizer, tmp_path: Path) -> None:
    longest = max(len(ids) for ids in tokenizer.encode_batch([*PAIRS.source, *PAIRS.target]))
    assert encode(tokenizer, tmp_path, limit=longest + 1).report.too_long == 0
    assert encode(tokenizer, tmp_path, limit=longest).report.too_long == 1


def test_the_second_start_encodes_nothing(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = encode(tokenizer, tmp_path)
    trained = cached_tokenizer(PAIRS, 400, tmp_path)
    monkeypatch.setattr(room, "_build", lambda *_: pytest.fail("encoded again"))
    monkeypatch.setattr(room, "train_tokenizer", lambda *_: pytest.fail("trained again"))
    second = encode(tokenizer, tmp_path)
    assert [x.tolist() for x in second.get(1)] == [x.tolist() for x in first.get(1)]
    assert second.report == first.report
    assert cached_tokenizer(PAIRS, 400, tmp_path).fingerprint == trained.fingerprint


def test_other_settings_are_other_entries(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert len(encode(tokenizer, tmp_path, limit=20)) != len(encode(tokenizer, tmp_path, limit=99))
    assert len(encode(tokenizer, tmp_path, "valid")) == len(PAIRS)
    cached_tokenizer(PAIRS, 300, tmp_path)
    assert cached_tokenizer(PAIRS, 310, tmp_path).vocab_size > 300


@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "seal"])
def test_a_damaged_entry_is_rebuilt(tokenizer: Tokenizer, tmp_path: Path, damage: str) -> None:
    expected = [ids.tolist() for ids in encode(tokenizer, tmp_path).get(1)]
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
    assert [ids.tolist() for ids in encode(tokenizer, tmp_path).get(1)] == expected
    assert [path.name for path in tmp_path.iterdir()] == [entry.name]
    assert data.read_bytes() == raw


def test_an_interrupted_build_leaves_no_entry(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(room, "_write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            encode(tokenizer, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert len(encode(tokenizer, tmp_path)) == 2


def test_rows_are_views_of_the_memory_map(tokenizer: Tokenizer, tmp_path: Path) -> None:
    encoded = encode(tokenizer, tmp_path)
    source, _ = encoded.get(0)
    assert not source.flags.owndata
    assert not source.flags.writeable
    assert np.shares_memory(source, encoded.source.values)
    (file,) = encoded._dataset.cache_files
    assert Path(file["filename"]).is_file()


def test_a_worker_opens_the_file_again(tokenizer: Tokenizer, tmp_path: Path) -> None:
    encoded = encode(tokenizer, tmp_path)
    pickled = pickle.dumps(encoded)
    assert len(pickled) < 1000
    assert pickle.loads(pickled).get(1)[0].tolist() == encoded.get(1)[0].tolist()


def test_nothing_left_to_train_on_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no training pair fits max_length=2"):
        encode(tokenizer, tmp_path, limit=2)


def test_a_limit_without_room_for_a_token_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 2"):
        encode(tokenizer, tmp_path, limit=1)


def test_a_cache_that_cannot_be_written_says_so(tokenizer: Tokenizer, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(RunError, match=CACHE_VARIABLE):
        encode(tokenizer, blocked / "cache")


def test_the_variable_moves_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    assert cache_root() == tmp_path
    assert cache_root(tmp_path / "mine") == tmp_path / "mine"
    monkeypatch.delenv(CACHE_VARIABLE)
    assert cache_root().name == "normtrain"
