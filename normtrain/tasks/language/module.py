"""Train and validate a language model on windows of running text."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from normtrain.models import CausalLM
from normtrain.tasks.language.config import LanguageRecipe
from normtrain.tasks.loss import NONE, summed_loss, training_loss
from normtrain.tasks.module import TaskModule


def next_tokens(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Split a batch into inputs and targets.

    Args:
        batch: ``tokens`` (batch, window + 1) int64 and, in evaluation, ``scored`` (batch, window)
            bool: which of the targets count.

    Returns:
        Inputs and targets, ``(batch, window)`` each; targets that do not count are `NONE`.
    """
    tokens = batch["tokens"]
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    if (scored := batch.get("scored")) is not None:
        targets = targets.masked_fill(~scored, NONE)
    return inputs, targets


def perplexity(loss: float) -> float:
    """Return the exponential of a loss in nats, Inf where it overflows."""
    return math.exp(loss) if loss < 700 else math.inf


class LanguageModule(TaskModule):
    """Trains a decoder on windows of running text; see `TaskModule`."""

    model: CausalLM
    recipe: LanguageRecipe

    @staticmethod
    def count_targets(batch: dict[str, Tensor]) -> Tensor:
        """Count all tokens of the windows but the first of each."""
        tokens = batch["tokens"]
        return torch.tensor(tokens.size(0) * (tokens.size(1) - 1), device=tokens.device)

    def batch_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the mean cross-entropy of one batch, nats a token."""
        inputs, targets = next_tokens(batch)
        hidden = self._hidden(inputs)
        matrix, bias = self.model.output_matrix(), self.model.head.bias
        return training_loss(hidden, matrix, targets, self.recipe.optim.label_smoothing, bias)

    def summed_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
        """Return the summed cross-entropy of the scored tokens, and their number."""
        inputs, targets = next_tokens(batch)
        return summed_loss(self.model(inputs), targets), int(batch["scored"].sum())

    def validation_metrics(self, loss: float) -> dict[str, float]:
        """Return the perplexity of a token."""
        return {"perplexity": perplexity(loss)}
