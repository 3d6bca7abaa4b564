"""Batches of pairs: every pair once, within the budget, a pure function of (seed, epoch)."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from normtrain.errors import UserError
from normtrain.models.token_ids import BOS, EOS, PAD
from normtrain.tasks.translation.batching import SortedBatches, TokenBatches, collate
from normtrain.tasks.translation.corpora import Pairs
from normtrain.tasks.translation.encoding import EncodedPairs, encode_pairs
from normtrain.tasks.translation.tokenizer import train_tokenizer

LENGTHS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=120)


def lengths(pairs: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    source = draw.integers(1, 60, pairs)
    return source, np.clip(source + draw.integers(-8, 9, pairs), 1, None)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> EncodedPairs:
    draw = np.random.default_rng(3)
    words = ["one", "two", "three", "four", "five", "six"]
    source = [" ".join(draw.choice(words, draw.integers(1, 12))) for _ in range(30)]
    target = [" ".join(draw.choice(words, draw.integers(1, 12))) for _ in range(30)]
    tokenizer = train_tokenizer(source + target, 400)
    cache = tmp_path_factory.mktemp("cache")
    pairs = Pairs(source, target)
    return encode_pairs(pairs, tokenizer, max_length=64, cache_dir=cache, name="train")


@given(LENGTHS, st.integers(1, 200))
@settings(max_examples=80, deadline=None)
def test_every_epoch_has_every_pair_once_within_the_budget(
    sizes: list[tuple[int, int]], max_tokens: int
) -> None:
    source, target = np.array(sizes).T
    batches = TokenBatches(source, target, max_tokens, seed=1)
    for epoch in (0, 1, 5):
        plan = batches.plan(epoch)
        assert len(plan) == len(batches)
        assert np.sort(np.concatenate(plan)).tolist() == list(range(len(sizes)))
        for batch in plan:
            widest = max(source[batch].max(), target[batch].max()) + 1
            assert len(batch) * widest <= max_tokens or len(batch) == 1


def test_the_order_is_a_pure_function_of_seed_and_epoch() -> None:
    source, target = lengths(400)

    def order(seed: int, epoch: int, before: tuple[int, ...] = ()) -> list[list[int]]:
        batches = TokenBatches(source, target, 300, seed=seed)
        for other in before:
            batches.plan(other)
        return [batch.tolist() for batch in batches.plan(epoch)]

    assert order(1, 2) == order(1, 2, before=(0, 1, 5))
    assert order(1, 2) != order(1, 3)
    assert order(1, 2) != order(2, 2)


def test_batches_of_different_epochs_have_different_members() -> None:
    batches = TokenBatches(*lengths(2000), 1000)
    together = [
        {(int(a), int(b)) for batch in batches.plan(epoch) for a in batch for b in batch}
        for epoch in range(2)
    ]
    assert len(together[0] & together[1]) / len(together[0]) < 0.7


def test_few_positions_are_padding() -> None:
    draw = np.random.default_rng(5)
    source = np.clip(draw.lognormal(2.9, 0.6, 20_000), 1, 120).astype(int)
    target = np.clip(source * draw.normal(1.2, 0.15, 20_000), 1, 150).astype(int)
    shares = TokenBatches(source, target, 4096).efficiency()
    assert shares[0] >= 0.88
    assert shares[1] >= 0.95


@pytest.mark.parametrize(("pairs", "max_tokens", "words"), [(3, 0, "max_tokens"), (0, 9, "no sen")])
def test_what_cannot_be_batched_is_refused(pairs: int, max_tokens: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        TokenBatches(*lengths(pairs), max_tokens)


@given(LENGTHS, st.integers(1, 200), st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_evaluation_is_complete_and_longest_first(
    sizes: list[tuple[int, int]], max_tokens: int, world: int
) -> None:
    source, target = np.array(sizes).T
    ranks = [
        list(SortedBatches(source, target, max_tokens, rank=r, world=world)) for r in range(world)
    ]
    seen = np.concatenate([batch for rank in ranks for batch in rank])
    assert np.sort(seen).tolist() == list(range(len(sizes)))
    if world == 1:
        assert (np.diff(target[seen]) <= 0).all()


def test_a_batch_is_padded_as_the_model_expects(encoded: EncodedPairs) -> None:
    rows = [5, 0, 17]
    batch = collate(encoded, rows)
    assert {name: tensor.dtype for name, tensor in batch.items()} == dict.fromkeys(
        ["source", "target_in", "target_out", "index"], torch.int64
    )
    wide = [max(len(side.row(i)) for i in rows) + 1 for side in (encoded.source, encoded.target)]
    for place, i in enumerate(rows):
        source, target = (side.row(i).tolist() for side in (encoded.source, encoded.target))
        assert batch["source"][place].tolist() == padded([*source, EOS], wide[0])
        assert batch["target_in"][place].tolist() == padded([BOS, *target], wide[1])
        assert batch["target_out"][place].tolist() == padded([*target, EOS], wide[1])
    assert batch["index"].tolist() == rows


def padded(ids: list[int], width: int) -> list[int]:
    return ids + [PAD] * (width - len(ids))
