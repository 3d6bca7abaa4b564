"""What the tasks share: optimizer, the weight of a batch in an update, what checkpoints carry."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor

from normtrain.models import norm_sites
from normtrain.models.embedding import TokenModel
from normtrain.recipe import Recipe
from normtrain.tasks.optim import build_optimizer
from normtrain.tasks.updates import UpdateWatch

FORMAT_VERSION = 1
_T = TypeVar("_T")


class TextTokenizer(Protocol):
    """What a task needs of its tokenizer."""

    @property
    def vocab_size(self) -> int: ...
    def to_json(self) -> str: ...


@dataclass
class Tally:
    """A sum of losses and the number of tokens it is over."""

    loss: float = 0.0
    tokens: int = 0

    def over_ranks(self, device: torch.device) -> Tally:
        """The sum of all ranks' tallies."""
        if not several_ranks():
            return self
        totals = torch.tensor([self.loss, self.tokens], dtype=torch.float64, device=device)
        dist.all_reduce(totals)
        return Tally(float(totals[0]), int(totals[1]))

    @property
    def mean(self) -> float:
        """Loss a token; 0 where there were none."""
        return self.loss / max(1, self.tokens)


class Validation(Protocol):
    """What a validation found."""

    loss: float

    def metrics(self) -> dict[str, float]:
        """Numbers by the names they have in ``metrics.csv``."""
        ...

    def lines(self) -> list[str]:
        """What a person is told, a line each."""
        ...


class TrainingTask(pl.LightningModule):
    """Trains a model over tokens; the tasks say what a batch is and how it is validated.

    Args:
        recipe: every choice of the run.
        tokenizer: text to token ids and back.
        model: what is trained.
        about: what checkpoints shall also carry, plain values by name: the data, the machine.
        compile_model: run the training forward pass through ``torch.compile``.

    Attributes:
        batch_shape: shapes of the batch trained on last, for the message when memory is short.
        validation: what the last validation found.
        gradient_norm: of the last update, before clipping.
        update_scale: what the last update's gradient was multiplied by, to be a mean over tokens.
    """

    model: TokenModel
    validation: Validation

    def __init__(
        self,
        recipe: Recipe,
        tokenizer: TextTokenizer,
        model: TokenModel,
        *,
        about: dict[str, Any] | None = None,
        compile_model: bool = False,
    ) -> None:
        super().__init__()
        self.recipe, self.tokenizer, self.about = recipe, tokenizer, about or {}
        self.model = model
        hidden = cast(Callable[..., Tensor], model.hidden)
        self._hidden = torch.compile(hidden, dynamic=True) if compile_model else hidden
        self.batch_shape: dict[str, tuple[int, ...]] = {}
        self.gradient_norm = torch.zeros(())
        self.update_scale: Tensor | float = 1.0
        self._update_tokens: Tensor | float = 0.0
        self._tally = Tally()
        self.updates = UpdateWatch(self._loss_again, model)

    @staticmethod
    @abstractmethod
    def count_targets(batch: dict[str, Tensor]) -> Tensor:
        """How many tokens of a batch are predicted; a scalar where the batch lies."""

    def _weighted(self, loss: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """A batch's mean loss, weighted by its tokens where an update has several batches.

        It comes divided by a constant; the true number, known once all are done, is put right by
        :meth:`configure_gradient_clipping`.
        """
        if self._batches_an_update > 1:
            tokens = self.count_targets(batch)
            self._update_tokens = self._update_tokens + tokens
            loss = loss * (tokens / self.recipe.data.max_tokens)
        self.updates.note(loss)
        return loss

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Keep what a second look at this batch would need."""
        self.updates.begin(batch, batch_idx)

    def _loss_again(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """A batch's loss once more, layer by layer; for a run that can't go on."""
        self._hidden = cast(
            Callable[..., Tensor], self.model.hidden
        )  # no hook sees compiled layers
        with self.trainer.precision_plugin.train_step_context():
            return cast(Tensor, self.training_step(batch, batch_idx))

    @property
    def _batches_an_update(self) -> int:
        return self.recipe.optim.accumulate * self.trainer.world_size

    def configure_optimizers(self) -> Any:
        """AdamW with the recipe's schedule."""
        return build_optimizer(self.model, self.recipe.optim, self.recipe.train.max_steps)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Finish the gradient of an update: weight it by tokens, then clip its norm.

        Lightning's own clipping refuses fused optimizers.

        Raises:
            BrokenUpdate: the loss or the gradient is no number; the weights are those before it.
        """
        bad = self.updates.bad_losses(self.device)
        if self._batches_an_update > 1:
            # Lightning and DDP took the mean of the batches; this makes it the mean of the tokens.
            mine = torch.stack([cast(Tensor, self._update_tokens), bad])
            tokens, bad = self.trainer.strategy.reduce(mine, reduce_op="sum")
            self.update_scale = self._batches_an_update * self.recipe.data.max_tokens / tokens
            gradients = [p.grad for p in self.parameters() if p.grad is not None]
            torch._foreach_mul_(gradients, self.update_scale)
            self._update_tokens = 0.0
        limit = self.recipe.optim.clip or float("inf")
        self.gradient_norm = torch.nn.utils.clip_grad_norm_(self.parameters(), limit)
        step = self.trainer.global_step + 1
        self.updates.check(step, bad, self.gradient_norm, self._loss_scale, optimizer)

    @property
    def _loss_scale(self) -> Tensor | float:
        """What makes the sum of an update's losses its loss; Lightning has yet to divide them."""
        return self.update_scale / self.recipe.optim.accumulate

    def _log_validation(self) -> None:
        """For callbacks that watch a number; the run's own log writes it unrounded."""
        for name, value in self.validation.metrics().items():
            self.log(name, value, logger=False, rank_zero_only=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the checkpoint self-contained: recipe, tokenizer and norms, plain types only.

        Raises:
            BrokenUpdate: the weights are no numbers, and so aren't saved.
        """
        self.updates.settle()
        self.updates.check_weights(self.trainer.global_step)
        checkpoint["normtrain"] = checkpoint_section(
            self.recipe, self.tokenizer, self.model, self.about
        )


def checkpoint_section(
    recipe: Recipe, tokenizer: TextTokenizer, model: TokenModel, about: dict[str, Any]
) -> dict[str, Any]:
    """What makes a checkpoint self-contained: recipe, tokenizer, norms, and ``about``."""
    return {
        "version": FORMAT_VERSION,
        "recipe": recipe.plain(),
        "tokenizer": tokenizer.to_json(),
        "rules": model.norms.to_plain(),
        "norms": {name: str(model.norms.spec_for(name)) for name in norm_sites(model)},
        **about,
    }


def several_ranks() -> bool:
    """Whether other processes train the same model."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gathered(mine: dict[int, _T]) -> dict[int, _T]:
    """All ranks' parts of a numbered list."""
    if not several_ranks():
        return mine
    everyone: list[dict[int, _T] | None] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return {i: each for part in everyone if part for i, each in part.items()}
