"""Plain ``nn.Module`` models, any norm at any place; no Lightning here."""

from normtrain.models.factory import ModelConfig, build_model, norm_sites
from normtrain.models.seq2seq import DecodingState, Seq2Seq

__all__ = ["DecodingState", "ModelConfig", "Seq2Seq", "build_model", "norm_sites"]
