"""Translation as a LightningModule: loss, and validation by translating."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from normtrain.config.recipe import TranslationRecipe
from normtrain.data.text import looks_tokenized
from normtrain.models import Seq2Seq, build_model
from normtrain.models.token_ids import PAD
from normtrain.tasks.base import TrainingTask
from normtrain.tasks.loss import summed_loss, training_loss
from normtrain.tasks.ranks import Tally, all_lines
from normtrain.tasks.translation.corpora import Corpus
from normtrain.tasks.translation.decoding.translate import translate_lines
from normtrain.tasks.translation.metrics import score
from normtrain.tasks.translation.tokenizer import Tokenizer


@dataclass
class TranslationValidation:
    """What the last validation found."""

    loss: float = float("nan")
    bleu: float = float("nan")
    beam: int = 1
    samples: list[tuple[str, str, str]] = field(default_factory=list)

    def metrics(self) -> dict[str, float]:
        """Loss a token and BLEU."""
        return {"val_loss": self.loss, "val_bleu": self.bleu}

    def lines(self) -> list[str]:
        """The scores, and a few translations."""
        names = ("source", "output", "reference")
        return [
            f"validation loss {self.loss:.4f}, BLEU {self.bleu:.2f} (beam {self.beam})",
            *(
                "\n".join(f"    {name:<9}  {text}" for name, text in zip(names, each, strict=True))
                for each in self.samples
            ),
        ]


class TranslationTask(TrainingTask):
    """Trains and validates an encoder-decoder on translation pairs.

    Args:
        recipe: every choice of the run.
        tokenizer: text to token ids and back.
        about: what checkpoints shall also carry, plain values by name: the data, the machine.
        compile_model: run the training forward pass through ``torch.compile``.
        update_batches: batches of one optimizer step, over all processes.

    Raises:
        ValueError: if the recipe asks for a model that can't be built.
    """

    model: Seq2Seq
    recipe: TranslationRecipe
    tokenizer: Tokenizer

    def __init__(
        self,
        recipe: TranslationRecipe,
        tokenizer: Tokenizer,
        *,
        about: dict[str, Any] | None = None,
        compile_model: bool = False,
        update_batches: int = 1,
    ) -> None:
        model = build_model(recipe.model, tokenizer.vocab_size)
        super().__init__(
            recipe,
            tokenizer,
            model,
            about=about,
            compile_model=compile_model,
            update_batches=update_batches,
        )
        self.validation = TranslationValidation()

    @property
    def _corpus(self) -> Corpus:
        return self.trainer.datamodule.corpus  # type: ignore[attr-defined]

    @staticmethod
    def count_targets(batch: dict[str, Tensor]) -> Tensor:
        """Real target tokens, EOS included."""
        return (batch["target_out"] != PAD).sum()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Label-smoothed loss of one batch, nats a real target token."""
        self.batch_shape = {k: tuple(v.shape) for k, v in batch.items() if v.ndim == 2}
        hidden = self._hidden(batch["source"], batch["target_in"])
        matrix, bias = self.model.output_matrix(), self.model.head.bias
        smoothing = self.recipe.optim.label_smoothing
        loss = training_loss(hidden, matrix, batch["target_out"], smoothing, bias, ignore_index=PAD)
        return self._weighted(loss, batch)

    def on_validation_epoch_start(self) -> None:
        """Translate the validation sources; averaged weights, if any, are in place by now."""
        self._tally = Tally()
        corpus = self._corpus
        pairs = corpus.splits["valid"]
        decode = self.recipe.decode
        result = translate_lines(
            self.model,
            self.tokenizer,
            pairs.source,
            beam=self.recipe.train.val_beam,
            length_penalty=decode.length_penalty,
            max_length=decode.max_length,
            max_source=self.recipe.data.max_length,
            rank=self.global_rank,
            world=self.trainer.world_size,
        )
        lines = all_lines(result)
        bleu = score(
            lines,
            pairs.target,
            tokenized=looks_tokenized(pairs.target),
            tokenized_output=corpus.tokenized,
        ).bleu
        shown = range(min(self.recipe.train.samples, len(lines)))
        samples = [(pairs.source[i], lines[i], pairs.target[i]) for i in shown]
        beam = self.recipe.train.val_beam
        self.validation = TranslationValidation(bleu=bleu, beam=beam, samples=samples)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Add one batch's cross-entropy, without smoothing, to the tally."""
        logits = self.model(batch["source"], batch["target_in"])
        self._tally.loss += float(summed_loss(logits, batch["target_out"], ignore_index=PAD))
        self._tally.tokens += int(self.count_targets(batch))

    def on_validation_epoch_end(self) -> None:
        """Report the loss a token and BLEU over the whole split and all ranks."""
        self.validation.loss = self._tally.over_ranks(self.device).mean
        self._log_validation()
