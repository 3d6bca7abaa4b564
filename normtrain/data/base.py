"""What the Lightning data modules share: loaders sliced by rank, a run as one stream, workers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sized
from typing import Any, Generic, TypeVar, cast

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from normtrain.data.epochs import EpochBatches
from normtrain.data.stream import BatchStream, StreamLoader
from normtrain.data.workers import start_worker
from normtrain.errors import UserError

Encoded = TypeVar("Encoded", bound=Sized)
Batch = dict[str, torch.Tensor]


class CorpusData(pl.LightningDataModule, Generic[Encoded]):
    """Base of the data modules: splits encoded by `setup`, and loaders over them.

    Args:
        source: where the corpus comes from.
        workers: loader processes; 0 assembles batches in the training process.
        seed: decides the order of batches.
        total_batches: batches of the whole run, over all ranks, which the training loader gives
            as one stream sliced by rank; None takes one epoch.

    Attributes:
        corpus: what was loaded, with its ``provenance``, after `setup`.
        tokenizer: text to ids and back, after `setup`.
        encoded: the encoded splits by name, after `setup`.
        report: sentences on what was loaded, dropped and truncated; nothing is printed here.
    """

    corpus: Any
    tokenizer: Any

    def __init__(self, source: str, *, workers: int, seed: int, total_batches: int | None) -> None:
        super().__init__()
        self.source = source
        self.workers = workers
        self.seed = seed
        self.total_batches = total_batches
        self.encoded: dict[str, Encoded] = {}
        self.report: list[str] = []

    def prepare_data(self) -> None:
        """Fill the caches, on one process of each machine."""
        self.setup("fit")

    @abstractmethod
    def setup(self, stage: str | None = None) -> None:
        """Load, tokenize and encode; a second call changes nothing."""

    @abstractmethod
    def check_ranks(self, world: int) -> None:
        """Check that every split has enough data for the processes.

        Raises:
            UserError: a split has too little for ``world`` processes.
        """

    def train_dataloader(self) -> StreamLoader:
        """Return this rank's slice of the run's batches; resumable at any batch."""
        rank, world = self._place()
        batches = self._batches()
        total = len(batches) // world * world if self.total_batches is None else self.total_batches
        stream = BatchStream(batches, total, rank=rank, world=world)
        data: Any = self._rows("train")
        return StreamLoader(data, batch_sampler=cast(Any, stream), **self._workers())

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return the whole validation split once."""
        return self.evaluation_loader("valid")

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return the whole test split once."""
        return self.evaluation_loader("test")

    @abstractmethod
    def evaluation_loader(self, split: str) -> DataLoader[Batch]:
        """Return the whole of a split once, this rank's slice."""

    @abstractmethod
    def _batches(self) -> EpochBatches:
        """The plan of training batches, over all ranks."""

    @abstractmethod
    def _rows(self, split: str) -> Dataset[Batch]:
        """The dataset that turns the plan's indices into batches."""

    def _split(self, name: str) -> Encoded:
        self.setup()
        if name not in self.encoded:
            loaded = ", ".join(self.encoded)
            raise UserError(f"{self.source} was loaded without the split {name!r} (only {loaded})")
        return self.encoded[name]

    def _place(self) -> tuple[int, int]:
        trainer = self.trainer
        return (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)

    def _workers(self) -> dict[str, Any]:
        return {
            "collate_fn": _unchanged,
            "num_workers": self.workers,
            "worker_init_fn": start_worker,
            "persistent_workers": self.workers > 0,
            "pin_memory": torch.cuda.is_available(),
            # A generator of its own: iterating must not draw from the one dropout uses.
            "generator": torch.Generator().manual_seed(self.seed),
        }


def _unchanged(batch: Batch) -> Batch:
    """The loaders' collate function: the datasets give finished batches."""
    return batch
