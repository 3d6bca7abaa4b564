"""The stream of batches: epochs in order, nothing lost at a resume, ranks apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from normtrain.data.stream import BatchStream, StreamLoader
from normtrain.tasks.translation.batching import TokenBatches
from normtrain.tasks.translation.data import TranslationData

Batches = list[list[int]]


def planner(seed: int = 3) -> TokenBatches:
    draw = np.random.default_rng(0)
    source = draw.integers(1, 30, 200)
    return TokenBatches(source, source + 1, 120, seed=seed)


def read(stream: BatchStream) -> Batches:
    return [batch.tolist() for batch in stream]


def epoch_by_hand(epoch: int) -> Batches:
    batches = planner()
    batches.set_epoch(epoch)
    return [batch.tolist() for batch in batches.plan()]


def test_batch_k_is_of_epoch_k_div_n() -> None:
    n = len(planner())
    total = 2 * n + n // 2
    stream = BatchStream(planner(), total)
    got = read(stream)
    assert len(got) == len(stream) == total
    assert got == [*epoch_by_hand(0), *epoch_by_hand(1), *epoch_by_hand(2)][:total]
    assert sorted(i for batch in got[n : 2 * n] for i in batch) == list(range(200))
    assert got[:n] != got[n : 2 * n]
    assert [stream.epoch_of(k) for k in (0, n - 1, n, 2 * n)] == [0, 0, 1, 2]


@pytest.mark.parametrize("total", [1, len(planner()), 2 * len(planner())])
def test_the_stream_ends_at_its_total(total: int) -> None:
    assert read(BatchStream(planner(), total)) == [*epoch_by_hand(0), *epoch_by_hand(1)][:total]


def test_a_skip_leaves_out_exactly_so_many_once() -> None:
    n = len(planner())
    whole = read(BatchStream(planner(), 3 * n))
    for skip in (0, 1, n - 1, n, n + 1, 2 * n + 5, 3 * n - 1, 3 * n):
        stream = BatchStream(planner(), 3 * n)
        stream.skip = skip
        assert read(stream) == whole[skip:], skip
        assert read(stream) == whole, "a skip counts for one pass"


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_slice_one_line_that_does_not_depend_on_their_number(world: int) -> None:
    n = len(planner())
    total = 3 * n - 3 * n % world
    whole = read(BatchStream(planner(), total))
    streams = [BatchStream(planner(), total, rank=r, world=world) for r in range(world)]
    ranks = [read(stream) for stream in streams]
    assert {len(each) for each in (*ranks, *streams)} == {total // world}
    assert [batch for step in zip(*ranks, strict=True) for batch in step] == whole
    assert sorted(i for batch in whole[:n] for i in batch) == list(range(200))
    assert [streams[-1].epoch_of(k) for k in (0, total // world - 1)] == [0, (total - 1) // n]


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (3, 2), (2, 3)])
def test_another_number_of_ranks_goes_on_with_the_next_batch(before: int, after: int) -> None:
    total, done = 6 * len(planner()), 6 * 7
    whole = read(BatchStream(planner(), total))
    first = [BatchStream(planner(), total, rank=r, world=before) for r in range(before)]
    seen = [batch for rank in first for batch in read(rank)[: done // before]]
    second = [BatchStream(planner(), total, rank=r, world=after) for r in range(after)]
    for stream in second:
        stream.skip = done // after
    rest = [batch for step in zip(*map(read, second), strict=True) for batch in step]
    assert sorted(seen) == sorted(whole[:done])
    assert rest == whole[done:]


@pytest.fixture
def loader(corpus_folder: Path) -> Callable[..., StreamLoader]:
    def build(total: int = 30, workers: int = 0) -> StreamLoader:
        data = TranslationData(
            str(corpus_folder), max_tokens=60, vocab_size=420, workers=workers, total_batches=total
        )
        made = data.train_dataloader()
        assert isinstance(made, StreamLoader)
        return made

    return build


@pytest.mark.parametrize("workers", [0, 2])
def test_the_state_counts_batches_given_not_fetched_ahead(
    loader: Callable[..., StreamLoader], workers: int
) -> None:
    whole = [batch["index"] for batch in loader()]
    assert len(whole) == 30
    first = loader(workers=workers)
    batches = iter(first)
    for _ in range(11):
        next(batches)
    state = first.state_dict()
    assert state == {"batches_done": 11}
    assert first.epoch == 10 // len(first._stream.batches)
    del batches
    second = loader(workers=workers)
    second.load_state_dict(state)
    assert second.state_dict() == state
    rest = [batch["index"] for batch in second]
    assert len(rest) == 19
    assert all(torch.equal(a, b) for a, b in zip(rest, whole[11:], strict=True))
    assert second.state_dict() == {"batches_done": 30}


def test_ranks_save_where_all_of_them_are(loader: Callable[..., StreamLoader]) -> None:
    stream = loader()._stream
    one = StreamLoader(loader().dataset, batch_sampler=stream, collate_fn=loader().collate_fn)  # type: ignore[arg-type]
    stream.world, stream.rank = 2, 1
    batches = iter(one)
    for _ in range(4):
        next(batches)
    assert one.state_dict() == {"batches_done": 8}
    one.load_state_dict({"batches_done": 6})
    assert stream.skip == 3
    with pytest.raises(ValueError, match="7 batches, which 2 processes"):
        one.load_state_dict({"batches_done": 7})


def test_reading_draws_no_random_numbers(loader: Callable[..., StreamLoader]) -> None:
    before = torch.get_rng_state()
    assert len(list(loader())) == 30
    assert torch.equal(torch.get_rng_state(), before)
