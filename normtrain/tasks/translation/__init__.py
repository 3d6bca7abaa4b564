"""Translation by an encoder-decoder: recipe, data, module, decoding, metrics, evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from normtrain.tasks.base import (
    LOSS,
    Card,
    Evaluation,
    EvaluationRequest,
    Metric,
    Task,
    TrainedModel,
)
from normtrain.tasks.translation.config import TranslationRecipe

if TYPE_CHECKING:
    from normtrain.data.base import CorpusData
    from normtrain.tasks.module import TaskModule

__all__ = ["TASK", "Translation"]


class Translation(Task):
    """The task `translation`; heavy modules are imported when a method needs them."""

    name = "translation"
    metrics = (Metric("bleu", "max", "BLEU {:.2f}"),)
    card = Card(
        front=("language: [{source_lang}, {target_lang}]", "pipeline_tag: translation"),
        title="{source} to {target}",
        scores={
            "beam": ("beam", "{}"),
            "bleu": ("BLEU", "{:.2f}"),
            "bleu_signature": ("signature", "`{}`"),
        },
    )
    libraries = ("torch", "sacrebleu")
    command = "translate"
    evaluation_options = ("beam", "length_penalty")
    recipe_type = TranslationRecipe

    def corpora(self) -> list[str]:
        """Return the names of the corpora."""
        from normtrain.tasks.translation.corpora import corpus_names

        return corpus_names()

    @property
    def data_type(self) -> type[CorpusData[Any]]:
        """`TranslationData`."""
        from normtrain.tasks.translation.data import TranslationData

        return TranslationData

    @property
    def module_type(self) -> type[TaskModule]:
        """`TranslationModule`."""
        from normtrain.tasks.translation.module import TranslationModule

        return TranslationModule

    def tokenizer(self, text: str) -> Any:
        """Read a tokenizer's JSON."""
        from normtrain.tasks.translation.tokenizer import Tokenizer

        return Tokenizer.from_json(text)

    def vocab_size(self, recipe: TranslationRecipe) -> int | None:
        """Return the most ids that the tokenizer can have."""
        return recipe.data.vocab_size

    def best(self, recipe: TranslationRecipe) -> Metric:
        """Return the metric of the best checkpoint: ``train.best``."""
        return LOSS if recipe.train.best == "loss" else self.metrics[0]

    def evaluate(self, trained: TrainedModel, request: EvaluationRequest) -> Evaluation:
        """Translate a split and score it."""
        from normtrain.tasks.translation.evaluate import evaluate

        return evaluate(trained, request)


TASK = Translation()
