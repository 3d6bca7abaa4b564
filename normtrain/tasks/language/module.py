"""Language modelling as a LightningModule: loss on packed windows, perplexity on held-out text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from normtrain.config.recipe import LanguageRecipe
from normtrain.models import CausalLM, build_language_model
from normtrain.tasks.base import TextTokenizer, TrainingTask
from normtrain.tasks.loss import NONE, summed_loss, training_loss
from normtrain.tasks.ranks import Tally


@dataclass
class LanguageValidation:
    """What the last validation found."""

    loss: float = float("nan")

    @property
    def perplexity(self) -> float:
        """Of a token."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    def metrics(self) -> dict[str, float]:
        """Loss and perplexity of a token."""
        return {"val_loss": self.loss, "val_perplexity": self.perplexity}

    def lines(self) -> list[str]:
        """One line."""
        return [f"validation loss {self.loss:.4f}, perplexity {self.perplexity:.2f} a token"]


def next_tokens(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What a model reads, and what it is to say.

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


class LanguageTask(TrainingTask):
    """Trains and validates a decoder on windows of running text.

    Args:
        recipe: every choice of the run.
        tokenizer: text to token ids and back.
        about: what checkpoints shall also carry, plain values by name: the data, the machine.
        compile_model: run the training forward pass through ``torch.compile``.
        update_batches: batches of one optimizer step, over all processes.

    Raises:
        ValueError: if the recipe asks for a model that can't be built.
    """

    model: CausalLM
    recipe: LanguageRecipe

    def __init__(
        self,
        recipe: LanguageRecipe,
        tokenizer: TextTokenizer,
        *,
        about: dict[str, Any] | None = None,
        compile_model: bool = False,
        update_batches: int = 1,
    ) -> None:
        model = build_language_model(recipe.model, tokenizer.vocab_size)
        super().__init__(
            recipe,
            tokenizer,
            model,
            about=about,
            compile_model=compile_model,
            update_batches=update_batches,
        )
        self.validation = LanguageValidation()

    @staticmethod
    def count_targets(batch: dict[str, Tensor]) -> Tensor:
        """All of a window's tokens but the first."""
        tokens = batch["tokens"]
        return torch.tensor(tokens.size(0) * (tokens.size(1) - 1), device=tokens.device)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Mean cross-entropy of one batch, nats a token."""
        self.batch_shape = {"tokens": tuple(batch["tokens"].shape)}
        inputs, targets = next_tokens(batch)
        hidden = self._hidden(inputs)
        matrix, bias = self.model.output_matrix(), self.model.head.bias
        loss = training_loss(hidden, matrix, targets, self.recipe.optim.label_smoothing, bias)
        return self._weighted(loss, batch)

    def on_validation_epoch_start(self) -> None:
        """Begin to count."""
        self._tally = Tally()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Add one batch's cross-entropy, without smoothing, to the tally."""
        inputs, targets = next_tokens(batch)
        self._tally.loss += float(summed_loss(self.model(inputs), targets))
        self._tally.tokens += int(batch["scored"].sum())

    def on_validation_epoch_end(self) -> None:
        """Report the loss a token over the whole split and all ranks."""
        self.validation = LanguageValidation(self._tally.over_ranks(self.device).mean)
        self._log_validation()
