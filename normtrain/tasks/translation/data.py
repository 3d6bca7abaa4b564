"""The Lightning data module of translation."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch.utils.data import DataLoader

from normtrain.data.base import CorpusData
from normtrain.errors import UserError
from normtrain.tasks.translation.batching import (
    SortedBatches,
    TokenBatches,
    TranslationBatches,
)
from normtrain.tasks.translation.config import TranslationDataConfig
from normtrain.tasks.translation.corpora import Corpus, load_corpus
from normtrain.tasks.translation.encoding import EncodedPairs, cached_tokenizer, encode_pairs
from normtrain.tasks.translation.tokenizer import Tokenizer


class TranslationData(CorpusData[EncodedPairs]):
    """Corpus, tokenizer, encodings and loaders of a translation run.

    Use it with ``Trainer(use_distributed_sampler=False)``: batches are sliced by rank here.

    Args:
        config: the ``data`` section of the recipe.
        revision: pins a dataset of the Hub.
        tokenizer: that of the checkpoint, when resuming or evaluating; None trains one on the
            training split.
        seed: decides the order of batches.
        total_batches: batches of the whole run, over all ranks; None takes one epoch.
        cache_dir: where encodings are kept (see `normtrain.data.cache.cache_root`).
        splits: which splits to load; None takes all.

    Attributes:
        corpus: the `Corpus`, after `setup`.
        tokenizer: the `Tokenizer`, after `setup`.
        encoded: `EncodedPairs` by split, after `setup`.
        report: sentences on what was loaded, dropped and cut, for the log.
    """

    corpus: Corpus
    tokenizer: Tokenizer

    def __init__(
        self,
        config: TranslationDataConfig,
        *,
        revision: str | None = None,
        tokenizer: Tokenizer | None = None,
        seed: int = 1,
        total_batches: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        splits: Sequence[str] | None = None,
    ) -> None:
        super().__init__(
            config.source, workers=config.workers, seed=seed, total_batches=total_batches
        )
        self.config, self.revision = config, revision
        self.max_tokens, self.max_length = config.max_tokens, config.max_length
        self.vocab_size = config.vocab_size
        self.cache_dir, self.splits = cache_dir, splits
        self._given_tokenizer = tokenizer

    def setup(self, stage: str | None = None) -> None:
        """Load, tokenize and encode; a second call changes nothing.

        Raises:
            UserError: the corpus or the settings can't be used.
            RunError: the Hub can't be reached, or the cache can't be written.
        """
        if self.encoded:
            return
        corpus = load_corpus(
            self.source,
            source_lang=self.config.source_lang,
            target_lang=self.config.target_lang,
            revision=self.revision,
            splits=self.splits,
        )
        tokenizer = self._given_tokenizer
        if tokenizer is None:
            if "train" not in corpus.splits:
                raise UserError(f"{self.source}: without its train split there is no tokenizer")
            tokenizer = cached_tokenizer(corpus.splits["train"], self.vocab_size, self.cache_dir)
        self.corpus, self.tokenizer = corpus, tokenizer
        self.encoded = {
            split: encode_pairs(
                pairs, tokenizer, max_length=self.max_length, cache_dir=self.cache_dir, name=split
            )
            for split, pairs in corpus.splits.items()
        }
        self.report = self._describe()

    def check_ranks(self, world: int) -> None:
        """See that every process has something to do.

        Raises:
            UserError: a split has fewer pairs than there are processes.
        """
        for split, pairs in self.encoded.items():
            if len(pairs) < world:
                raise UserError(
                    f"{self.source}: the split {split!r} has {len(pairs)} pairs, too few for "
                    f"{world} processes"
                )

    def evaluation_loader(self, split: str) -> DataLoader[dict[str, torch.Tensor]]:
        """Every pair of a split once, longest first; ``index`` is the line in the split."""
        pairs = self._split(split)
        rank, world = self._place()
        batches = SortedBatches(
            pairs.source_lengths, pairs.target_lengths, self.max_tokens, rank=rank, world=world
        )
        data = self._rows(split)
        return DataLoader(data, batch_sampler=batches, **self._workers())  # type: ignore[arg-type]

    def _batches(self) -> TokenBatches:
        pairs = self._split("train")
        return TokenBatches(
            pairs.source_lengths, pairs.target_lengths, self.max_tokens, seed=self.seed
        )

    def _rows(self, split: str) -> TranslationBatches:
        return TranslationBatches(self._split(split))

    def _describe(self) -> list[str]:
        origin = self.corpus.provenance
        at = f" at revision {origin['revision']}" if origin["revision"] else ""
        style = "tokenised" if self.corpus.tokenized else "running"
        lines = [f"corpus {origin['source']}{at}, {style} text"]
        if self.revision and origin["kind"] != "hub":
            lines.append(f"revision {self.revision} has no effect: the corpus is not on the Hub")
        for split, pairs in self.encoded.items():
            lines += pairs.report.lines(split)
        size, asked = self.tokenizer.vocab_size, self.vocab_size
        fewer = self._given_tokenizer is None and size < asked
        lines.append(
            f"vocabulary: {size:,} ids" + (f" ({asked:,} asked, the text gives no more)" * fewer)
        )
        if "train" in self.encoded:
            batches = self._batches()
            source, target = batches.efficiency()
            lines.append(
                f"batches: {len(batches):,} an epoch of at most {self.max_tokens:,} positions; "
                f"{source:.1%} of source and {target:.1%} of target positions are real"
            )
        return lines
