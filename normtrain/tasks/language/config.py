"""The recipe of a language-modelling run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, Strict

from normtrain.config.schema import Recipe
from normtrain.config.sections import DataConfig, DecodeConfig
from normtrain.fields import Accepts, Count, Flag, NonNegative, OptionalCount, Text, key
from normtrain.models.config import CausalLMConfig


class LanguageDataConfig(DataConfig):
    """Running text."""

    source: Text = key("python", "a corpus name, hf:owner/name, a folder or a file")
    tokenizer: Literal["bpe", "word", "byte", "char"] = key(
        "bpe", "byte-level BPE, the words of WikiText and PTB, bytes, or characters"
    )
    vocab_size: OptionalCount = key(None, "most ids; null: 8000 for bpe, else all of the text")
    window: Count = key(256, "tokens that the model sees at once")
    document_mark: Flag = key(True, "whether an end-of-text token separates documents")

    @property
    def most_ids(self) -> int | None:
        """The most ids that the tokenizer can have; None where only the text tells."""
        return self.vocab_size or {"bpe": 8000, "byte": 257}.get(self.tokenizer)


class LanguageDecodeConfig(DecodeConfig):
    """Sampling."""

    temperature: NonNegative = key(1.0, "0 takes the likeliest token")
    top_k: OptionalCount = key(None, "sample from the k likeliest tokens")
    top_p: Annotated[
        float | None, Strict(), Field(gt=0, le=1), Accepts("a number > 0 and <= 1, or null")
    ] = key(None, "sample from the smallest set of this probability (Holtzman et al. 2020)")


class LanguageRecipe(Recipe):
    """Language modelling by a decoder."""

    task: Literal["language"] = "language"
    data: LanguageDataConfig = LanguageDataConfig()
    model: CausalLMConfig = CausalLMConfig()
    decode: LanguageDecodeConfig = LanguageDecodeConfig()

    def contradictions(self) -> Iterator[str]:
        """Yield what `Recipe` does, and windows that do not fit."""
        yield from super().contradictions()
        data, model = self.data, self.model
        if data.window > model.max_positions:
            yield (
                f"data.window ({data.window}) must not be above model.max_positions "
                f"({model.max_positions})"
            )
        if data.max_tokens < data.window:
            yield (
                f"data.max_tokens ({data.max_tokens}) must not be below data.window "
                f"({data.window}), so that a batch holds a window"
            )
        if data.tokenizer == "byte" and data.vocab_size is not None:
            yield "data.vocab_size must be null with data.tokenizer byte: there are 256 bytes"
