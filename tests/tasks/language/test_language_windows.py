"""Windows: a pure function of (seed, epoch), nothing twice, every token scored once."""

import pickle
import time
import tracemalloc

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
    return [batch.tolist() for batch in batches.plan(epoch)]


@given(st.integers(2, 400), st.integers(1, 12), st.integers(1, 60), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_an_epoch_is_cut_into_windows_that_do_not_overlap(
    tokens: int, window: int, room: int, epoch: int
) -> None:
    if tokens < window + 1 or room < window:
        with pytest.raises(UserError):
            WindowBatches(tokens, window, room)
        return
    batches = WindowBatches(tokens, window, room, seed=3)
    found = batches.plan(epoch)
    assert len(found) == len(batches)
    assert all(len(batch) == room // window for batch in found[:-1])
    assert 1 <= len(found[-1]) <= room // window
    starts = np.sort(np.concatenate(found))
    assert (np.diff(starts) >= window).all()
    assert len(np.unique(starts % window)) == 1
    assert starts[0] >= 0
    assert starts[-1] + window + 1 <= tokens
    # All but the two ends of the stream.
    assert len(starts) == batches.windows == max(1, (tokens - window) // window)
    assert tokens - 1 - len(starts) * window < 2 * window


def test_the_order_is_a_pure_function_of_seed_and_epoch() -> None:
    batches = WindowBatches(1000, 10, 45, seed=1)
    for epoch in (0, 1, 5):
        batches.plan(epoch)
    assert [batch.tolist() for batch in batches.plan(2)] == plan(2, seed=1)
    assert plan(2, seed=1) not in (plan(3, seed=1), plan(2, seed=2))
    assert {plan(epoch)[0][0] % 10 for epoch in range(60)} == set(range(10))  # offsets
    assert {tuple(sorted(batch)) for batch in plan(0)} != {tuple(sorted(b)) for b in plan(1)}


@pytest.mark.extended
def test_a_long_text_takes_a_small_plan() -> None:
    tracemalloc.start()
    begin = time.perf_counter()
    batches = WindowBatches(120_000_000, 256, 8192)
    assert len(batches.plan(0)) == len(batches) == 14_649
    assert time.perf_counter() - begin < 5
    assert tracemalloc.get_traced_memory()[1] < 40e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tokens": 10}, "10 tokens, too few for a window of 10"),
        ({"max_tokens": 9}, "max_tokens must be >= window.* 9 and 10"),
        ({"window": 0}, "window must be >= 1"),
    ],
)
def test_what_cannot_be_cut_is_refused(settings: dict[str, int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        plan(**settings)


def test_a_batch_holds_what_the_text_has(texts: dict[int, EncodedText]) -> None:
    rows = TextWindows(texts[40], 6)
    batch = rows.__getitems__(np.array([3, 0, 33]))
    assert list(batch) == ["tokens"]
    assert batch["tokens"].dtype == torch.int64
    assert batch["tokens"].tolist() == [texts[40].tokens[s : s + 7].tolist() for s in (3, 0, 33)]
    again = pickle.loads(pickle.dumps(rows))  # a worker maps the file again
    assert torch.equal(again.__getitems__([3])["tokens"], batch["tokens"][:1])


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.data())
@settings(max_examples=100, deadline=None)
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


@pytest.mark.parametrize("stride", [0, 5])
def test_a_stride_beyond_the_window_is_refused(texts: dict[int, EncodedText], stride: int) -> None:
    with pytest.raises(UserError, match=rf"stride must be from 1 to window \(4\), got {stride}"):
        EvaluationWindows(texts[40], 4, stride)
    with pytest.raises(UserError, match="batch_size must be >= 1"):
        EvaluationWindows(texts[40], 4).batches(0)
