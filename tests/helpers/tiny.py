"""Models small enough to build in every test, and batches for them."""

from typing import Any

import torch
from torch import Tensor, nn

from normtrain.models import CausalLM, CausalLMConfig, Seq2Seq, Seq2SeqConfig, build_model

VOCAB = 23
SIZES: dict[str, Any] = {
    "norm": "layernorm",
    "d_model": 16,
    "heads": 4,
    "d_ff": 24,
    "activation": "relu",
    "dropout": 0.0,
    "max_positions": 64,
}


def config(**changes: Any) -> Seq2SeqConfig:
    """Return a small encoder-decoder's config."""
    return Seq2SeqConfig(**(SIZES | {"encoder_layers": 2, "decoder_layers": 2} | changes))


def model_of(**changes: Any) -> Seq2Seq:
    """Build an encoder-decoder, the same for the same changes."""
    torch.manual_seed(0)
    return build_model(config(**changes), VOCAB)


def language_config(**changes: Any) -> CausalLMConfig:
    """Return a small decoder's config."""
    return CausalLMConfig(**(SIZES | {"layers": 2} | changes))


def causal_of(tie: str | bool = True, **changes: Any) -> CausalLM:
    """Build a decoder-only model, the same for the same changes, those of `model_of` too."""
    torch.manual_seed(0)
    changes["tie"] = tie not in ("none", False)
    if "decoder_layers" in changes:
        changes["layers"] = changes.pop("decoder_layers")
    changes = {k: v for k, v in changes.items() if k not in ("encoder_layers", "word_dropout")}
    return build_model(language_config(**changes), VOCAB)


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
