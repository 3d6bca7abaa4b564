"""Plain ``nn.Module`` models, any norm at any place; no Lightning here."""

from normtrain.models.causal import CausalLM, CausalState
from normtrain.models.factory import (
    LanguageModelConfig,
    ModelConfig,
    build_language_model,
    build_model,
    norm_sites,
)
from normtrain.models.seq2seq import DecodingState, Seq2Seq

__all__ = [
    "CausalLM",
    "CausalState",
    "DecodingState",
    "LanguageModelConfig",
    "ModelConfig",
    "Seq2Seq",
    "build_language_model",
    "build_model",
    "norm_sites",
]
