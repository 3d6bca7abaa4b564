"""Translation as a LightningModule: loss, validation, and what a checkpoint carries."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor

from normtrain.data.corpora import Corpus
from normtrain.data.text import looks_tokenized
from normtrain.data.tokenization import PAD, Tokenizer
from normtrain.decoding.translate import translate_lines
from normtrain.models import build_model, norm_sites
from normtrain.recipe import Recipe
from normtrain.scoring import score
from normtrain.tasks.loss import summed_loss, training_loss
from normtrain.tasks.optim import build_optimizer

FORMAT_VERSION = 1


@dataclass
class Tally:
    """A sum of losses and the number of tokens it is over."""

    loss: float = 0.0
    tokens: int = 0

    @property
    def mean(self) -> float:
        """Loss a token; 0 where there were none."""
        return self.loss / max(1, self.tokens)


@dataclass
class Validation:
    """What the last validation found."""

    loss: float = float("nan")
    bleu: float = float("nan")
    samples: list[tuple[str, str, str]] = field(default_factory=list)


class TranslationTask(pl.LightningModule):
    """Trains and validates an encoder-decoder on translation pairs.

    Args:
        recipe: every choice of the run.
        tokenizer: text to token ids and back.
        about: what checkpoints shall also carry, plain values by name: the data, the machine.
        compile_model: run the training forward pass through ``torch.compile``.

    Raises:
        ValueError: if the recipe asks for a model that can't be built.
    """

    def __init__(
        self,
        recipe: Recipe,
        tokenizer: Tokenizer,
        *,
        about: dict[str, Any] | None = None,
        compile_model: bool = False,
    ) -> None:
        super().__init__()
        self.recipe, self.tokenizer = recipe, tokenizer
        self.about = about or {}
        self.model = build_model(recipe.model, tokenizer.vocab_size)
        hidden = self.model.hidden
        self._hidden = torch.compile(hidden, dynamic=True) if compile_model else hidden
        self.batch_shape: dict[str, tuple[int, ...]] = {}
        self.validation = Validation()
        self.gradient_norm = torch.zeros(())
        self.update_scale: Tensor | float = 1.0
        self._update_tokens: Tensor | float = 0.0
        self._tally = Tally()

    @property
    def _corpus(self) -> Corpus:
        return self.trainer.datamodule.corpus  # type: ignore[attr-defined]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Label-smoothed loss of one batch, nats a real target token.

        Where an update has several batches, each is weighted by its tokens: it comes divided by
        a constant, and the true number, known once all are done, is put right by
        :meth:`configure_gradient_clipping`.
        """
        self.batch_shape = {k: tuple(v.shape) for k, v in batch.items() if v.ndim == 2}
        hidden = self._hidden(batch["source"], batch["target_in"])
        target = batch["target_out"]
        smoothing = self.recipe.optim.label_smoothing
        matrix, bias = self.model.output_matrix(), self.model.head.bias
        loss = training_loss(hidden, matrix, target, smoothing, bias)
        if self._batches_an_update == 1:
            return loss
        tokens = (target != PAD).sum()
        self._update_tokens = self._update_tokens + tokens
        return loss * (tokens / self.recipe.data.max_tokens)

    @property
    def _batches_an_update(self) -> int:
        return self.recipe.optim.accumulate * self.trainer.world_size

    def on_validation_epoch_start(self) -> None:
        """Translate the validation sources; averaged weights, if any, are in place by now."""
        self._tally = Tally()
        corpus = self._corpus
        pairs = corpus.splits["valid"]
        decode = self.recipe.decode
        mine = list(range(self.global_rank, len(pairs.source), self.trainer.world_size))
        result = translate_lines(
            self.model,
            self.tokenizer,
            [pairs.source[i] for i in mine],
            beam=self.recipe.train.val_beam,
            length_penalty=decode.length_penalty,
            max_length=decode.max_length,
            max_source=self.recipe.data.max_length,
        )
        found = _gather(dict(zip(mine, result.lines, strict=True)))
        lines = [found[i] for i in range(len(pairs.source))]
        bleu = score(
            lines,
            pairs.target,
            tokenized=looks_tokenized(pairs.target),
            tokenized_output=corpus.tokenized,
        ).bleu
        shown = range(min(self.recipe.train.samples, len(lines)))
        samples = [(pairs.source[i], lines[i], pairs.target[i]) for i in shown]
        self.validation = Validation(bleu=bleu, samples=samples)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Add one batch's cross-entropy, without smoothing, to the tally."""
        logits = self.model(batch["source"], batch["target_in"])
        self._tally.loss += float(summed_loss(logits, batch["target_out"]))
        self._tally.tokens += int((batch["target_out"] != PAD).sum())

    def on_validation_epoch_end(self) -> None:
        """Report the loss a token and BLEU over the whole split and all ranks."""
        totals = torch.tensor([self._tally.loss, self._tally.tokens], dtype=torch.float64)
        if _several_ranks():
            totals = totals.to(self.device)
            dist.all_reduce(totals)
        self.validation.loss = float(totals[0] / totals[1].clamp(min=1))
        # For callbacks that watch a number; the run's own log writes it unrounded.
        self.log("val_loss", self.validation.loss, logger=False, rank_zero_only=False)
        self.log("val_bleu", self.validation.bleu, logger=False, rank_zero_only=False)

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
        """
        if self._batches_an_update > 1:
            # Lightning and DDP took the mean of the batches; this makes it the mean of the tokens.
            tokens = self.trainer.strategy.reduce(self._update_tokens, reduce_op="sum")
            self.update_scale = self._batches_an_update * self.recipe.data.max_tokens / tokens
            gradients = [p.grad for p in self.parameters() if p.grad is not None]
            torch._foreach_mul_(gradients, self.update_scale)
            self._update_tokens = 0.0
        limit = self.recipe.optim.clip or float("inf")
        self.gradient_norm = torch.nn.utils.clip_grad_norm_(self.parameters(), limit)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the checkpoint self-contained: recipe, tokenizer and norms, plain types only."""
        checkpoint["normtrain"] = {
            "version": FORMAT_VERSION,
            "recipe": self.recipe.plain(),
            "tokenizer": self.tokenizer.to_json(),
            "rules": self.model.norms.to_plain(),
            "norms": {
                name: str(self.model.norms.spec_for(name)) for name in norm_sites(self.model)
            },
            **self.about,
        }


def _several_ranks() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _gather(mine: dict[int, str]) -> dict[int, str]:
    if not _several_ranks():
        return mine
    everyone: list[dict[int, str] | None] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return {i: line for part in everyone if part for i, line in part.items()}
