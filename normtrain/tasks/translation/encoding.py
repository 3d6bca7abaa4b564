"""Encoded sentence pairs, cached on disk and memory-mapped through `datasets`."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normtrain.data.cache import cache_root, cached_entry, fingerprint
from normtrain.errors import UserError
from normtrain.tasks.translation.corpora import Pairs
from normtrain.tasks.translation.tokenizer import TOKENIZER_VERSION, Tokenizer, train_tokenizer

_VERSION = "1"
_DATA, _REPORT = "pairs.arrow", "report.json"


@dataclass(frozen=True)
class EncodingReport:
    """How many pairs of a split were kept, dropped and truncated.

    Lengths are in positions: the tokens of a side and its EOS (or BOS).

    Attributes:
        pairs: number of pairs before dropping.
        empty: dropped from training because a side had no text.
        too_long: dropped from training because a side was longer than `max_length`.
        truncated_sources: outside training, sources truncated to `max_length`.
        truncated_targets: outside training, targets truncated to `max_length`. This affects the
            loss only: BLEU is computed on text.
        longest_source: the longest source before dropping and truncating.
        longest_target: the same for targets.
        max_length: the limit.
    """

    pairs: int
    empty: int
    too_long: int
    truncated_sources: int
    truncated_targets: int
    longest_source: int
    longest_target: int
    max_length: int

    @property
    def dropped(self) -> int:
        """Number of pairs that are not in the encoded data."""
        return self.empty + self.too_long

    def lines(self, split: str) -> list[str]:
        """Describe the split in sentences, for the log."""
        text = [f"{split}: {self.pairs - self.dropped:,} pairs"]
        if self.empty:
            text.append(f"{split}: dropped {self.empty:,} pairs with an empty side")
        longest = f"the longest has {max(self.longest_source, self.longest_target):,} positions"
        if self.too_long:
            text.append(
                f"{split}: dropped {self.too_long:,} pairs longer than "
                f"max_length={self.max_length} ({longest})"
            )
        for count, side in ((self.truncated_sources, "source"), (self.truncated_targets, "target")):
            if count:
                text.append(
                    f"{split}: truncated {count:,} {side} sentences to "
                    f"max_length={self.max_length} ({longest})"
                )
        return text


class Ragged:
    """Sequences of different lengths in one flat array.

    Attributes:
        values: all sequences, one after the other.
        starts: (sequences,) int64, position of the first value of each.
        lengths: (sequences,) int64.
    """

    def __init__(self, values: NDArray[np.int32], offsets: NDArray[np.int32]) -> None:
        self.values = values
        self.starts = offsets[:-1].astype(np.int64)
        self.lengths = np.diff(offsets).astype(np.int64)

    def row(self, i: int) -> NDArray[np.int32]:
        """Return sequence i, a read-only view."""
        start = self.starts[i]
        return self.values[start : start + self.lengths[i]]


class EncodedPairs:
    """Token ids of a split, memory-mapped.

    Attributes:
        source_lengths: (pairs,) int64, tokens without BOS and EOS.
        target_lengths: the same for the targets.
        index: (pairs,) int64, the line in the split's files that each pair came from.
        report: what was dropped or truncated.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        from datasets import Dataset

        self._folder = Path(folder)
        # Kept alive: the arrays below are views of its memory map.
        self._dataset: Any = Dataset.from_file(str(self._folder / _DATA))
        self.source = _ragged(self._dataset, "source")
        self.target = _ragged(self._dataset, "target")
        self.index: NDArray[np.int64] = _flat(self._dataset, "index").to_numpy()
        self.source_lengths = self.source.lengths
        self.target_lengths = self.target.lengths
        plain = json.loads((self._folder / _REPORT).read_text(encoding="utf-8"))
        self.report = EncodingReport(**plain)

    def __len__(self) -> int:
        return len(self.source_lengths)

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker process maps the file again and copies nothing.
        return type(self), (str(self._folder),)


def encode_pairs(
    pairs: Pairs,
    tokenizer: Tokenizer,
    *,
    max_length: int,
    cache_dir: str | os.PathLike[str] | None = None,
    name: str,
) -> EncodedPairs:
    """Encode a split, or map its cached encoding.

    Args:
        pairs: the text.
        tokenizer: encodes both sides.
        max_length: positions of a side at most, its EOS included. In the split ``"train"`` longer
            pairs, and pairs with an empty side, are dropped; in any other split nothing is dropped
            and longer sides are truncated.
        cache_dir: see `normtrain.data.cache.cache_root`.
        name: the split.

    Raises:
        UserError: `max_length` is below 2, or no training pair is left.
        RunError: the cache cannot be written.
    """
    if max_length < 2:
        raise UserError(f"max_length must be >= 2, got {max_length}")
    train = name == "train"
    settings = json.dumps({"version": _VERSION, "max_length": max_length, "train": train})
    key = fingerprint(settings, pairs.fingerprint, tokenizer.fingerprint)

    def build(folder: Path) -> None:
        _build(folder, pairs, tokenizer, max_length, train)

    entry = cached_entry(cache_root(cache_dir), f"pairs-{key[:24]}", build)
    return EncodedPairs(entry)


def cached_tokenizer(
    pairs: Pairs, vocab_size: int, cache_dir: str | os.PathLike[str] | None = None
) -> Tokenizer:
    """Train the joint tokenizer on both sides of a split, or read the cached one.

    Raises:
        UserError: as `train_tokenizer` does.
        RunError: the cache cannot be written.
    """
    import tokenizers

    settings = f"{TOKENIZER_VERSION} {tokenizers.__version__} {vocab_size}"
    key = fingerprint(settings, pairs.fingerprint)

    def build(folder: Path) -> None:
        trained = train_tokenizer([*pairs.source, *pairs.target], vocab_size)
        (folder / "tokenizer.json").write_text(trained.to_json(), encoding="utf-8")

    entry = cached_entry(cache_root(cache_dir), f"tokenizer-{key[:24]}", build)
    return Tokenizer.from_json((entry / "tokenizer.json").read_text(encoding="utf-8"))


def _build(folder: Path, pairs: Pairs, tokenizer: Tokenizer, max_length: int, train: bool) -> None:
    source = tokenizer.encode_batch(pairs.source)
    target = tokenizer.encode_batch(pairs.target)
    sources = np.array([len(ids) for ids in source], dtype=np.int64)
    targets = np.array([len(ids) for ids in target], dtype=np.int64)
    limit = max_length - 1  # one position is EOS
    empty = (sources == 0) | (targets == 0)
    long_source, long_target = sources > limit, targets > limit
    too_long = (long_source | long_target) & ~empty
    keep = np.flatnonzero(~(empty | too_long)) if train else np.arange(len(pairs))
    if not len(keep):
        raise UserError(
            f"no training pair fits max_length={max_length}: of {len(pairs):,} pairs "
            f"{int(too_long.sum()):,} are longer and {int(empty.sum()):,} have an empty side"
        )
    report = EncodingReport(
        pairs=len(pairs),
        empty=int(empty.sum()) if train else 0,
        too_long=int(too_long.sum()) if train else 0,
        truncated_sources=0 if train else int(long_source.sum()),
        truncated_targets=0 if train else int(long_target.sum()),
        longest_source=int(sources.max()) + 1,
        longest_target=int(targets.max()) + 1,
        max_length=max_length,
    )
    columns = {
        "source": [source[i][:limit] for i in keep],
        "target": [target[i][:limit] for i in keep],
    }
    _write(folder / _DATA, columns, keep)
    (folder / _REPORT).write_text(json.dumps(asdict(report)), encoding="utf-8")


def _write(path: Path, columns: dict[str, list[list[int]]], index: NDArray[np.int64]) -> None:
    """Write an Arrow file as one record batch, so that a column is one array."""
    import pyarrow as pa
    from datasets.arrow_writer import ArrowWriter

    ids = pa.list_(pa.int32())
    arrays = {name: pa.array(rows, type=ids) for name, rows in columns.items()}
    table = pa.table({**arrays, "index": pa.array(index, type=pa.int64())})
    with ArrowWriter(path=str(path)) as writer:
        writer.write_table(table, writer_batch_size=max(1, table.num_rows))
        writer.finalize()


def _flat(dataset: Any, column: str) -> Any:
    chunked = dataset.data.column(column)
    return chunked.chunk(0) if chunked.num_chunks == 1 else chunked.combine_chunks()


def _ragged(dataset: Any, column: str) -> Ragged:
    array = _flat(dataset, column)
    return Ragged(array.values.to_numpy(), array.offsets.to_numpy())
