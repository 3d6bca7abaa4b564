"""Measure how far the outputs of a converted model are from the original's, at common sizes.

Weights are random, with gains and biases far from 1 and 0; nothing is downloaded. Needs
transformers (extra ``dev``):

    python benchmarks/equivalence.py
"""

from __future__ import annotations

import copy

import torch
import transformers
from torch import Tensor, nn

from normtrain import to_crmsnorm, to_rmsnorm

MODELS = {
    "GPT-2 124M": ("GPT2LMHeadModel", "GPT2Config", {}),
    "OPT-125M": ("OPTForCausalLM", "OPTConfig", {}),
    "Pythia-160M": (
        "GPTNeoXForCausalLM",
        "GPTNeoXConfig",
        {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
        | {"intermediate_size": 3072},
    ),
    "ViT-B/16": ("ViTForImageClassification", "ViTConfig", {"num_labels": 1000}),
    "Whisper-base": (
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {"d_model": 512, "encoder_layers": 6, "decoder_layers": 6}
        | {"encoder_attention_heads": 8, "decoder_attention_heads": 8}
        | {"encoder_ffn_dim": 2048, "decoder_ffn_dim": 2048},
    ),
}


def scrambled(kind: str, config: str, options: dict) -> nn.Module:
    """Build a model with the library's initialisation, gains around 1.3 and biases around 0.1."""
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, config)(**options)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                centre = 1.3 if name.endswith("weight") else 0.1
                parameter.copy_(centre + 0.3 * torch.randn_like(parameter))
    return model


def inputs(model: nn.Module) -> dict[str, Tensor]:
    """Return random inputs that the model takes."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(10, 1000, (2, 32), generator=generator)
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(2, 3, 224, 224, generator=generator).to(model.dtype)}
    if model.main_input_name == "input_features":
        speech = torch.randn(1, 80, 3000, generator=generator)
        return {"input_features": speech.to(model.dtype), "decoder_input_ids": ids[:1]}
    return {"input_ids": ids}


@torch.no_grad()
def main() -> None:
    """Print a Markdown table."""
    print("| model | conversion | float64 | float32 |\n| --- | --- | --- | --- |")
    for name, parts in MODELS.items():
        model = scrambled(*parts)
        for convert in (to_rmsnorm, to_crmsnorm):
            row = []
            for dtype in (torch.float64, torch.float32):
                original = copy.deepcopy(model).to(dtype)
                fed = inputs(original)
                expected = original(**fed).logits.double()
                convert(original)
                error = (original(**fed).logits.double() - expected).abs().amax()
                row.append(f"{float(error / expected.abs().amax()):.1e}")
            print(f"| {name} | `{convert.__name__}` | {row[0]} | {row[1]} |", flush=True)


if __name__ == "__main__":
    main()
