"""Train a translation model; a validation also translates its sources and scores them."""

from __future__ import annotations

from torch import Tensor

from normtrain.models import Seq2Seq
from normtrain.models.token_ids import PAD
from normtrain.tasks.loss import summed_loss, training_loss
from normtrain.tasks.module import TaskModule
from normtrain.tasks.translation.config import TranslationRecipe
from normtrain.tasks.translation.corpora import Corpus
from normtrain.tasks.translation.evaluate import search_settings, translate_and_score
from normtrain.tasks.translation.tokenizer import Tokenizer


class TranslationModule(TaskModule):
    """Trains an encoder-decoder on translation pairs; see `TaskModule`."""

    model: Seq2Seq
    recipe: TranslationRecipe
    tokenizer: Tokenizer
    _bleu = float("nan")

    @staticmethod
    def count_targets(batch: dict[str, Tensor]) -> Tensor:
        """Count real target tokens, EOS included."""
        return (batch["target_out"] != PAD).sum()

    def batch_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the label-smoothed loss of one batch, nats a real target token."""
        hidden = self._hidden(batch["source"], batch["target_in"])
        matrix, bias = self.model.output_matrix(), self.model.head.bias
        smoothing = self.recipe.optim.label_smoothing
        return training_loss(hidden, matrix, batch["target_out"], smoothing, bias, ignore_index=PAD)

    def summed_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
        """Return the summed cross-entropy of the real target tokens, and their number."""
        logits = self.model(batch["source"], batch["target_in"])
        loss = summed_loss(logits, batch["target_out"], ignore_index=PAD)
        return loss, int(self.count_targets(batch))

    def on_validation_epoch_start(self) -> None:
        """Translate the validation sources; averaged weights, if any, are in place by now."""
        super().on_validation_epoch_start()
        corpus: Corpus = self.trainer.datamodule.corpus  # type: ignore[attr-defined]
        pairs, train = corpus.splits["valid"], self.recipe.train
        lines, scores, _ = translate_and_score(
            self.model,
            self.tokenizer,
            pairs,
            search_settings(self.recipe, beam=train.val_beam),
            target_lang=self.recipe.data.target_lang,
            tokenized_output=corpus.tokenized,
            rank=self.global_rank,
            world=self.trainer.world_size,
        )
        self._bleu = scores.bleu
        shown = range(min(train.samples, len(lines)))
        self.samples = [_sample(pairs.source[i], lines[i], pairs.target[i]) for i in shown]

    def validation_metrics(self, loss: float) -> dict[str, float]:
        """Return the BLEU of the translations."""
        return {"bleu": self._bleu}


def _sample(source: str, output: str, reference: str) -> str:
    return f"    source     {source}\n    output     {output}\n    reference  {reference}"
