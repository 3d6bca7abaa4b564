"""The LightningModule that every task extends: optimizer step, validation, checkpoints."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor

from normtrain.config.schema import Recipe
from normtrain.models.blocks import Stack
from normtrain.models.embedding import TokenModel
from normtrain.models.recompute import Recompute
from normtrain.tasks.base import TaskTokenizer, task_of
from normtrain.tasks.optimizers import build_optimizer, clip_gradients
from normtrain.tasks.sharding import (
    hold_whole,
    scale_gradients,
    shard,
    sync_gradients,
    whole_tensor,
)
from normtrain.tasks.step_check import StepCheck
from normtrain.tasks.tally import Tally


class TaskModule(pl.LightningModule):
    """Trains a model over tokens; a task says what the loss of a batch is.

    Subclasses define `count_targets`, `batch_loss` and `summed_loss`, and what `validation_metrics`
    adds to the loss.

    Args:
        recipe: every choice of the run.
        tokenizer: text to token ids and back.
        compile_model: run the training forward pass through ``torch.compile``.
        step_batches: batches of one optimizer step, over all ranks.

    Raises:
        ValueError: the recipe asks for a model that cannot be built.

    Attributes:
        model: what is trained, built by the recipe's task.
        batch_shape: shapes of the last training batch, for the message when memory is short.
        validation: the numbers of the last validation by name, the loss first.
        samples: outputs of the last validation, for the log.
        gradient_norm: of the last optimizer step, before clipping.
        step_scale: what the last gradient was multiplied by, to be a mean over tokens.
    """

    model: TokenModel

    def __init__(
        self,
        recipe: Recipe,
        tokenizer: TaskTokenizer,
        *,
        compile_model: bool = False,
        step_batches: int = 1,
    ) -> None:
        super().__init__()
        self._step_batches = step_batches
        self.recipe, self.tokenizer = recipe, tokenizer
        self.model = model = task_of(recipe).model(recipe.model, tokenizer.vocab_size)
        self._compiled: Callable[..., Tensor] | None = None
        if recipe.train.activation_checkpointing:
            recompute = Recompute(compile=compile_model)
            for stack in (part for part in model.modules() if isinstance(part, Stack)):
                stack.recompute = recompute
        elif compile_model:
            hidden = cast(Callable[..., Tensor], model.hidden)
            self._compiled = torch.compile(hidden, dynamic=True)
        self.batch_shape: dict[str, tuple[int, ...]] = {}
        self.gradient_norm = torch.zeros(())
        self.step_scale: Tensor | float = 1.0
        self._step_tokens: Tensor | float = 0.0
        self.validation: dict[str, float] = {}
        self.samples: list[str] = []
        self._tally = Tally()
        self.step_check = StepCheck(self._loss_again, model)

    @staticmethod
    @abstractmethod
    def count_targets(batch: dict[str, Tensor]) -> Tensor:
        """How many tokens of a batch are predicted; a scalar where the batch lies."""

    @abstractmethod
    def batch_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the training loss of a batch: a mean over its targets."""

    @abstractmethod
    def summed_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
        """Return the cross-entropy of a validation batch, summed over its targets in nats, and
        their number."""

    def validation_metrics(self, loss: float) -> dict[str, float]:
        """Return what a validation found besides the loss, by the names of the task's metrics."""
        return {}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of one batch, weighted by its tokens where a step has several batches.

        A weighted loss comes divided by a constant; `configure_gradient_clipping` corrects it when
        the number of tokens of the step is known.
        """
        self.batch_shape = {k: tuple(v.shape) for k, v in batch.items() if v.ndim == 2}
        loss = self.batch_loss(batch)
        if self._step_batches > 1:
            tokens = self.count_targets(batch)
            self._step_tokens = self._step_tokens + tokens
            loss = loss * (tokens / self.recipe.data.max_tokens)
        self.step_check.note(loss)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Start to count."""
        self._tally = Tally()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Add one batch's cross-entropy, without smoothing, to the tally."""
        loss, targets = self.summed_loss(batch)
        self._tally.loss += float(loss)
        self._tally.tokens += targets

    def on_validation_epoch_end(self) -> None:
        """Log the numbers of the whole split, over all ranks, for callbacks that watch one."""
        loss = self._tally.over_ranks(self.device).mean
        self.validation = {"loss": loss, **self.validation_metrics(loss)}
        for name, value in self.validation.items():  # metrics.csv gets them unrounded elsewhere
            self.log(f"val_{name}", value, logger=False, rank_zero_only=False)

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Keep the batch for a diagnosis; under FSDP2 reduce gradients once a step."""
        self.step_check.begin(batch, batch_idx)
        sync_gradients(self.model, not self.trainer.fit_loop._should_accumulate())

    def _loss_again(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Compute a batch's loss again, uncompiled, for the diagnosis of a run that stops."""
        self._compiled = None  # no hook sees compiled layers
        with self.trainer.precision_plugin.train_step_context():
            return self.training_step(batch, batch_idx)

    def _hidden(self, *inputs: Tensor) -> Tensor:
        """Return the last hidden vectors, from the compiled forward pass if there is one."""
        hidden = self._compiled or cast(Callable[..., Tensor], self.model.hidden)
        return hidden(*inputs)

    def configure_model(self) -> None:
        """Shard the weights over the ranks where the strategy asks for it (FSDP2)."""
        if self.device_mesh is not None:
            shard(self.model, self.device_mesh["data_parallel"])

    def on_validation_start(self) -> None:
        """Under FSDP2, gather the weights: ranks have different numbers of batches."""
        hold_whole(self.model, True)

    def on_validation_end(self) -> None:
        """Shard them again."""
        hold_whole(self.model, False)

    def configure_optimizers(self) -> Any:
        """Return the optimizer and the schedule of the recipe."""
        return build_optimizer(self.model, self.recipe.optim, self.recipe.train.max_steps)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Finish the gradient of an optimizer step: weight it by tokens, then clip its norm.

        Lightning's own clipping refuses fused optimizers.

        Raises:
            NonFiniteStep: the loss or the gradient is NaN or Inf; the weights are unchanged.
        """
        bad = self.step_check.bad_losses(self.device)
        if self._step_batches > 1:
            # Lightning and DDP took the mean of the batches; this makes it the mean of the tokens.
            mine = torch.stack([cast(Tensor, self._step_tokens), bad])
            tokens, bad = self.trainer.strategy.reduce(mine, reduce_op="sum")
            self.step_scale = self._step_batches * self.recipe.data.max_tokens / tokens
            scale_gradients(self.parameters(), self.step_scale)
            self._step_tokens = 0.0
        norm = clip_gradients(self.parameters(), self.recipe.optim.clip or float("inf"))
        self.gradient_norm = whole_tensor(norm)
        step = self.trainer.global_step + 1
        self.step_check.check(step, bad, self.gradient_norm, self._loss_scale, optimizer)

    @property
    def _loss_scale(self) -> Tensor | float:
        """Factor from the sum of a step's losses, before Lightning divides it, to its loss."""
        return self.step_scale / self.trainer.accumulate_grad_batches

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to save non-finite weights.

        Raises:
            NonFiniteStep: a weight is NaN or Inf.
        """
        self.step_check.settle()
        self.step_check.check_weights(self.trainer.global_step)
