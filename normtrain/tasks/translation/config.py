"""The recipe of a translation run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, Strict

from normtrain.config.schema import Recipe
from normtrain.config.sections import DataConfig, DecodeConfig, OptimConfig, TrainConfig
from normtrain.fields import Accepts, Count, Fraction, NonNegative, Text, Whole, key
from normtrain.models.config import Seq2SeqConfig

Beam = Annotated[int, Strict(), Field(ge=1, le=1000), Accepts("an integer from 1 to 1000")]
Language = Annotated[
    str,
    Strict(),
    Field(pattern=r"^[a-z]{2,3}(-[A-Za-z0-9]{2,8})*$"),
    Accepts("a language code, such as en, vi or pt-BR"),
]


class TranslationDataConfig(DataConfig):
    """Sentence pairs."""

    source: Text = key("phrasebook", "a corpus name, hf:owner/name or a folder")
    source_lang: Language = key("en", "language that is translated")
    target_lang: Language = key("vi", "language that is written")
    max_length: Count = key(128, "longest sentence, in tokens")
    vocab_size: Count = key(4000, "ids of the tokenizer")


class TranslationOptimConfig(OptimConfig):
    """As for every task; translations are smoothed by default (Szegedy et al. 2016)."""

    label_smoothing: Fraction = key(0.1, "label smoothing (Szegedy et al. 2016)")


class TranslationTrainConfig(TrainConfig):
    """As for every task, and how a validation translates."""

    best: Literal["bleu", "loss"] = key("bleu", "metric of the best checkpoint")
    val_beam: Beam = key(1, "beam width of a validation")
    samples: Whole = key(3, "translations that a validation prints")


class TranslationDecodeConfig(DecodeConfig):
    """Beam search."""

    beam: Beam = key(5, "beam width")
    length_penalty: NonNegative = key(0.6, "exponent of Wu et al. 2016, eq. 14")


class TranslationRecipe(Recipe):
    """Translation by an encoder-decoder."""

    task: Literal["translation"] = "translation"
    data: TranslationDataConfig = TranslationDataConfig()
    model: Seq2SeqConfig = Seq2SeqConfig()
    optim: TranslationOptimConfig = TranslationOptimConfig()
    train: TranslationTrainConfig = TranslationTrainConfig()
    decode: TranslationDecodeConfig = TranslationDecodeConfig()

    def contradictions(self) -> Iterator[str]:
        """Yield what `Recipe` does, sentences that do not fit, and a pair of one language."""
        yield from super().contradictions()
        data, positions = self.data, self.model.max_positions
        if data.source_lang == data.target_lang:
            yield (
                f"data.source_lang and data.target_lang must differ, got {data.source_lang} twice"
            )
        lengths = {"data": data.max_length, "decode": self.decode.max_length}
        for section, length in lengths.items():
            if length >= positions:  # one position is BOS's or EOS's
                yield (
                    f"{section}.max_length ({length}) must be below model.max_positions "
                    f"({positions})"
                )
        if data.max_tokens <= data.max_length:  # a batch holds its longest sentence and EOS
            yield (
                f"data.max_tokens ({data.max_tokens}) must be above data.max_length "
                f"({data.max_length}), so that a batch holds any one sentence"
            )
