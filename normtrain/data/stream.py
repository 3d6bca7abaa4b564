"""A whole run's batches as one stream: epoch after epoch, resumable at any batch.

Lightning treats the stream as a single epoch of known length. So gradient accumulation runs across
the borders of real epochs, and a position in the data is one number, over all ranks: a run that
goes on with another number of ranks goes on with the next batch.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Sampler

from normtrain.data.epochs import EpochBatches, Indices
from normtrain.errors import UserError


class BatchStream(Sampler[Indices]):
    """The batches of epochs 0, 1, 2, … in one line, of which each rank takes every world-th.

    Batch k of the line is batch ``k % n`` of epoch ``k // n``, where an epoch has n batches. The
    line is the same for any number of ranks. So all ranks take equally many steps without a batch
    left out or taken twice: a step at the border of two epochs has batches of both.

    Args:
        batches: plans an epoch, for one rank.
        total: batches of the whole run, over all ranks; a multiple of ``world``.
        rank: which slice this process takes.
        world: how many slices there are.
    """

    def __init__(self, batches: EpochBatches, total: int, *, rank: int = 0, world: int = 1) -> None:
        assert 0 <= rank < world, (rank, world)
        assert batches.world == 1, batches.world
        assert total % world == 0, (total, world)
        self.batches, self.rank, self.world = batches, rank, world
        self.total = total
        self.skip = 0  # batches of this rank that the next pass leaves out

    def __len__(self) -> int:
        return self.total // self.world

    def epoch_of(self, batch: int) -> int:
        """The epoch that this rank's batch number ``batch`` belongs to; both count from 0."""
        return (batch * self.world + self.rank) // len(self.batches)

    def __iter__(self) -> Iterator[Indices]:
        begin, self.skip = self.skip, 0
        for place in range(begin * self.world + self.rank, self.total, self.world):
            epoch, inside = divmod(place, len(self.batches))
            self.batches.set_epoch(epoch)
            yield self.batches.plan()[inside]


class StreamLoader(DataLoader[dict[str, torch.Tensor]]):
    """A loader over a `BatchStream` whose state is how many batches the loop was given.

    Batches that workers fetched ahead don't count. Lightning saves and restores the state with a
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
        """``{"batches_done": …}``, over all ranks, since the run began."""
        return {"batches_done": self._given * self._stream.world}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next pass begin after ``batches_done`` batches of all ranks together.

        Raises:
            ValueError: the number of ranks does not divide them.
        """
        done, left = divmod(int(state["batches_done"]), self._stream.world)
        if left:
            raise UserError(
                f"the run stopped after {state['batches_done']} batches, which "
                f"{self._stream.world} processes can't have shared evenly"
            )
        self._stream.skip = self._given = done

    @property
    def _stream(self) -> BatchStream:
        assert isinstance(self.batch_sampler, BatchStream)
        return self.batch_sampler
