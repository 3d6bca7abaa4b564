"""A whole run's batches as one stream: epoch after epoch, resumable at any batch.

Lightning treats the stream as a single epoch of known length. So gradient accumulation runs across
the borders of real epochs, and a position in the data is one number.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Sampler

from normtrain.data.epochs import EpochBatches, Indices


class BatchStream(Sampler[Indices]):
    """The batches of epochs 0, 1, 2, … of one rank, ``total`` of them.

    Batch k is batch ``k % n`` of epoch ``k // n``, where an epoch has n batches.

    Args:
        batches: plans an epoch and slices it by rank.
        total: batches of the whole run, a rank.
    """

    def __init__(self, batches: EpochBatches, total: int) -> None:
        self.batches, self.total = batches, total
        self.skip = 0  # batches that the next pass leaves out

    def __len__(self) -> int:
        return self.total

    def epoch_of(self, batch: int) -> int:
        """The epoch that batch number ``batch`` belongs to; both count from 0."""
        return batch // len(self.batches)

    def __iter__(self) -> Iterator[Indices]:
        done, self.skip = self.skip, 0
        while done < self.total:
            epoch, inside = divmod(done, len(self.batches))
            self.batches.set_epoch(epoch)
            mine = self.batches.plan()[self.batches.rank :: self.batches.world]
            for batch in mine[inside:]:
                yield batch
                done += 1
                if done == self.total:
                    return


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
        """``{"batches_done": …}``, of this rank, since the run began."""
        return {"batches_done": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next pass begin after ``batches_done`` batches."""
        self._stream.skip = self._given = int(state["batches_done"])

    @property
    def _stream(self) -> BatchStream:
        assert isinstance(self.batch_sampler, BatchStream)
        return self.batch_sampler
