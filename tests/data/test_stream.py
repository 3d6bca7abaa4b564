"""The stream of batches: epochs in order, nothing lost at a resume, sliced by rank."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from normtrain.data.stream import BatchStream
from normtrain.errors import UserError
from normtrain.tasks.translation.batching import TokenBatches
from normtrain.tasks.translation.config import TranslationDataConfig
from normtrain.tasks.translation.data import TranslationData

Batches = list[list[int]]


def planner() -> TokenBatches:
    source = np.random.default_rng(0).integers(1, 30, 200)
    return TokenBatches(source, source + 1, 120, seed=3)


N = len(planner())


def read(stream: BatchStream) -> Batches:
    return [batch.tolist() for batch in stream]


@pytest.mark.parametrize("total", [1, N, 2 * N, 2 * N + N // 2])
def test_batch_k_is_of_epoch_k_div_n(total: int) -> None:
    stream = BatchStream(planner(), total)
    epochs = [[batch.tolist() for batch in planner().plan(epoch)] for epoch in range(3)]
    assert read(stream) == [*epochs[0], *epochs[1], *epochs[2]][:total]
    assert len(stream) == total
    assert epochs[0] != epochs[1]
    assert [stream.epoch_of(k) for k in (0, N - 1, N, 2 * N)] == [0, 0, 1, 2]


def test_skip_leaves_out_batches_of_one_pass() -> None:
    whole = read(BatchStream(planner(), 3 * N))
    for skip in (0, 1, N - 1, N, N + 1, 3 * N - 1, 3 * N):
        stream = BatchStream(planner(), 3 * N)
        stream.skip = skip
        assert read(stream) == whole[skip:], skip
        assert read(stream) == whole


@pytest.mark.parametrize(("before", "after"), [(1, 2), (3, 1), (3, 2), (2, 3)])
def test_ranks_slice_one_stream_that_does_not_depend_on_their_number(
    before: int, after: int
) -> None:
    total, done = 3 * N // 6 * 6, 6 * (N // 5)
    whole = read(BatchStream(planner(), total))
    first = [BatchStream(planner(), total, rank=r, world=before) for r in range(before)]
    ranks = [read(stream) for stream in first]
    assert {len(each) for each in (*ranks, *first)} == {total // before}
    assert [batch for step in zip(*ranks, strict=True) for batch in step] == whole
    second = [BatchStream(planner(), total, rank=r, world=after) for r in range(after)]
    for stream in second:
        stream.skip = done // after
    assert [b for step in zip(*map(read, second), strict=True) for b in step] == whole[done:]
    assert second[-1].epoch_of(total // after - 1) == (total - 1) // N


@pytest.fixture
def data(corpus_folder: Path) -> Callable[..., TranslationData]:
    def build(total: int | None = 30, workers: int = 0) -> TranslationData:
        config = TranslationDataConfig(
            source=str(corpus_folder), max_tokens=60, vocab_size=420, workers=workers
        )
        return TranslationData(config, total_batches=total)

    return build


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.extended)])
def test_the_state_counts_batches_given_not_fetched_ahead(
    data: Callable[..., TranslationData], workers: int
) -> None:
    random = torch.get_rng_state()
    whole = [batch["index"] for batch in data().train_dataloader()]
    assert len(whole) == 30
    first = data(workers=workers).train_dataloader()
    batches = iter(first)
    for _ in range(11):
        next(batches)
    state = first.state_dict()
    assert state == {"batches_done": 11}
    assert first.epoch == 10 // len(first._stream.batches)
    del batches
    second = data(workers=workers).train_dataloader()
    second.load_state_dict(state)
    assert second.state_dict() == state
    rest = [batch["index"] for batch in second]
    assert len(rest) == 19
    assert all(torch.equal(a, b) for a, b in zip(rest, whole[11:], strict=True))
    assert second.state_dict() == {"batches_done": 30}
    assert torch.equal(torch.get_rng_state(), random)  # reading draws no random numbers


def test_the_state_is_of_all_ranks(data: Callable[..., TranslationData]) -> None:
    made = data()
    made.trainer = SimpleNamespace(global_rank=1, world_size=2)  # type: ignore[assignment]
    one = made.train_dataloader()
    batches = iter(one)
    for _ in range(4):
        next(batches)
    assert one.state_dict() == {"batches_done": 8}
    one.load_state_dict({"batches_done": 6})
    assert len(list(one)) == 12
    with pytest.raises(UserError, match="7 batches, which 2 processes"):
        one.load_state_dict({"batches_done": 7})


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


@pytest.mark.parametrize(
    ("workers", "accumulate", "validate_every"),
    [
        (0, 1, 3),
        pytest.param(0, 3, 2, marks=pytest.mark.extended),
        pytest.param(2, 2, 5, marks=pytest.mark.extended),
    ],
)
def test_a_trainer_resumes_with_the_next_batch(
    data: Callable[..., TranslationData],
    tmp_path: Path,
    workers: int,
    accumulate: int,
    validate_every: int,
) -> None:
    data().setup()
    epoch = len(data()._batches())
    steps = 2 * epoch // accumulate + 2

    def fit(step: int | None = None) -> list[tuple[int, ...]]:
        witness = Witness()
        save = pl.callbacks.ModelCheckpoint(
            dirpath=tmp_path,
            filename="{step}",
            auto_insert_metric_name=False,
            every_n_train_steps=1,
            save_top_k=-1,
            save_on_train_epoch_end=False,
        )
        trainer = pl.Trainer(
            accelerator="cpu",
            max_steps=steps,
            logger=False,
            callbacks=[save] if step is None else [],
            enable_checkpointing=step is None,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            accumulate_grad_batches=accumulate,
            val_check_interval=validate_every * accumulate,
            num_sanity_val_steps=0,
        )
        path = None if step is None else tmp_path / f"{step}.ckpt"
        trainer.fit(witness, datamodule=data(steps * accumulate, workers), ckpt_path=path)
        return witness.seen

    whole = fit()
    assert len(whole) == steps * accumulate
    border = epoch // accumulate
    for step in sorted({1, 2, 3, border, border + 1, steps - 1}):
        assert fit(step) == whole[step * accumulate :], f"resumed after step {step}"
