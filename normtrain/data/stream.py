"""The batches of a whole run as one stream: epoch after epoch, resumable at any batch.

Lightning treats the stream as a single epoch of known length. So gradient accumulation continues
across the boundaries of real epochs, and a position in the data is one number, over all ranks: a
run that is resumed with another number of ranks continues with the next batch.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Sampler

from normtrain.data.epochs import EpochBatches, Indices
from normtrain.errors import UserError


class BatchStream(Sampler[Indices]):
    """The batches of epochs 0, 1, 2, … in sequence; rank r takes every world-th from r on.

    Batch k of the stream is batch ``k % n`` of epoch ``k // n``, where an epoch has n batches. The
    stream is the same for any number of ranks, so all ranks take equally many steps and no batch is
    left out or repeated: a step at the boundary of two epochs has batches of both.

    Args:
        batches: plans an epoch.
        total: batches of the whole run, over all ranks; a multiple of ``world``.
        rank: this process.
        world: number of processes.
    """

    def __init__(self, batches: EpochBatches, total: int, *, rank: int = 0, world: int = 1) -> None:
        assert 0 <= rank < world, (rank, world)
        assert total % world == 0, (total, world)
        self.batches, self.rank, self.world = batches, rank, world
        self.total = total
        self.skip = 0  # batches of this rank that the next pass leaves out

    def __len__(self) -> int:
        return self.total // self.world

    def epoch_of(self, batch: int) -> int:
        """Return the epoch of this rank's batch number ``batch``; both count from 0."""
        return (batch * self.world + self.rank) // len(self.batches)

    def __iter__(self) -> Iterator[Indices]:
        begin, self.skip = self.skip, 0
        for position in range(begin * self.world + self.rank, self.total, self.world):
            epoch, inside = divmod(position, len(self.batches))
            yield self.batches.plan(epoch)[inside]


class StreamLoader(DataLoader[dict[str, torch.Tensor]]):
    """A loader over a `BatchStream` whose state is the number of batches the loop was given.

    Batches that workers fetched ahead do not count. Lightning saves and restores the state with a
    checkpoint.
    """

    _given = 0

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:  # type: ignore[override]
        self._given = self._stream.skip
        for batch in super().__iter__():
            self._given += 1
            yield batch

    @property
    def epoch(self) -> int:
        """The epoch of the batch given last."""
        return self._stream.epoch_of(max(0, self._given - 1))

    def state_dict(self) -> dict[str, int]:
        """Return ``{"batches_done": …}``, over all ranks, since the start of the run."""
        return {"batches_done": self._given * self._stream.world}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Start the next pass after ``batches_done`` batches of all ranks together.

        Raises:
            UserError: the number of ranks does not divide them.
        """
        done, rest = divmod(int(state["batches_done"]), self._stream.world)
        if rest:
            raise UserError(
                f"the run stopped after {state['batches_done']} batches, which "
                f"{self._stream.world} processes cannot share evenly; resume with a number of "
                "processes that divides it"
            )
        self._stream.skip = self._given = done

    @property
    def _stream(self) -> BatchStream:
        assert isinstance(self.batch_sampler, BatchStream)
        return self.batch_sampler
