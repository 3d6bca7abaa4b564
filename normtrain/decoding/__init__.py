"""Decoding: beam search and translating text with it; sampling from a language model."""

from __future__ import annotations

from normtrain.decoding.beam import (
    DecodingState,
    Hypothesis,
    StepModel,
    beam_search,
    length_penalties,
)
from normtrain.decoding.sampling import LanguageModel, filter_logits, generate
from normtrain.decoding.translate import (
    TextCodec,
    TranslationResult,
    translate_lines,
    translate_stream,
)

__all__ = [
    "DecodingState",
    "Hypothesis",
    "LanguageModel",
    "StepModel",
    "TextCodec",
    "TranslationResult",
    "beam_search",
    "filter_logits",
    "generate",
    "length_penalties",
    "translate_lines",
    "translate_stream",
]
