"""Batches planned an epoch at a time, as a pure function of (seed, epoch), and sliced by rank."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler

Indices = NDArray[np.int64]


class EpochBatches(Sampler[Indices], ABC):
    """Batches of indices in a new order every epoch, resumable inside an epoch.

    The order is a pure function of (seed, epoch). Every epoch has the same number of batches,
    since Lightning reads it once. All ranks slice one plan and take equally many steps.

    Args:
        seed: decides the order, with the epoch.
        rank: which slice this process takes.
        world: how many slices there are.
    """

    def __init__(self, *, seed: int, rank: int, world: int) -> None:
        assert 0 <= rank < world, (rank, world)
        self.seed = seed
        self.rank = rank
        self.world = world
        self.epoch = 0
        self._resume = (0, 0)
        self._plan: tuple[int, list[Indices]] | None = None

    @property
    def sampler(self) -> EpochBatches:
        """Itself: Lightning hands the epoch to ``loader.batch_sampler.sampler`` only."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next pass yields."""
        self.epoch = epoch

    def resume(self, epoch: int, batches_done: int) -> None:
        """Let the next pass over `epoch` leave out this rank's first batches; no other pass does.

        After a checkpoint from the last batch of an epoch Lightning goes on with the next one,
        which must begin at its beginning.
        """
        self.epoch = epoch
        self._resume = (epoch, batches_done)

    @property
    def skip(self) -> int:
        """How many batches of this rank the next pass leaves out."""
        return self._resume[1] if self._resume[0] == self.epoch else 0

    def plan(self) -> list[Indices]:
        """The batches of this epoch over all ranks; rank r takes ``plan()[r::world]``."""
        if self._plan is None or self._plan[0] != self.epoch:
            self._plan = (self.epoch, self._make(self._draw(self.epoch)))
        return self._plan[1]

    @abstractmethod
    def __len__(self) -> int:
        """Batches of an epoch that this rank takes."""

    def __iter__(self) -> Iterator[Indices]:
        skip = self.skip
        self._resume = (0, 0)
        yield from self.plan()[self.rank :: self.world][skip:]

    @abstractmethod
    def _make(self, draw: np.random.Generator) -> list[Indices]:
        """All batches of an epoch, over all ranks; `draw` is the only source of chance."""

    def _draw(self, epoch: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, epoch])))


class ResumableLoader(DataLoader[dict[str, torch.Tensor]]):
    """A loader over `EpochBatches` that continues inside an epoch.

    Its state counts the batches that the training loop was given, not those that workers fetched
    ahead. Lightning saves and restores it with a checkpoint.
    """

    # Which epoch's batches the loop was given, and how many of them.
    _given = (0, 0)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:  # type: ignore[override]
        sampler = self._batches
        epoch, done = sampler.epoch, sampler.skip
        self._given = (epoch, done)
        for batch in super().__iter__():
            done += 1
            self._given = (epoch, done)
            yield batch

    def state_dict(self) -> dict[str, int]:
        """``{"epoch": …, "batches_done": …}``: batches of this rank in that epoch."""
        epoch = self._batches.epoch
        # A new epoch may have been chosen whose first batch isn't asked for yet.
        done = self._given[1] if self._given[0] == epoch else 0
        return {"epoch": epoch, "batches_done": done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next pass begin after ``batches_done`` batches of ``epoch``."""
        self._given = (int(state["epoch"]), int(state["batches_done"]))
        self._batches.resume(*self._given)

    @property
    def _batches(self) -> EpochBatches:
        assert isinstance(self.batch_sampler, EpochBatches)
        return self.batch_sampler


def as_given(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The loader's collate function: the datasets of this room give finished batches."""
    return batch
