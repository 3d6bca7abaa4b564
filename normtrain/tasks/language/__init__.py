"""Language modelling by a decoder: recipe, data, module, sampling, metrics, evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from normtrain.tasks.base import Card, Evaluation, EvaluationRequest, Metric, Task, TrainedModel
from normtrain.tasks.language.config import LanguageRecipe

if TYPE_CHECKING:
    from normtrain.data.base import CorpusData
    from normtrain.tasks.module import TaskModule

__all__ = ["TASK", "LanguageModelling"]


class LanguageModelling(Task):
    """The task `language`; heavy modules are imported when a method needs them."""

    name = "language"
    metrics = (Metric("perplexity", "min", "perplexity {:.2f} a token"),)
    card = Card(
        front=("pipeline_tag: text-generation",),
        title="a language model",
        scores={
            "stride": ("stride", "{}"),
            "perplexity": ("perplexity", "{:.2f}"),
            "bits_per_byte": ("bits per byte", "{:.4f}"),
        },
    )
    command = "generate"
    evaluation_options = ("stride", "batch_size")
    recipe_type = LanguageRecipe

    @property
    def formats(self) -> tuple[str, ...]:
        """Every format of `normtrain.hf`."""
        from normtrain.hf import FORMATS

        return tuple(FORMATS)

    def corpora(self) -> list[str]:
        """Return the names of the corpora."""
        from normtrain.tasks.language.corpora import text_names

        return text_names()

    @property
    def data_type(self) -> type[CorpusData[Any]]:
        """`LanguageData`."""
        from normtrain.tasks.language.data import LanguageData

        return LanguageData

    @property
    def module_type(self) -> type[TaskModule]:
        """`LanguageModule`."""
        from normtrain.tasks.language.module import LanguageModule

        return LanguageModule

    def tokenizer(self, text: str) -> Any:
        """Read a tokenizer's JSON."""
        from normtrain.data.tokenizers.build import tokenizer_from_json

        return tokenizer_from_json(text)

    def vocab_size(self, recipe: LanguageRecipe) -> int | None:
        """Return the most ids that the tokenizer can have; None where only the text tells."""
        return recipe.data.most_ids

    def evaluate(self, trained: TrainedModel, request: EvaluationRequest) -> Evaluation:
        """Measure the perplexity of a split."""
        from normtrain.tasks.language.evaluate import evaluate

        return evaluate(trained, request)


TASK = LanguageModelling()
