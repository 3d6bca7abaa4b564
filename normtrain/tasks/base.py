"""What the tasks share: optimizer, the weight of a batch in an update, what checkpoints carry."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Protocol, cast

import pytorch_lightning as pl
import torch
from torch import Tensor

from normtrain.config.recipe import Recipe
from normtrain.models import norm_sites
from normtrain.models.blocks import Stack
from normtrain.models.embedding import TokenModel
from normtrain.models.recompute import Recompute
from normtrain.tasks.optim import build_optimizer, clip_gradients
from normtrain.tasks.ranks import Tally
from normtrain.tasks.sharding import (
    hold_whole,
    scale_gradients,
    shard,
    sync_gradients,
    whole_tensor,
)
from normtrain.tasks.updates import UpdateWatch

FORMAT_VERSION = 1


class TextTokenizer(Protocol):
    """What a task needs of its tokenizer."""

    @property
    def vocab_size(self) -> int: ...
    def to_json(self) -> str: ...


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
        update_batches: batches of one optimizer step, over all processes.

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
        update_batches: int = 1,
    ) -> None:
        super().__init__()
        self._batches_an_update = update_batches
        self.recipe, self.tokenizer, self.about = recipe, tokenizer, about or {}
        self.model = model
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
        """Keep what a second look at this batch would need.

        Under FSDP2, share gradients only with the last batch of an update.
        """
        self.updates.begin(batch, batch_idx)
        sync_gradients(self.model, not self.trainer.fit_loop._should_accumulate())

    def _loss_again(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """A batch's loss once more, layer by layer; for a run that can't go on."""
        self._compiled = None  # no hook sees compiled layers
        with self.trainer.precision_plugin.train_step_context():
            return cast(Tensor, self.training_step(batch, batch_idx))

    def _hidden(self, *inputs: Tensor) -> Tensor:
        """The model's last vectors, by the compiled pass if there is one."""
        hidden = self._compiled or cast(Callable[..., Tensor], self.model.hidden)
        return hidden(*inputs)

    def configure_model(self) -> None:
        """Cut the weights over the processes where the strategy asks for it (FSDP2)."""
        if self.device_mesh is not None:
            shard(self.model, self.device_mesh["data_parallel"])

    def on_validation_start(self) -> None:
        """Under FSDP2, gather the weights: ranks have different numbers of batches."""
        hold_whole(self.model, True)

    def on_validation_end(self) -> None:
        """Let go of them."""
        hold_whole(self.model, False)

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
            scale_gradients(self.parameters(), self.update_scale)
            self._update_tokens = 0.0
        norm = clip_gradients(self.parameters(), self.recipe.optim.clip or float("inf"))
        self.gradient_norm = whole_tensor(norm)
        step = self.trainer.global_step + 1
        self.updates.check(step, bad, self.gradient_norm, self._loss_scale, optimizer)

    @property
    def _loss_scale(self) -> Tensor | float:
        """What makes the sum of an update's losses its loss; Lightning has yet to divide them."""
        return self.update_scale / self.trainer.accumulate_grad_batches

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
