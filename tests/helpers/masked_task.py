"""A task outside the package: masked language modelling (Devlin et al. 2019) over running text."""

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from normtrain.config.schema import Recipe
from normtrain.config.sections import TrainConfig
from normtrain.data.tokenizers.build import tokenizer_from_json
from normtrain.fields import Fraction, key
from normtrain.models.blocks import EncoderLayer, Stack
from normtrain.models.config import CausalLMConfig
from normtrain.models.embedding import TokenModel
from normtrain.models.factory import check_norm_rules
from normtrain.models.positions import Positions
from normtrain.tasks.base import Card, Evaluation, EvaluationRequest, Metric, Task, TrainedModel
from normtrain.tasks.language.config import LanguageDataConfig
from normtrain.tasks.language.corpora import text_names
from normtrain.tasks.language.data import LanguageData
from normtrain.tasks.loss import NONE, summed_loss, training_loss
from normtrain.tasks.module import TaskModule


class MaskedTrainConfig(TrainConfig):
    masked: Fraction = key(0.15, "share of tokens that are masked")


class MaskedRecipe(Recipe):
    task: Literal["masked"] = "masked"
    data: LanguageDataConfig = LanguageDataConfig()
    model: CausalLMConfig = CausalLMConfig(positions="learned")
    train: MaskedTrainConfig = MaskedTrainConfig()


class MaskedLM(TokenModel):
    """An encoder whose last token id is the mask."""

    def __init__(self, config: CausalLMConfig, vocab_size: int) -> None:
        super().__init__(config, vocab_size + 1, tied=True)
        self.embedding = nn.Embedding(vocab_size + 1, config.stream)
        self.positions = Positions("learned", config.max_positions, config.stream)
        self.encoder = Stack(config, config.layers, "encoder", EncoderLayer)
        self.head = nn.Linear(config.stream, vocab_size + 1, bias=config.head_bias)
        self.head.weight = self.embedding.weight
        nn.init.normal_(self.embedding.weight, std=0.02)

    def hidden(self, tokens: Tensor) -> Tensor:
        """Map tokens ``(batch, time)`` to vectors ``(batch, time, stream)``."""
        return self.encoder(self.embed(tokens, self.embedding, self.positions), None)


def mask(tokens: Tensor, share: float, vocab_size: int, generator: Any = None) -> tuple[Any, Any]:
    """Return tokens with some masked, and the targets: those that were masked."""
    chosen = torch.rand(tokens.shape, generator=generator) < share
    chosen[:, 0] = True  # no batch without a target
    return tokens.masked_fill(chosen, vocab_size - 1), tokens.masked_fill(~chosen, NONE)


class MaskedModule(TaskModule):
    """Trains the encoder; each batch gets a new mask, each validation the same ones."""

    @staticmethod
    def count_targets(batch: dict[str, Tensor]) -> Tensor:
        """Count the tokens of the windows."""
        return torch.tensor(batch["tokens"].numel())

    def batch_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the mean cross-entropy of the masked tokens."""
        share = cast(MaskedRecipe, self.recipe).train.masked
        inputs, targets = mask(batch["tokens"], share, self.model.vocab_size)
        matrix, bias = self.model.output_matrix(), self.model.head.bias
        return training_loss(self._hidden(inputs), matrix, targets, 0.0, bias)

    def on_validation_epoch_start(self) -> None:
        """Start to count, with the same masks at every validation."""
        super().on_validation_epoch_start()
        self._masks, self._right = torch.Generator().manual_seed(0), 0

    def summed_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
        """Return the summed cross-entropy of the masked tokens, and their number."""
        loss, count, right = score(self.model, batch["tokens"], self._masks)
        self._right += right
        return loss, count

    def validation_metrics(self, loss: float) -> dict[str, float]:
        """Return the share of masked tokens that were found."""
        return {"accuracy": self._right / self._tally.tokens}


def score(model: Any, tokens: Tensor, masks: torch.Generator) -> tuple[Tensor, int, int]:
    """Return summed loss, targets and right guesses of a batch with a fifth of it masked."""
    inputs, targets = mask(tokens, 0.2, model.vocab_size, masks)
    logits = model.logits(model.hidden(inputs))
    right = (logits.argmax(-1) == targets).sum()
    return summed_loss(logits, targets), int((targets != NONE).sum()), int(right)


class Masked(Task):
    name = "masked"
    metrics = (Metric("accuracy", "max", "accuracy {:.3f}"),)
    card = Card(("pipeline_tag: fill-mask",), "a masked language model", {"accuracy": ("a", "{}")})
    recipe_type = MaskedRecipe
    corpora = staticmethod(text_names)
    tokenizer = staticmethod(tokenizer_from_json)
    data_type = LanguageData
    module_type = MaskedModule

    def model(self, config: CausalLMConfig, vocab_size: int) -> MaskedLM:
        """Build the encoder."""
        return check_norm_rules(MaskedLM(config, vocab_size))

    def vocab_size(self, recipe: MaskedRecipe) -> int | None:
        """Return the most ids of the tokenizer."""
        return recipe.data.most_ids

    def best(self, recipe: MaskedRecipe) -> Metric:
        """Return the metric of the best checkpoint."""
        return self.metrics[0]

    @torch.no_grad()
    def evaluate(self, trained: TrainedModel, request: EvaluationRequest) -> Evaluation:
        """Count the masked tokens of a split that are found."""
        recipe, masks = trained.recipe, torch.Generator().manual_seed(0)
        data = LanguageData(
            cast(Any, recipe.data), tokenizer=trained.tokenizer, splits=[request.split]
        )
        data.setup()
        batches = data.evaluation_loader(request.split, rank=request.rank, world=request.world)
        found = [score(trained.model, batch["tokens"], masks) for batch in batches]
        loss, count, right = (sum(float(each[i]) for each in found) for i in range(3))
        scores = {"loss": loss / count, "accuracy": right / count}
        return Evaluation(scores=scores, corpus=data.corpus.provenance)


TASK = Masked()
