"""What the Lightning data modules share: loaders sliced by rank, a run as one stream, workers."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Sequence, Sized
from typing import Any, ClassVar, Generic, TypeVar, cast

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from normtrain.config.sections import DataConfig
from normtrain.data.epochs import EpochBatches
from normtrain.data.stream import BatchStream, StreamLoader
from normtrain.data.workers import start_worker
from normtrain.errors import UserError

Encoded = TypeVar("Encoded", bound=Sized)
Batch = dict[str, torch.Tensor]


class CorpusData(pl.LightningDataModule, Generic[Encoded]):
    """Base of the data modules: splits encoded by `setup`, and loaders over them.

    Use it with ``Trainer(use_distributed_sampler=False)``: batches are sliced by rank here.

    Args:
        config: the ``data`` section of the recipe.
        source: another corpus than the config's.
        revision: pins a dataset of the Hub.
        tokenizer: that of the checkpoint, when resuming or evaluating; None trains one on the
            training split.
        seed: decides the order of batches.
        total_batches: batches of the whole run, over all ranks, which the training loader gives
            as one stream sliced by rank; None takes one epoch.
        cache_dir: where encodings are kept (see `normtrain.data.cache.cache_root`).
        splits: which splits to load; None takes train, valid and, where there is one, test.

    Attributes:
        unit: what the splits consist of, for messages.
        corpus: what was loaded, with its ``splits`` and ``provenance``, after `setup`.
        tokenizer: text to ids and back, after `setup`.
        encoded: the encoded splits by name, after `setup`.
        report: sentences on what was loaded, dropped and truncated; nothing is printed here.
    """

    unit: ClassVar[str]
    corpus: Any
    tokenizer: Any

    def __init__(
        self,
        config: DataConfig,
        *,
        source: str | None = None,
        revision: str | None = None,
        tokenizer: Any = None,
        seed: int = 1,
        total_batches: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        splits: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.config: Any = config
        self.source, self.revision = source or config.source, revision
        self.seed, self.total_batches = seed, total_batches
        self.cache_dir, self.splits = cache_dir, splits
        self._given_tokenizer = tokenizer
        self.encoded: dict[str, Encoded] = {}
        self.report: list[str] = []

    def prepare_data(self) -> None:
        """Fill the caches, on one process of each machine."""
        self.setup("fit")

    def setup(self, stage: str | None = None) -> None:
        """Load, tokenize and encode; a second call changes nothing.

        Raises:
            UserError: the corpus or the settings cannot be used.
            RunError: the Hub cannot be reached, or the cache cannot be written.
        """
        if self.encoded:
            return
        self.corpus = self._load()
        splits = self.corpus.splits
        if self._given_tokenizer is None and "train" not in splits:
            raise UserError(f"{self.source}: without its train split there is no tokenizer")
        self.tokenizer = self._given_tokenizer or self._train_tokenizer(splits["train"])
        encoded = {name: self._encode(name, split) for name, split in splits.items()}
        self.report = [*self._about_the_corpus(), *self._describe(encoded)]
        self.encoded = encoded

    @abstractmethod
    def _load(self) -> Any:
        """Return the corpus."""

    @abstractmethod
    def _train_tokenizer(self, train: Any) -> Any:
        """Return a tokenizer of the training split's text."""

    @abstractmethod
    def _encode(self, name: str, split: Any) -> Encoded:
        """Return a split as ids of `tokenizer`."""

    @abstractmethod
    def _describe(self, encoded: dict[str, Encoded]) -> list[str]:
        """Return sentences on splits, vocabulary and batches, for `report`."""

    def _about_the_corpus(self) -> list[str]:
        origin = self.corpus.provenance
        at = f" at revision {origin['revision']}" if origin["revision"] else ""
        lines = [f"corpus {origin['source']}{at}"]
        if self.revision and origin["kind"] != "hub":
            lines.append(f"revision {self.revision} has no effect: the corpus is not on the Hub")
        return lines

    def check_ranks(self, world: int) -> None:
        """Check that every split has enough data for the processes.

        Raises:
            UserError: a split has less than one `unit` for each of ``world`` processes.
        """
        for split in self.encoded:
            size = self._size(split)
            if size < world:
                raise UserError(
                    f"{self.source}: the split {split!r} has {size} {self.unit}, too few for "
                    f"{world} processes"
                )

    def _size(self, split: str) -> int:
        """Return how many of its `unit` a split has."""
        return len(self.encoded[split])

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
            "num_workers": self.config.workers,
            "worker_init_fn": start_worker,
            "persistent_workers": self.config.workers > 0,
            "pin_memory": torch.cuda.is_available(),
            # A generator of its own: iterating must not draw from the one dropout uses.
            "generator": torch.Generator().manual_seed(self.seed),
        }


def _unchanged(batch: Batch) -> Batch:
    """The loaders' collate function: the datasets give finished batches."""
    return batch
