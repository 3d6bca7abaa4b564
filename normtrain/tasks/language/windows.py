"""Windows of a token stream: shuffled ones to train on, and ones that score every token once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from normtrain.data.epochs import EpochBatches, Indices
from normtrain.errors import UserError
from normtrain.tasks.language.encoding import EncodedText


class WindowBatches(EpochBatches):
    """Batches of windows without padding; an index is the position of a window's first token.

    Each epoch cuts the stream into windows of `window` input tokens (a window also holds the next
    token, the last target) from an offset on, and shuffles them; offset and order are a pure
    function of (seed, epoch). Windows do not overlap but for that one token, and fewer than
    2·`window` tokens at the two ends of the stream are left out of an epoch. A batch has
    ``max_tokens // window`` windows, the last one of an epoch may have fewer.

    Args:
        tokens: length of the stream.
        window: input tokens of a window.
        max_tokens: input tokens of a batch, at most.
        seed: decides offsets and order, together with the epoch.

    Attributes:
        windows: windows of an epoch, the same number in every epoch.

    Raises:
        UserError: the stream is shorter than a window and its last target, or `max_tokens` is
            below `window`.
    """

    def __init__(self, tokens: int, window: int, max_tokens: int, *, seed: int = 0) -> None:
        super().__init__(seed=seed)
        check_window(window)
        if max_tokens < window:
            raise UserError(
                f"max_tokens must be >= window, so that a batch holds a window; got {max_tokens} "
                f"and {window}"
            )
        if tokens < window + 1:
            raise UserError(
                f"the text has {tokens:,} tokens, too few for a window of {window} and the token "
                "after it; give more text or a shorter window"
            )
        self.window = window
        self.max_tokens = max_tokens
        self.windows = max(1, (tokens - window) // window)
        self._offsets = min(window, tokens - self.windows * window)
        self._size = max_tokens // window

    def __len__(self) -> int:
        return -(-self.windows // self._size)

    def _make(self, generator: np.random.Generator) -> list[Indices]:
        offset = int(generator.integers(self._offsets))
        starts = generator.permutation(self.windows) * self.window + offset
        return np.split(starts, range(self._size, self.windows, self._size))


class TextWindows(Dataset[dict[str, torch.Tensor]]):
    """Windows of encoded text by the position of their first token, read a batch at a time.

    A batch is ``{"tokens": (batch, window + 1) int64}``: inputs are all but the last column,
    targets all but the first.
    """

    def __init__(self, text: EncodedText, window: int) -> None:
        self.text, self.window = text, window

    def __getitems__(self, starts: Sequence[int] | Indices) -> dict[str, torch.Tensor]:
        tokens = self.text.tokens
        rows = np.stack([tokens[start : start + self.window + 1] for start in map(int, starts)])
        return {"tokens": torch.from_numpy(rows.astype(np.int64))}


class EvaluationWindows(Dataset[dict[str, torch.Tensor]]):
    """Windows that score every token of a split exactly once; an index is a window's number.

    The stream is `eos` and the split's tokens, so that the first token has a context too. Windows
    of `window` inputs advance by `stride`. The first window scores all its targets, each later one
    its last `stride`: with ``stride < window`` every token but the first ones has at least
    ``window - stride`` tokens of context.

    A batch is ``{"tokens": (batch, window + 1) int64, "scored": (batch, window) bool}``:
    ``scored[:, i]`` says whether the prediction of ``tokens[:, i + 1]`` counts. Windows that reach
    beyond the end are filled with `eos`, unscored.

    Args:
        text: the split.
        window: input tokens of a window.
        stride: by how many tokens windows advance; None takes `window`.

    Raises:
        UserError: `window` is below 1, or `stride` is not from 1 to `window`.
    """

    def __init__(self, text: EncodedText, window: int, stride: int | None = None) -> None:
        check_window(window)
        stride = window if stride is None else stride
        if not 1 <= stride <= window:
            raise UserError(f"stride must be from 1 to window ({window}), got {stride}")
        self.text, self.window, self.stride = text, window, stride

    def __len__(self) -> int:
        return 1 + max(0, -(-(len(self.text) - self.window) // self.stride))

    def __getitems__(self, numbers: Sequence[int] | Indices) -> dict[str, torch.Tensor]:
        window, stride, size = self.window, self.stride, len(self.text)
        tokens = np.full((len(numbers), window + 1), self.text.eos, dtype=np.int64)
        scored = np.zeros((len(numbers), window), dtype=bool)
        for row, number in enumerate(map(int, numbers)):
            begin = number * stride  # the first target's position in the text
            end = min(begin + window, size)
            before = max(0, begin - 1)
            tokens[row, before - begin + 1 : end - begin + 1] = self.text.tokens[before:end]
            scored[row, window - stride if number else 0 : end - begin] = True
        return {"tokens": torch.from_numpy(tokens), "scored": torch.from_numpy(scored)}

    def batches(self, batch_size: int, *, rank: int = 0, world: int = 1) -> WindowSlices:
        """Return the numbers of all windows in batches, this rank's slice.

        Args:
            batch_size: windows of a batch, at most.
            rank: this process.
            world: number of processes; each gets a window if there are enough.

        Raises:
            UserError: `batch_size` is below 1.
        """
        if batch_size < 1:
            raise UserError(f"batch_size must be >= 1, got {batch_size}")
        return WindowSlices(len(self), batch_size, rank, world)


class WindowSlices(Sampler[Indices]):
    """Windows 0 to ``windows - 1`` in order, each once, divided evenly over the ranks.

    Ranks hold neighbouring windows; they may differ by one window.
    """

    def __init__(self, windows: int, batch_size: int, rank: int, world: int) -> None:
        assert 0 <= rank < world, (rank, world)
        self._begin = windows * rank // world
        self._end = windows * (rank + 1) // world
        self._size = batch_size

    def __len__(self) -> int:
        return -(-(self._end - self._begin) // self._size)

    def __iter__(self) -> Iterator[Indices]:
        for begin in range(self._begin, self._end, self._size):
            yield np.arange(begin, min(begin + self._size, self._end))


def check_window(window: int) -> None:
    """Check that a window holds a token.

    Raises:
        UserError: `window` is below 1.
    """
    if window < 1:
        raise UserError(f"window must be >= 1, got {window}")
