"""Models small enough to build in every test, and batches for them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from normtrain.models import CausalLM, Seq2Seq, build_language_model, build_model

VOCAB = 23


def config(**changes: Any) -> SimpleNamespace:
    """A recipe's model section."""
    values: dict[str, Any] = {
        "norm": "layernorm",
        "norm_rules": [],
        "placement": "pre",
        "qk_norm": "none",
        "d_model": 16,
        "heads": 4,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "d_ff": 24,
        "activation": "relu",
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "word_dropout": 0.0,
        "positions": "sinusoidal",
        "max_positions": 64,
        "tie": "all",
        "bias": True,
        "d_stream": None,
        "zero_mean": "none",
        "embedding_norm": "none",
        "head_bias": False,
    }
    assert changes.keys() <= values.keys()
    return SimpleNamespace(**(values | changes))


def model_of(**changes: Any) -> Seq2Seq:
    """An encoder-decoder, the same for the same changes."""
    torch.manual_seed(0)
    return build_model(config(**changes), VOCAB)


def language_config(**changes: Any) -> SimpleNamespace:
    """A language recipe's model section; ``layers`` are the translation model's decoder layers."""
    own = {"layers": 2, "kv_heads": None, "rotary_base": 10000.0, "positions": "rotary"}
    own |= {key: changes.pop(key) for key in own if key in changes}
    values = vars(config(**changes)) | own
    values["tie"] = values["tie"] not in ("none", False)
    for key in ("encoder_layers", "decoder_layers", "word_dropout"):
        del values[key]
    return SimpleNamespace(**values)


def causal_of(tie: str = "all", **changes: Any) -> CausalLM:
    """A decoder-only model, the same for the same changes."""
    torch.manual_seed(0)
    return build_language_model(language_config(tie=tie, **changes), VOCAB)


def batch(sizes: list[tuple[int, int]] | None = None) -> tuple[Tensor, Tensor]:
    """Source and target tokens, padded with 0."""
    sizes = sizes or [(7, 5), (4, 6), (2, 1)]
    source = torch.zeros(len(sizes), max(s for s, _ in sizes), dtype=torch.int64)
    target = torch.zeros(len(sizes), max(t for _, t in sizes), dtype=torch.int64)
    generator = torch.Generator().manual_seed(1)
    for row, (s, t) in enumerate(sizes):
        source[row, :s] = torch.randint(4, VOCAB, (s,), generator=generator)
        target[row, :t] = torch.randint(4, VOCAB, (t,), generator=generator)
    return source, target


def perturb_norms(model: nn.Module) -> None:
    """Move gains and biases of norms, and a head's bias, away from 1 and 0."""
    for name, parameter in model.named_parameters():
        if "norm" in name or name == "head.bias":
            parameter.data += 0.3 * torch.randn_like(parameter)
