"""The batches of an epoch, as a pure function of (seed, epoch)."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


class EpochBatches(ABC):
    """Batches of indices in a new order every epoch; every epoch has the same number of batches.

    Args:
        seed: decides the order, together with the epoch.
    """

    def __init__(self, *, seed: int) -> None:
        self.seed = seed
        self._planned: tuple[int, list[Indices]] | None = None

    def plan(self, epoch: int) -> list[Indices]:
        """Return the batches of an epoch; the last plan is kept."""
        if self._planned is None or self._planned[0] != epoch:
            sequence = np.random.SeedSequence([self.seed, epoch])
            generator = np.random.Generator(np.random.PCG64(sequence))
            self._planned = (epoch, self._make(generator))
        return self._planned[1]

    @abstractmethod
    def __len__(self) -> int:
        """Batches of an epoch."""

    @abstractmethod
    def _make(self, generator: np.random.Generator) -> list[Indices]:
        """All batches of an epoch; `generator` is the only source of randomness."""
