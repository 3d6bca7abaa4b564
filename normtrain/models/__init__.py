"""Plain ``nn.Module`` models, any norm at any place; no Lightning here."""

from normtrain.models.causal import CausalLM
from normtrain.models.factory import ModelConfig, build_model, norm_sites
from normtrain.models.seq2seq import DecodingState, Seq2Seq

__all__ = ["CausalLM", "DecodingState", "ModelConfig", "Seq2Seq", "build_model", "norm_sites"]
