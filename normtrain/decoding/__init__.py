"""Decoding: beam search over any step-by-step model, and translating text with it."""

from __future__ import annotations

from normtrain.decoding.beam import (
    DecodingState,
    Hypothesis,
    StepModel,
    beam_search,
    length_penalties,
)
from normtrain.decoding.translate import (
    TextCodec,
    TranslationResult,
    translate_lines,
    translate_stream,
)

__all__ = [
    "DecodingState",
    "Hypothesis",
    "StepModel",
    "TextCodec",
    "TranslationResult",
    "beam_search",
    "length_penalties",
    "translate_lines",
    "translate_stream",
]
