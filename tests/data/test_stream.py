"""The stream of batches: epochs in order, nothing lost at a resume, ranks apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from normtrain.data.batching import TokenBatches
from normtrain.data.module import TranslationData
from normtrain.data.stream import BatchStream, StreamLoader

Batches = list[list[int]]


def planner(rank: int = 0, world: int = 1, seed: int = 3) -> TokenBatches:
    draw = np.random.default_rng(0)
    source = draw.integers(1, 30, 200)
    return TokenBatches(source, source + 1, 120, seed=seed, rank=rank, world=world)


def read(stream: BatchStream) -> Batches:
    return [batch.tolist() for batch in stream]


def epoch_by_hand(epoch: int, world: int = 1) -> Batches:
    batches = planner(world=world)
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
def test_ranks_share_every_epoch_without_overlap(world: int) -> None:
    n = len(planner(world=world))
    ranks = [read(BatchStream(planner(rank, world), 2 * n)) for rank in range(world)]
    assert [len(batches) for batches in ranks] == [2 * n] * world
    for epoch in range(2):
        part = slice(epoch * n, (epoch + 1) * n)
        seen = [i for batches in ranks for batch in batches[part] for i in batch]
        assert sorted(seen) == list(range(200))
        whole = epoch_by_hand(epoch, world)
        assert [batches[part] for batches in ranks] == [whole[rank::world] for rank in range(world)]


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


def test_reading_draws_no_random_numbers(loader: Callable[..., StreamLoader]) -> None:
    before = torch.get_rng_state()
    assert len(list(loader())) == 30
    assert torch.equal(torch.get_rng_state(), before)
