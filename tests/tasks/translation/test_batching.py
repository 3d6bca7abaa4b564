"""Batch plans: nothing lost, under budget, a pure function of (seed, epoch), resumable."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from normtrain.errors import UserError
from normtrain.models.token_ids import BOS, EOS, PAD
from normtrain.tasks.translation.batching import (
    ResumableLoader,
    SortedBatches,
    TokenBatches,
    TranslationBatches,
    as_given,
    collate,
)
from normtrain.tasks.translation.corpora import Pairs, load_corpus
from normtrain.tasks.translation.encoding import EncodedPairs, cached_tokenizer, encode_pairs
from normtrain.tasks.translation.tokenizer import train_tokenizer

# Measurement corpora are no part of the project: a folder beside it may hold them.
CORPORA = Path(os.environ.get("NORMTRAIN_CORPORA", Path(__file__).parents[4] / "shared" / "data"))
NEWS = CORPORA / "evbnews"
LENGTHS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=120)


def lengths(pairs: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    source = draw.integers(1, 60, pairs)
    return source, np.clip(source + draw.integers(-8, 9, pairs), 1, None)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> EncodedPairs:
    draw = np.random.default_rng(3)
    words = ["one", "two", "three", "four", "five", "six"]
    source = [" ".join(draw.choice(words, draw.integers(1, 12))) for _ in range(90)]
    target = [" ".join(draw.choice(words, draw.integers(1, 12))) for _ in range(90)]
    pairs = Pairs(source, target)
    tokenizer = train_tokenizer(source + target, 400)
    cache = tmp_path_factory.mktemp("cache")
    return encode_pairs(pairs, tokenizer, max_length=64, cache_dir=cache, name="train")


@given(LENGTHS, st.integers(1, 200), st.integers(1, 4), st.integers(0, 5))
@settings(max_examples=80, deadline=None)
def test_every_epoch_holds_every_pair_once_within_the_budget(
    sizes: list[tuple[int, int]], max_tokens: int, world: int, epoch: int
) -> None:
    source, target = np.array(sizes).T
    ranks = []
    for rank in range(world):
        batches = TokenBatches(source, target, max_tokens, seed=1, rank=rank, world=world)
        batches.set_epoch(epoch)
        ranks.append(list(batches))
        assert len(ranks[-1]) == len(batches) == len(ranks[0])
    seen = np.sort(np.concatenate([batch for rank in ranks for batch in rank]))
    assert set(seen.tolist()) == set(range(len(sizes)))
    for rank in ranks:
        mine = np.concatenate(rank)
        assert len(set(mine.tolist())) == len(mine)
    if len(seen) > len(sizes):  # unavoidable only where there is nothing left to split
        assert all(len(batch) == 1 for rank in ranks for batch in rank)
        assert len(seen) < len(sizes) + world
    for rank in ranks:
        for batch in rank:
            widest = max(source[batch].max(), target[batch].max()) + 1
            assert len(batch) * widest <= max_tokens or len(batch) == 1


def test_fewer_pairs_than_ranks_repeat_across_ranks_only() -> None:
    one = np.array([3, 4])
    plans = [list(TokenBatches(one, one, 100, rank=rank, world=3)) for rank in range(3)]
    assert [len(plan) for plan in plans] == [1, 1, 1]
    assert {int(i) for plan in plans for batch in plan for i in batch} == {0, 1}


def test_the_order_is_a_pure_function_of_seed_and_epoch() -> None:
    source, target = lengths(400)

    def order(seed: int, epoch: int, before: tuple[int, ...] = ()) -> list[list[int]]:
        batches = TokenBatches(source, target, 300, seed=seed)
        for other in before:
            batches.set_epoch(other)
            list(batches)
        batches.set_epoch(epoch)
        return [batch.tolist() for batch in batches]

    assert order(1, 2) == order(1, 2, before=(0, 1, 5))
    assert order(1, 2) != order(1, 3)
    assert order(1, 2) != order(2, 2)
    # Not only the batches move: their members change too.
    assert {tuple(sorted(b)) for b in order(1, 2)} != {tuple(sorted(b)) for b in order(1, 3)}


def test_sentences_meet_others_in_other_epochs() -> None:
    source, target = lengths(2000)
    batches = TokenBatches(source, target, 1000)
    together = []
    for epoch in range(2):
        batches.set_epoch(epoch)
        together.append({(int(a), int(b)) for batch in batches for a in batch for b in batch})
    kept = len(together[0] & together[1]) / len(together[0])
    assert kept < 0.7


def test_every_epoch_has_the_same_number_of_batches() -> None:
    source, target = lengths(3000)
    batches = TokenBatches(source, target, 700, world=3)
    for epoch in range(12):
        batches.set_epoch(epoch)
        assert len(batches.plan()) == 3 * len(batches)


def test_the_sampler_that_lightning_tells_the_epoch_is_found() -> None:
    batches = TokenBatches(*lengths(10), 100)
    assert batches.sampler is batches


def test_a_pair_longer_than_the_budget_is_its_own_batch() -> None:
    source = np.array([2, 500, 3])
    batches = [batch.tolist() for batch in TokenBatches(source, source, 50)]
    assert [1] in batches


@pytest.mark.parametrize("max_tokens", [0, -4])
def test_a_budget_of_nothing_is_refused(max_tokens: int) -> None:
    with pytest.raises(UserError, match="max_tokens"):
        TokenBatches(*lengths(3), max_tokens)


def test_no_pair_is_refused() -> None:
    with pytest.raises(UserError, match="no sentence pair"):
        TokenBatches(np.array([]), np.array([]), 10)


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
    wide = [max(len(encoded.get(i)[side]) for i in rows) + 1 for side in (0, 1)]
    for place, i in enumerate(rows):
        source, target = (ids.tolist() for ids in encoded.get(i))
        assert batch["source"][place].tolist() == padded([*source, EOS], wide[0])
        assert batch["target_in"][place].tolist() == padded([BOS, *target], wide[1])
        assert batch["target_out"][place].tolist() == padded([*target, EOS], wide[1])
    assert batch["index"].tolist() == rows


def padded(ids: list[int], width: int) -> list[int]:
    return ids + [PAD] * (width - len(ids))


class Witness(pl.LightningModule):
    """Remembers the batches it was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[tuple[int, ...]] = []

    def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
        self.seen.append(tuple(batch["index"].tolist()))
        return self.layer(batch["index"].float()[:, None]).mean() * 1e-6

    def validation_step(self, batch: dict[str, torch.Tensor], _: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def loader(encoded: EncodedPairs, workers: int) -> ResumableLoader:
    batches = TokenBatches(encoded.source_lengths, encoded.target_lengths, 150, seed=4)
    return ResumableLoader(
        TranslationBatches(encoded),
        batch_sampler=batches,  # type: ignore[arg-type]
        collate_fn=as_given,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def save_every_step(folder: Path, name: str) -> pl.callbacks.ModelCheckpoint:
    return pl.callbacks.ModelCheckpoint(
        dirpath=folder,
        filename=name + "{step}",
        auto_insert_metric_name=False,
        every_n_train_steps=1,
        save_top_k=-1,
        save_on_train_epoch_end=False,
    )


class SaveAfterValidation(pl.Callback):
    """Saves at the end of each validation, as a run that keeps the best checkpoint does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_validation_end(self, trainer: pl.Trainer, _: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            trainer.save_checkpoint(self.folder / f"valid-{trainer.global_step}.ckpt")


def fit(
    encoded: EncodedPairs, workers: int, accumulate: int, steps: int, **more: object
) -> list[tuple[int, ...]]:
    witness = Witness()
    path = more.pop("ckpt_path", None)
    valid = loader(encoded, 0) if more.pop("validate", False) else None
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        accumulate_grad_batches=accumulate,
        enable_checkpointing=any(
            isinstance(callback, pl.callbacks.ModelCheckpoint)
            for callback in more.get("callbacks", [])  # type: ignore[attr-defined]
        ),
        **more,  # type: ignore[arg-type]
    )
    trainer.fit(witness, loader(encoded, workers), valid, ckpt_path=path)  # type: ignore[arg-type]
    return witness.seen


@pytest.mark.parametrize(("workers", "accumulate"), [(0, 1), (0, 3), (2, 1), (2, 2)])
def test_training_resumes_with_the_next_batch(
    encoded: EncodedPairs, tmp_path: Path, workers: int, accumulate: int
) -> None:
    per_epoch = len(loader(encoded, 0))
    steps_per_epoch = -(-per_epoch // accumulate)
    steps = 2 * steps_per_epoch + 3
    save = save_every_step(tmp_path, "")
    whole = fit(encoded, workers, accumulate, steps, callbacks=[save])
    epochs = [whole[:per_epoch], whole[per_epoch : 2 * per_epoch]]
    for epoch in epochs:
        assert sorted(i for batch in epoch for i in batch) == list(range(len(encoded)))
    assert epochs[0] != epochs[1]
    points = {1, 2, steps_per_epoch - 1, steps_per_epoch, steps_per_epoch + 1, steps - 2}
    points |= set(range(1, steps, 1 if workers == 0 else steps))
    for step in sorted(points):
        rest = fit(encoded, workers, accumulate, steps, ckpt_path=tmp_path / f"{step}.ckpt")
        epoch, inside = divmod(step, steps_per_epoch)
        done = epoch * per_epoch + inside * accumulate
        assert rest == whole[done:], f"resumed after step {step}"


@pytest.mark.parametrize("every", [1, 2, 3, "epoch"])
def test_training_resumes_with_validation_between(
    encoded: EncodedPairs, tmp_path: Path, every: int | str
) -> None:
    per_epoch = len(loader(encoded, 0))
    steps = 2 * per_epoch + 3
    when: dict[str, object] = {"validate": True, "num_sanity_val_steps": 0}
    if every != "epoch":
        when |= {"val_check_interval": every, "check_val_every_n_epoch": None}
    saves = [save_every_step(tmp_path, "batch-"), SaveAfterValidation(tmp_path)]
    whole = fit(encoded, 0, 1, steps, callbacks=saves, **when)
    saved = sorted(tmp_path.iterdir())
    assert len(list(tmp_path.glob("valid-*"))) >= 2
    for path in saved:
        step = int(path.stem.split("-")[1])
        if step < steps:
            rest = fit(encoded, 0, 1, steps, ckpt_path=path, **when)
            assert rest == whole[step:], f"resumed from {path.name}"


def test_prefetched_batches_do_not_count(encoded: EncodedPairs) -> None:
    batches = loader(encoded, 2)
    given = iter(batches)
    first = [next(given)["index"].tolist() for _ in range(3)]
    state = batches.state_dict()
    assert state == {"epoch": 0, "batches_done": 3}
    again = loader(encoded, 0)
    again.load_state_dict(state)
    order = first + [batch["index"].tolist() for batch in again]
    assert order == [batch["index"].tolist() for batch in loader(encoded, 0)]
    assert again.state_dict()["batches_done"] == len(again)


def best_of(action: Callable[[], object], times: int = 3) -> float:
    spent = []
    for _ in range(times):
        start = time.perf_counter()
        action()
        spent.append(time.perf_counter() - start)
    return min(spent)


def test_planning_a_large_corpus_takes_a_fraction_of_a_second() -> None:
    batches = TokenBatches(*lengths(133_317), 4096)

    def plan() -> None:
        batches.set_epoch(batches.epoch + 1)
        batches.plan()

    assert best_of(plan) < 0.5


@pytest.mark.skipif(not NEWS.is_dir(), reason=f"the EVBNews corpus is not at {NEWS}")
def test_news_is_95_percent_real(tmp_path: Path) -> None:
    pairs = load_corpus(str(NEWS), splits=["train"]).splits["train"]
    tokenizer = cached_tokenizer(pairs, 8000, tmp_path)
    data = encode_pairs(pairs, tokenizer, max_length=128, cache_dir=tmp_path, name="train")
    batches = TokenBatches(data.source_lengths, data.target_lengths, 4096)
    for epoch in range(3):
        batches.set_epoch(epoch)
        source, target = batches.efficiency()
        assert target >= 0.95
        assert source >= 0.88
