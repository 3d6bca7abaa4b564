"""The Lightning data module of language modelling."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch.utils.data import DataLoader

from normtrain.data.base import CorpusData
from normtrain.data.documents import Documents
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
    """Corpus, tokenizer, encodings and loaders of a language-modelling run; see `CorpusData`."""

    unit = "windows"
    config: LanguageDataConfig
    corpus: TextCorpus
    tokenizer: TextTokenizer

    def _load(self) -> TextCorpus:
        check_window(self.config.window)
        return load_text(self.source, revision=self.revision, splits=self.splits)

    def _train_tokenizer(self, train: Documents) -> TextTokenizer:
        kind = self.config.tokenizer
        size = None if kind == "byte" else self._vocab_size
        return cached_text_tokenizer(train, kind, size, self.cache_dir)

    @property
    def _vocab_size(self) -> int | None:
        config = self.config
        return config.most_ids if config.tokenizer == "bpe" else config.vocab_size

    def _encode(self, name: str, split: Documents) -> EncodedText:
        mark = self.config.document_mark
        return encode_text(split, self.tokenizer, document_mark=mark, cache_dir=self.cache_dir)

    def _size(self, split: str) -> int:
        if split == "train":
            return self._batches().windows
        return len(EvaluationWindows(self.encoded[split], self.config.window))

    def evaluation_loader(
        self,
        split: str,
        *,
        stride: int | None = None,
        batch_size: int | None = None,
        rank: int | None = None,
        world: int | None = None,
    ) -> DataLoader[dict[str, torch.Tensor]]:
        """Return windows that score every token of a split once (see `EvaluationWindows`).

        Args:
            split: which split.
            stride: by how much windows advance; None takes ``data.window``. A smaller one gives
                tokens more context and takes longer.
            batch_size: windows of a batch; None takes what ``data.max_tokens`` has room for.
            rank: which slice this process takes; None asks the trainer, if there is one.
            world: how many slices there are.

        Raises:
            UserError: the split was not loaded, or a setting cannot be used.
        """
        windows = EvaluationWindows(self._split(split), self.config.window, stride)
        if batch_size is None:
            batch_size = max(1, self.config.max_tokens // self.config.window)
        if rank is None or world is None:
            rank, world = self._place()
        batches = windows.batches(batch_size, rank=rank, world=world)
        return DataLoader(windows, batch_sampler=cast(Any, batches), **self._workers())

    def _batches(self) -> WindowBatches:
        return self._plan(self._split("train"))

    def _plan(self, train: EncodedText) -> WindowBatches:
        config = self.config
        try:
            return WindowBatches(len(train), config.window, config.max_tokens, seed=self.seed)
        except UserError as error:
            raise UserError(f"{self.source}: {error}") from error

    def _rows(self, split: str) -> TextWindows:
        return TextWindows(self._split(split), self.config.window)

    def _about_the_corpus(self) -> list[str]:
        (first, *others), origin = super()._about_the_corpus(), self.corpus.provenance
        lines = [first + (f" of Python {origin['python']}" if origin["kind"] == "python" else "")]
        if origin.get("skipped"):
            lines.append(f"skipped {origin['skipped']:,} files that are not UTF-8")
        return lines + others

    def _describe(self, encoded: dict[str, EncodedText]) -> list[str]:
        lines = []
        for split, text in encoded.items():
            counts = text.counts
            lines.append(
                f"{split}: {counts.tokens:,} tokens, {counts.bytes:,} bytes, "
                f"{counts.words:,} words in {counts.lines:,} lines, {counts.documents:,} documents"
            )
        lines += self._about_the_tokenizer()
        if "train" in encoded:
            batches, window = self._plan(encoded["train"]), self.config.window
            windows = self.config.max_tokens // window
            lines.append(
                f"batches: {len(batches):,} an epoch of {windows:,} windows of {window:,} tokens"
            )
        return lines

    def _about_the_tokenizer(self) -> list[str]:
        size, asked, kind = self.tokenizer.vocab_size, self._vocab_size, self.tokenizer.kind
        line = f"vocabulary: {size:,} ids ({kind})"
        lines = [line]
        if self._given_tokenizer is None and asked is not None:
            if kind == "byte":
                lines.append(f"vocab_size {asked:,} has no effect: bytes have {size:,} ids")
            elif size < asked:
                lines = [f"{line[:-1]}; {asked:,} asked, the text gives no more)"]
        if kind == "word" and self.config.document_mark:
            lines.append("documents are not marked: the word tokenizer marks line ends")
        return lines
