"""The Lightning data module of language modelling."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch.utils.data import DataLoader

from normtrain.data.base import CorpusData
from normtrain.data.tokenizers.build import cached_text_tokenizer
from normtrain.data.tokenizers.protocol import TextTokenizer
from normtrain.errors import UserError
from normtrain.tasks.language.config import LanguageDataConfig
from normtrain.tasks.language.corpora import TextCorpus, load_text
from normtrain.tasks.language.encoding import EncodedText, encode_text
from normtrain.tasks.language.windows import (
    EvaluationWindows,
    TextWindows,
    WindowBatches,
    check_window,
)


class LanguageData(CorpusData[EncodedText]):
    """Corpus, tokenizer, encodings and loaders of a language-modelling run.

    Use it with ``Trainer(use_distributed_sampler=False)``: batches are sliced by rank here.

    Args:
        config: the ``data`` section of the recipe.
        source: another corpus than the config's (see `load_text`).
        revision: pins a dataset of the Hub.
        tokenizer: that of the checkpoint, when resuming or evaluating; None trains one on the
            training split.
        seed: decides the order of batches.
        total_batches: batches of the whole run, over all ranks; None takes one epoch.
        cache_dir: where encodings are kept (see `normtrain.data.cache.cache_root`).
        splits: which splits to load; None takes train, valid and, where there is one, test.

    Attributes:
        corpus: the `TextCorpus`, after `setup`.
        tokenizer: the `TextTokenizer`, after `setup`.
        encoded: `EncodedText` by split, after `setup`.
        report: sentences on what was loaded and cut, for the log.
    """

    corpus: TextCorpus
    tokenizer: TextTokenizer

    def __init__(
        self,
        config: LanguageDataConfig,
        *,
        source: str | None = None,
        revision: str | None = None,
        tokenizer: TextTokenizer | None = None,
        seed: int = 1,
        total_batches: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        splits: Sequence[str] | None = None,
    ) -> None:
        super().__init__(
            source or config.source,
            workers=config.workers,
            seed=seed,
            total_batches=total_batches,
        )
        self.config, self.revision = config, revision
        self.kind, self.window, self.max_tokens = config.tokenizer, config.window, config.max_tokens
        self.vocab_size = config.most_ids if self.kind == "bpe" else config.vocab_size
        self.document_mark = config.document_mark
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
        check_window(self.window)
        corpus = load_text(self.source, revision=self.revision, splits=self.splits)
        tokenizer = self._given_tokenizer or self._trained(corpus)
        encoded = {
            split: encode_text(
                documents, tokenizer, document_mark=self.document_mark, cache_dir=self.cache_dir
            )
            for split, documents in corpus.splits.items()
        }
        self.corpus, self.tokenizer = corpus, tokenizer
        self.report = self._describe(encoded)
        self.encoded = encoded

    def check_ranks(self, world: int) -> None:
        """See that every process has something to do.

        Raises:
            UserError: a split has fewer windows than there are processes.
        """
        for split, text in self.encoded.items():
            if split == "train":
                windows = self._batches().windows
            else:
                windows = len(EvaluationWindows(text, self.window))
            if windows < world:
                raise UserError(
                    f"{self.source}: the split {split!r} has {windows} windows, too few for "
                    f"{world} processes"
                )

    def evaluation_loader(
        self,
        split: str,
        *,
        stride: int | None = None,
        batch_size: int | None = None,
        rank: int | None = None,
        world: int | None = None,
    ) -> DataLoader[dict[str, torch.Tensor]]:
        """Windows that score every token of a split once (see `EvaluationWindows`).

        Args:
            split: which split.
            stride: by how much windows advance; None takes `window`. A smaller one gives tokens
                more context and takes longer.
            batch_size: windows of a batch; None takes what `max_tokens` has room for.
            rank: which slice this process takes; None asks the trainer, if there is one.
            world: how many slices there are.

        Raises:
            UserError: the split wasn't loaded, or a setting can't be used.
        """
        windows = EvaluationWindows(self._split(split), self.window, stride)
        if batch_size is None:
            batch_size = max(1, self.max_tokens // self.window)
        if rank is None or world is None:
            rank, world = self._place()
        batches = windows.batches(batch_size, rank=rank, world=world)
        return DataLoader(windows, batch_sampler=cast(Any, batches), **self._workers())

    def _trained(self, corpus: TextCorpus) -> TextTokenizer:
        if "train" not in corpus.splits:
            raise UserError(f"{self.source}: without its train split there is no tokenizer")
        size = None if self.kind == "byte" else self.vocab_size
        return cached_text_tokenizer(corpus.splits["train"], self.kind, size, self.cache_dir)

    def _batches(self) -> WindowBatches:
        return self._plan(self._split("train"))

    def _plan(self, train: EncodedText) -> WindowBatches:
        try:
            return WindowBatches(len(train), self.window, self.max_tokens, seed=self.seed)
        except UserError as error:
            raise UserError(f"{self.source}: {error}") from error

    def _rows(self, split: str) -> TextWindows:
        return TextWindows(self._split(split), self.window)

    def _describe(self, encoded: dict[str, EncodedText]) -> list[str]:
        origin = self.corpus.provenance
        at = f" at revision {origin['revision']}" if origin["revision"] else ""
        version = f" of Python {origin['python']}" if origin["kind"] == "python" else ""
        lines = [f"corpus {origin['source']}{version or at}"]
        if origin.get("skipped"):
            lines.append(f"skipped {origin['skipped']:,} files that are not UTF-8")
        if self.revision and origin["kind"] != "hub":
            lines.append(f"revision {self.revision} has no effect: the corpus is not on the Hub")
        for split, text in encoded.items():
            counts = text.counts
            lines.append(
                f"{split}: {counts.tokens:,} tokens, {counts.bytes:,} bytes, "
                f"{counts.words:,} words in {counts.lines:,} lines, {counts.documents:,} documents"
            )
        lines += self._about_the_tokenizer()
        if "train" in encoded:
            batches = self._plan(encoded["train"])
            lines.append(
                f"batches: {len(batches):,} an epoch of {self.max_tokens // self.window:,} windows "
                f"of {self.window:,} tokens"
            )
        return lines

    def _about_the_tokenizer(self) -> list[str]:
        size, asked, kind = self.tokenizer.vocab_size, self.vocab_size, self.tokenizer.kind
        line = f"vocabulary: {size:,} ids ({kind})"
        lines = [line]
        if self._given_tokenizer is None and asked is not None:
            if kind == "byte":
                lines.append(f"vocab_size {asked:,} has no effect: bytes have {size:,} ids")
            elif size < asked:
                lines = [f"{line[:-1]}; {asked:,} asked, the text gives no more)"]
        if kind == "word" and self.document_mark:
            lines.append("documents are not marked: the word tokenizer marks line ends")
        return lines
