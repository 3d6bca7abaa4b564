"""Tiny models to write and read in Hugging Face's formats, and their logits."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from normtrain.data.tokenizers.build import train_text_tokenizer
from normtrain.data.tokenizers.protocol import TextTokenizer
from normtrain.hf import Pretrained, load_into, write_folder
from normtrain.models import CausalLM, build_model
from normtrain.models.config import CausalLMConfig
from normtrain.tasks.language.config import LanguageRecipe

SIZES: dict[str, Any] = {
    "d_model": 32,
    "heads": 4,
    "layers": 2,
    "d_ff": 40,
    "max_positions": 24,
    "dropout": 0.0,
}
LLAMA: dict[str, Any] = SIZES | {
    "norm": "rmsnorm:eps=1e-06",
    "activation": "swiglu",
    "positions": "rotary",
    "bias": False,
}
QWEN3: dict[str, Any] = LLAMA | {"qk_norm": "rmsnorm:eps=1e-06"}
GPT2: dict[str, Any] = SIZES | {
    "norm": "layernorm",
    "activation": "gelu-tanh",
    "positions": "learned",
}
MODELS = {"llama": LLAMA, "qwen3": QWEN3, "gpt2": GPT2}
TEXT = "the cat sat on the mat, said hello to 12 dogs — and a bà\n" * 3


@cache
def bpe() -> TextTokenizer:
    return train_text_tokenizer("bpe", [TEXT], 290)


def section(**values: Any) -> CausalLMConfig:
    """Return a model section that a recipe accepts."""
    return LanguageRecipe(
        name="x",
        model=CausalLMConfig(**values),
        data={"window": 8, "max_tokens": 8},  # type: ignore[arg-type]
    ).model


def scrambled(model: nn.Module, seed: int = 0) -> nn.Module:
    """Change every parameter, so that a weight that is not copied changes the logits."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def our_model(values: CausalLMConfig, vocab_size: int | None = None) -> CausalLM:
    torch.manual_seed(1)
    model = build_model(values, vocab_size or bpe().vocab_size)
    scrambled(model)
    return model


def written(folder: Path, format: str, **values: Any) -> tuple[CausalLM, list[str]]:
    """A model of ours, exported."""
    settings = section(**(MODELS[format] | values))
    model = our_model(settings)
    return model, write_folder(folder, format, settings, model.state_dict(), bpe())


def tokens(vocab_size: int, length: int = 24) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, vocab_size, (3, length), generator=generator)


@torch.no_grad()
def our_logits(model: CausalLM, ids: Tensor) -> Tensor:
    return model(ids)


@torch.no_grad()
def their_logits(model: nn.Module, ids: Tensor) -> Tensor:
    return model.eval()(ids).logits


def rebuilt(pretrained: Pretrained) -> CausalLM:
    """The model that was read, with every weight from there."""
    model = build_model(section(**pretrained.model), pretrained.tokenizer.vocab_size)
    report = load_into(model, pretrained.weights)
    assert (report.fresh, report.dropped) == ([], [])
    return model.eval()


def assert_close(found: Tensor, expected: Tensor) -> None:
    """Equal to 1e-5 in float32, and of a size that makes this say something."""
    assert expected.abs().amax() > 0.5
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
