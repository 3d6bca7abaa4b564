"""What a run needs to know of its task: the data, the LightningModule, the model, the score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, cast

from normtrain.config.recipe import LanguageRecipe, Recipe, TranslationRecipe
from normtrain.config.schema import ModelRecipe
from normtrain.config.tasks import LanguageModel, TranslationModel
from normtrain.data.base import CorpusData
from normtrain.data.tokenizers.build import tokenizer_from_json
from normtrain.models import build_language_model, build_model
from normtrain.models.embedding import TokenModel
from normtrain.tasks.base import TextTokenizer, TrainingTask
from normtrain.tasks.language.corpora import text_names
from normtrain.tasks.language.data import LanguageData
from normtrain.tasks.language.module import LanguageTask
from normtrain.tasks.translation.corpora import corpus_names
from normtrain.tasks.translation.data import TranslationData
from normtrain.tasks.translation.module import TranslationTask
from normtrain.tasks.translation.tokenizer import Tokenizer


class Kind(ABC):
    """One task, seen from a run."""

    score: str
    """The column of ``metrics.csv`` that a validation fills besides the loss."""

    @abstractmethod
    def best(self, recipe: Recipe) -> str:
        """What the best checkpoint is best in: ``"bleu"`` or ``"loss"``."""

    @abstractmethod
    def data(
        self,
        recipe: Recipe,
        revision: str | None,
        tokenizer: Any | None,
        update_batches: int | None = None,
    ) -> CorpusData:
        """The data module of a run, not yet set up.

        Args:
            recipe: every choice of the run.
            revision: of the corpus; pins a dataset of the Hub.
            tokenizer: the one of the checkpoint that the run goes on from, if it does.
            update_batches: batches of one optimizer step over all processes; by default those of
                a single process.
        """

    @abstractmethod
    def corpora(self) -> list[str]:
        """The corpora that the task knows by name."""

    @abstractmethod
    def task(self, recipe: Recipe, tokenizer: Any, **options: Any) -> TrainingTask:
        """What trains."""

    @abstractmethod
    def model(self, config: ModelRecipe, vocab_size: int) -> TokenModel:
        """The model of a recipe's section."""

    @abstractmethod
    def tokenizer(self, text: str) -> TextTokenizer:
        """Read a tokenizer's JSON."""

    @abstractmethod
    def largest_vocabulary(self, recipe: Recipe) -> int | None:
        """How many ids the tokenizer has at most; None where only the text can tell."""


class _Translation(Kind):
    score = "val_bleu"

    def best(self, recipe: Recipe) -> str:
        return cast(TranslationRecipe, recipe).train.best

    def data(
        self,
        recipe: Recipe,
        revision: str | None,
        tokenizer: Any | None,
        update_batches: int | None = None,
    ) -> TranslationData:
        data = cast(TranslationRecipe, recipe).data
        return TranslationData(
            source=data.source,
            revision=revision,
            max_tokens=data.max_tokens,
            max_length=data.max_length,
            vocab_size=data.vocab_size,
            workers=data.workers,
            seed=recipe.train.seed,
            total_batches=recipe.train.max_steps * (update_batches or recipe.optim.accumulate),
            tokenizer=tokenizer,
        )

    def corpora(self) -> list[str]:
        return corpus_names()

    def task(self, recipe: Recipe, tokenizer: Any, **options: Any) -> TrainingTask:
        return TranslationTask(cast(TranslationRecipe, recipe), tokenizer, **options)

    def model(self, config: ModelRecipe, vocab_size: int) -> TokenModel:
        return build_model(cast(TranslationModel, config), vocab_size)

    def tokenizer(self, text: str) -> Tokenizer:
        return Tokenizer.from_json(text)

    def largest_vocabulary(self, recipe: Recipe) -> int | None:
        return cast(TranslationRecipe, recipe).data.vocab_size


class _Language(Kind):
    score = "val_perplexity"

    def best(self, recipe: Recipe) -> str:
        return "loss"

    def data(
        self,
        recipe: Recipe,
        revision: str | None,
        tokenizer: Any | None,
        update_batches: int | None = None,
    ) -> LanguageData:
        data = cast(LanguageRecipe, recipe).data
        return LanguageData(
            source=data.source,
            revision=revision,
            tokenizer=data.tokenizer,
            vocab_size=self.largest_vocabulary(recipe)
            if data.tokenizer == "bpe"
            else data.vocab_size,
            window=data.window,
            max_tokens=data.max_tokens,
            document_mark=data.document_mark,
            workers=data.workers,
            seed=recipe.train.seed,
            total_batches=recipe.train.max_steps * (update_batches or recipe.optim.accumulate),
            given_tokenizer=tokenizer,
        )

    def corpora(self) -> list[str]:
        return text_names()

    def task(self, recipe: Recipe, tokenizer: Any, **options: Any) -> TrainingTask:
        return LanguageTask(cast(LanguageRecipe, recipe), tokenizer, **options)

    def model(self, config: ModelRecipe, vocab_size: int) -> TokenModel:
        return build_language_model(cast(LanguageModel, config), vocab_size)

    def tokenizer(self, text: str) -> TextTokenizer:
        return tokenizer_from_json(text)

    def largest_vocabulary(self, recipe: Recipe) -> int | None:
        data = cast(LanguageRecipe, recipe).data
        if data.vocab_size is not None:
            return data.vocab_size
        return {"bpe": 8000, "byte": 257}.get(data.tokenizer)


_KINDS: dict[str, Kind] = {"translation": _Translation(), "language": _Language()}


def whole_source(recipe: Recipe) -> str:
    """``data.source``, as an absolute path where it is a file or a folder."""
    source = recipe.data.source
    named = source in kind_of(recipe).corpora() or source.startswith("hf:")
    return source if named or not Path(source).exists() else str(Path(source).resolve())


def kind_of(recipe: Recipe) -> Kind:
    """What a run of the recipe needs to know of its task."""
    return _KINDS[recipe.task]
