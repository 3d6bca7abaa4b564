"""Windows: a pure function of (seed, epoch), nothing twice, every token scored once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from normtrain.data.documents import documents_of
from normtrain.data.tokenizers.build import train_text_tokenizer
from normtrain.errors import UserError
from normtrain.tasks.language.encoding import EncodedText, encode_text
from normtrain.tasks.language.windows import EvaluationWindows, TextWindows, WindowBatches

BYTE = train_text_tokenizer("byte", [], None)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[int, EncodedText]:
    """Encoded texts by length; token i is letter ``i % 23``."""
    cache = tmp_path_factory.mktemp("cache")
    made = {}
    for size in range(1, 41):
        text = "".join(chr(97 + i % 23) for i in range(size))
        made[size] = encode_text(documents_of(lambda text=text: [text]), BYTE, cache_dir=cache)  # type: ignore[misc]
    return made


def plan(epoch: int = 0, **more: int) -> list[list[int]]:
    batches = WindowBatches(**{"tokens": 1000, "window": 10, "max_tokens": 45, **more})
    batches.set_epoch(epoch)
    return [batch.tolist() for batch in batches.plan()]


@given(
    st.integers(2, 400),
    st.integers(1, 12),
    st.integers(1, 60),
    st.integers(1, 4),
    st.integers(0, 3),
)
@settings(max_examples=300, deadline=None)
def test_an_epoch_is_cut_into_windows_that_do_not_overlap(
    tokens: int, window: int, room: int, world: int, epoch: int
) -> None:
    if tokens < window + 1 or room < window or max(1, (tokens - window) // window) < world:
        with pytest.raises(UserError):
            WindowBatches(tokens, window, room, world=world)
        return
    ranks = []
    for rank in range(world):
        batches = WindowBatches(tokens, window, room, seed=3, rank=rank, world=world)
        batches.set_epoch(epoch)
        ranks.append(list(batches))
        assert len(ranks[-1]) == len(batches)
    assert len({len(rank) for rank in ranks}) == 1
    batches_of_all = [batch for rank in ranks for batch in rank]
    assert all(1 <= len(batch) <= room // window for batch in batches_of_all)
    for rank in ranks:
        assert all(len(batch) == room // window for batch in rank[:-1])
    starts = np.sort(np.concatenate(batches_of_all))
    assert (np.diff(starts) >= window).all()
    assert len(np.unique(starts % window)) == 1
    assert starts[0] >= 0
    assert starts[-1] + window + 1 <= tokens
    # All windows but fewer than there are ranks, which cover all but the ends of the stream.
    windows = max(1, (tokens - window) // window)
    assert windows - world < len(starts) <= windows
    assert tokens - 1 - windows * window < 2 * window


def test_the_order_is_a_pure_function_of_seed_and_epoch() -> None:
    batches = WindowBatches(1000, 10, 45, seed=1)
    for epoch in (0, 1, 5):
        batches.set_epoch(epoch)
        list(batches)
    batches.set_epoch(2)
    assert [batch.tolist() for batch in batches] == plan(2, seed=1)
    assert plan(2, seed=1) != plan(3, seed=1)
    assert plan(2, seed=1) != plan(2, seed=2)


def test_offsets_and_neighbours_change_from_epoch_to_epoch() -> None:
    offsets = {plan(epoch)[0][0] % 10 for epoch in range(60)}
    assert offsets == set(range(10))
    assert {tuple(sorted(batch)) for batch in plan(0)} != {tuple(sorted(b)) for b in plan(1)}


def test_every_epoch_has_the_same_number_of_batches() -> None:
    for world in (1, 2, 3):
        counts = {len(plan(epoch, world=world)) for epoch in range(30)}
        assert counts == {world * len(WindowBatches(1000, 10, 45, world=world))}


def test_ranks_share_one_plan() -> None:
    whole = plan(4, world=3)
    for rank in range(3):
        batches = WindowBatches(1000, 10, 45, rank=rank, world=3)
        batches.set_epoch(4)
        assert [batch.tolist() for batch in batches] == whole[rank::3]


def test_a_long_text_takes_a_small_plan() -> None:
    import time
    import tracemalloc

    tracemalloc.start()
    begin = time.perf_counter()
    batches = WindowBatches(120_000_000, 256, 8192)
    assert len(batches.plan()) == len(batches) == 14_649
    assert time.perf_counter() - begin < 5
    assert tracemalloc.get_traced_memory()[1] < 40e6
    tracemalloc.stop()


def test_a_resumed_epoch_leaves_out_what_was_done() -> None:
    whole = [batch.tolist() for batch in WindowBatches(1000, 10, 45)]
    for done in range(len(whole) + 1):
        batches = WindowBatches(1000, 10, 45)
        batches.resume(0, done)
        assert [batch.tolist() for batch in batches] == whole[done:]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tokens": 10}, "the text has 10 tokens, too few for a window of 10"),
        ({"tokens": 25, "world": 3}, "has 1 windows of 10 tokens, too few for 3 processes"),
        ({"max_tokens": 9}, "max_tokens is 9 and window is 10"),
        ({"window": 0}, "window is 0; it must be at least 1"),
    ],
)
def test_what_cannot_be_cut_is_refused(settings: dict[str, int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        plan(**settings)


def test_a_batch_holds_what_the_text_has(texts: dict[int, EncodedText]) -> None:
    rows = TextWindows(texts[40], 6)
    assert len(rows) == 34
    batch = rows.__getitems__(np.array([3, 0, 33]))
    assert list(batch) == ["tokens"]
    assert batch["tokens"].dtype == torch.int64
    assert batch["tokens"].tolist() == [texts[40].tokens[s : s + 7].tolist() for s in (3, 0, 33)]
    assert rows[5]["tokens"].shape == (1, 7)


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.data())
@settings(max_examples=300, deadline=None)
def test_every_token_is_scored_once_and_after_what_precedes_it(
    texts: dict[int, EncodedText],
    size: int,
    window: int,
    stride: int,
    world: int,
    data: st.DataObject,
) -> None:
    stride = min(stride, window)
    text = texts[size]
    stream = [text.eos, *text.tokens.tolist()]
    windows = EvaluationWindows(text, window, stride)
    batch_size = data.draw(st.integers(1, 5))
    numbers = [
        int(number)
        for rank in range(world)
        for batch in windows.batches(batch_size, rank=rank, world=world)
        for number in batch
    ]
    assert numbers == list(range(len(windows)))
    batch = windows.__getitems__(numbers)
    assert batch["tokens"].shape == (len(windows), window + 1)
    assert batch["scored"].shape == (len(windows), window)
    assert (batch["tokens"].dtype, batch["scored"].dtype) == (torch.int64, torch.bool)
    seen = []
    for number, (row, scored) in enumerate(
        zip(batch["tokens"].tolist(), batch["scored"].tolist(), strict=True)
    ):
        begin = number * stride  # in the stream
        real = stream[begin : begin + window + 1]
        assert row == real + [text.eos] * (window + 1 - len(real))
        assert any(scored)
        for place in np.flatnonzero(scored):
            seen.append(begin + place)
            assert number == 0 or place >= window - stride
    assert seen == list(range(size))


def test_ranks_of_an_evaluation_differ_by_one_window(texts: dict[int, EncodedText]) -> None:
    windows = EvaluationWindows(texts[40], 4)
    parts = [windows.batches(3, rank=rank, world=4) for rank in range(4)]
    counts = [sum(len(batch) for batch in part) for part in parts]
    assert sum(counts) == len(windows) == 10
    assert max(counts) - min(counts) <= 1
    assert all(len(list(part)) == len(part) for part in parts)


@pytest.mark.parametrize("stride", [0, -1, 5])
def test_a_stride_beyond_the_window_is_refused(texts: dict[int, EncodedText], stride: int) -> None:
    with pytest.raises(UserError, match=rf"stride is {stride}; it must be from 1 to window \(4\)"):
        EvaluationWindows(texts[40], 4, stride)
    with pytest.raises(UserError, match="batch_size is 0"):
        EvaluationWindows(texts[40], 4).batches(0)


def test_windows_are_read_from_the_file(texts: dict[int, EncodedText], tmp_path: Path) -> None:
    import pickle

    rows = pickle.loads(pickle.dumps(TextWindows(texts[40], 6)))
    assert torch.equal(rows[2]["tokens"], TextWindows(texts[40], 6)[2]["tokens"])
