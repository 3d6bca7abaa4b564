"""The Lightning data module of translation."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader

from normtrain.data.base import CorpusData
from normtrain.tasks.translation.batching import SortedBatches, TokenBatches, TranslationBatches
from normtrain.tasks.translation.config import TranslationDataConfig
from normtrain.tasks.translation.corpora import Corpus, Pairs, load_corpus
from normtrain.tasks.translation.encoding import EncodedPairs, cached_tokenizer, encode_pairs
from normtrain.tasks.translation.tokenizer import Tokenizer


class TranslationData(CorpusData[EncodedPairs]):
    """Corpus, tokenizer, encodings and loaders of a translation run; see `CorpusData`."""

    unit = "pairs"
    config: TranslationDataConfig
    corpus: Corpus
    tokenizer: Tokenizer

    def _load(self) -> Corpus:
        return load_corpus(
            self.source,
            source_lang=self.config.source_lang,
            target_lang=self.config.target_lang,
            revision=self.revision,
            splits=self.splits,
        )

    def _train_tokenizer(self, train: Pairs) -> Tokenizer:
        return cached_tokenizer(train, self.config.vocab_size, self.cache_dir)

    def _encode(self, name: str, split: Pairs) -> EncodedPairs:
        return encode_pairs(
            split,
            self.tokenizer,
            max_length=self.config.max_length,
            cache_dir=self.cache_dir,
            name=name,
        )

    def evaluation_loader(self, split: str) -> DataLoader[dict[str, torch.Tensor]]:
        """Return every pair of a split once, longest first; ``index`` is the line in the split."""
        pairs = self._split(split)
        rank, world = self._place()
        lengths, most = (pairs.source_lengths, pairs.target_lengths), self.config.max_tokens
        batches: Any = SortedBatches(*lengths, most, rank=rank, world=world)
        return DataLoader(self._rows(split), batch_sampler=batches, **self._workers())

    def _batches(self) -> TokenBatches:
        return self._plan(self._split("train"))

    def _plan(self, train: EncodedPairs) -> TokenBatches:
        lengths = train.source_lengths, train.target_lengths
        return TokenBatches(*lengths, self.config.max_tokens, seed=self.seed)

    def _rows(self, split: str) -> TranslationBatches:
        return TranslationBatches(self._split(split))

    def _about_the_corpus(self) -> list[str]:
        first, *others = super()._about_the_corpus()
        return [f"{first}, {'tokenised' if self.corpus.tokenized else 'running'} text", *others]

    def _describe(self, encoded: dict[str, EncodedPairs]) -> list[str]:
        lines = [line for split, pairs in encoded.items() for line in pairs.report.lines(split)]
        size, asked = self.tokenizer.vocab_size, self.config.vocab_size
        fewer = self._given_tokenizer is None and size < asked
        lines.append(
            f"vocabulary: {size:,} ids" + (f" ({asked:,} asked, the text gives no more)" * fewer)
        )
        if "train" in encoded:
            batches = self._plan(encoded["train"])
            source, target = batches.efficiency()
            most = self.config.max_tokens
            lines.append(
                f"batches: {len(batches):,} an epoch of at most {most:,} positions; "
                f"{source:.1%} of source and {target:.1%} of target positions are real"
            )
        return lines
