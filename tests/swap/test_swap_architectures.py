"""Real architectures of torch and transformers, small and random, before and after a swap."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scrambled import relative_error
from torch import Tensor, nn

from normtrain import norm_names, swap_norms
from normtrain.errors import UserError
from normtrain.norms import LayerNorm, RMSNorm

pytestmark = pytest.mark.extended

HERE = torch.Generator().manual_seed(5)
IDS = torch.randint(3, 29, (2, 6), generator=HERE)
ROWS = torch.randn(2, 6, 16, generator=HERE)
PAD = torch.tensor([[False] * 6, [False] * 4 + [True] * 2])
IMAGE = torch.randn(2, 3, 16, 16, generator=HERE)
SPEECH = torch.randn(2, 4, 12, generator=HERE)
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = SIZES | {"vocab_size": 29, "intermediate_size": 24, "max_position_embeddings": 16}


class ConvNet(nn.Module):
    """Convolutions with LayerNorm over the channels and over the pooled features."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.LayerNorm(8, eps=1e-6)
        self.second = nn.Conv2d(8, 12, 3, stride=2)
        self.last = nn.LayerNorm(12, bias=False)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head(self.last(self.second(x.relu()).mean((2, 3))))


def _encoder(**options: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(16), enable_nested_tensor=False)


def _hf(kind: str, config: str, **options: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    return getattr(transformers, kind)(getattr(transformers, config)(**options))


def _first(output: Any) -> Tensor:
    """The logits or hidden states of whatever a model returns."""
    if isinstance(output, Tensor):
        return output
    return output.logits if "logits" in output else output.last_hidden_state


Case = tuple[Callable[[], nn.Module], dict[str, Tensor]]
_ENCODED = {"src": ROWS, "src_key_padding_mask": PAD}
_TOKENS = {"input_ids": IDS, "attention_mask": (~PAD).long()}
LAYER: dict[str, Case] = {
    "torch-post": (lambda: _encoder(), _ENCODED),
    "torch-pre": (lambda: _encoder(norm_first=True, activation="gelu"), _ENCODED),
    "torch-no-bias": (lambda: _encoder(bias=False), _ENCODED),
    "torch-seq2seq": (
        lambda: nn.Transformer(16, 2, 1, 2, 24, batch_first=True),
        {"src": ROWS, "tgt": ROWS[:, :4], "src_key_padding_mask": PAD},
    ),
    "conv": (ConvNet, {"x": IMAGE}),
    "bert": (lambda: _hf("BertForMaskedLM", "BertConfig", **TEXT), _TOKENS),
    "albert": (  # one layer's weights for all
        lambda: _hf("AlbertForMaskedLM", "AlbertConfig", **TEXT, embedding_size=12),
        _TOKENS,
    ),
    "gpt2": (
        lambda: _hf(
            *("GPT2LMHeadModel", "GPT2Config"),
            **{"vocab_size": 29, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2},
        ),
        _TOKENS,
    ),
    "vit": (
        lambda: _hf(
            *("ViTForImageClassification", "ViTConfig"),
            **SIZES | {"intermediate_size": 24, "image_size": 16, "patch_size": 8},
        ),
        {"pixel_values": IMAGE},
    ),
    "whisper": (
        lambda: _hf(
            *("WhisperForConditionalGeneration", "WhisperConfig"),
            **{"vocab_size": 29, "num_mel_bins": 4, "d_model": 16, "max_source_positions": 6},
            **{"encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 20},
            **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 20},
            **{"max_target_positions": 16, "pad_token_id": 0, "decoder_start_token_id": 1},
        ),
        {"input_features": SPEECH, "decoder_input_ids": IDS},
    ),
}
# LayerNorm classes of their own, which compute in another order than torch's kernel in places.
LAYER_CLOSE: dict[str, Case] = {
    "convnext": (
        lambda: _hf(
            *("ConvNextForImageClassification", "ConvNextConfig"),
            **{"hidden_sizes": [8, 12], "depths": [1, 1], "num_stages": 2, "patch_size": 2},
        ),
        {"pixel_values": IMAGE},
    ),
    "cohere": (
        lambda: _hf("CohereForCausalLM", "CohereConfig", **TEXT, num_key_value_heads=1),
        _TOKENS,
    ),
}
KV = {"num_key_value_heads": 2}
_T5 = {"vocab_size": 29, "d_model": 16, "d_kv": 8, "num_heads": 2, "num_layers": 2, "d_ff": 24}
RMS: dict[str, Case] = {
    "llama": (lambda: _hf("LlamaForCausalLM", "LlamaConfig", **TEXT), _TOKENS),
    "qwen3": (  # norms of queries and keys, whose rows are heads
        lambda: _hf("Qwen3ForCausalLM", "Qwen3Config", **TEXT, **KV, head_dim=8),
        _TOKENS,
    ),
    "olmo2": (lambda: _hf("Olmo2ForCausalLM", "Olmo2Config", **TEXT), _TOKENS),
    "gemma": (
        lambda: _hf("GemmaForCausalLM", "GemmaConfig", **TEXT, head_dim=8, num_key_value_heads=1),
        _TOKENS,
    ),
    "gemma3": (
        lambda: _hf("Gemma3ForCausalLM", "Gemma3TextConfig", **TEXT, **KV, head_dim=8),
        _TOKENS,
    ),
    "t5": (
        lambda: _hf("T5ForConditionalGeneration", "T5Config", **_T5),
        {"input_ids": IDS, "decoder_input_ids": IDS[:, :4]},
    ),
}


def _scrambled(build: Callable[[], nn.Module]) -> nn.Module:
    """A model in which every gain and bias matters."""
    torch.manual_seed(3)
    model = build()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def _two(case: Case, spec: str, **options: Any) -> tuple[nn.Module, nn.Module, dict[str, Tensor]]:
    """The model as it was, and with its norms replaced."""
    old = _scrambled(case[0])
    new = copy.deepcopy(old)
    report = swap_norms(new, spec, **options)
    assert report.replaced
    assert not report.skipped
    return old, new, case[1]


def _losses(model: nn.Module, inputs: dict[str, Tensor], optimizer: Any) -> list[Tensor]:
    """The losses of twenty steps, dropout and all, then the parameters."""
    torch.manual_seed(11)
    model.train()
    chosen = optimizer([p for p in model.parameters() if p.requires_grad])
    losses = []
    for _ in range(20):
        output = _first(model(**inputs))
        loss = (output - torch.linspace(-1, 1, output.shape[-1])).square().mean()
        chosen.zero_grad()
        loss.backward()
        chosen.step()
        losses.append(loss.detach())
    return [*losses, *(p.detach() for p in model.parameters())]


OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
}


@pytest.mark.usefixtures("default_kernels")
@pytest.mark.parametrize("name", LAYER)
def test_layernorm_for_layernorm_changes_no_bit(name: str) -> None:
    old, new, inputs = _two(LAYER[name], "layernorm")
    assert not any(isinstance(module, nn.LayerNorm) for module in new.modules())
    assert list(new.state_dict()) == list(old.state_dict())
    for mode in (True, False):
        for model in (old, new):
            model.train(mode)
        torch.manual_seed(1)
        before = _first(old(**inputs))
        torch.manual_seed(1)
        assert torch.equal(_first(new(**inputs)), before)
    kind = "sgd" if len(name) % 2 else "adamw"
    before, after = (_losses(model, inputs, OPTIMIZERS[kind]) for model in (old, new))
    assert before[19] < before[0], "nothing was trained"
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.usefixtures("default_kernels")
@pytest.mark.parametrize("name", ["torch-pre", "bert", "vit"])
def test_layernorm_for_layernorm_in_bfloat16_changes_no_bit(name: str) -> None:
    old, new, inputs = _two((lambda: LAYER[name][0]().bfloat16(), LAYER[name][1]), "layernorm")
    inputs = {k: v.bfloat16() if v.is_floating_point() else v for k, v in inputs.items()}
    assert torch.equal(_first(new.eval()(**inputs)), _first(old.eval()(**inputs)))


@pytest.mark.parametrize("name", LAYER_CLOSE)
def test_foreign_layernorm_classes_give_the_same_function(name: str) -> None:
    old, new, inputs = _two(LAYER_CLOSE[name], "layernorm")
    assert any(isinstance(module, LayerNorm) for module in new.modules())
    wanted = _first(old.eval()(**inputs)).detach()
    assert relative_error(_first(new.eval()(**inputs)).detach(), wanted) < 1e-5


@pytest.mark.parametrize("name", RMS)
def test_foreign_rmsnorm_classes_give_the_same_function(name: str) -> None:
    # Close and not equal: these write x * rsqrt(m) in another order than our kernel.
    old, new, inputs = _two(RMS[name], "rmsnorm")
    assert any(isinstance(module, RMSNorm) for module in new.modules())
    wanted = _first(old.eval()(**inputs)).detach()
    assert relative_error(_first(new.eval()(**inputs)).detach(), wanted) < 1e-5
    before, after = (_losses(model, inputs, OPTIMIZERS["sgd"])[:20] for model in (old, new))
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gemma", "t5"])
def test_rmsnorm_classes_in_bfloat16_stay_within_its_digits(name: str) -> None:
    old, new, inputs = _two((lambda: RMS[name][0]().bfloat16(), RMS[name][1]), "rmsnorm")
    wanted = _first(old.eval()(**inputs)).detach()
    found = _first(new.eval()(**inputs)).detach()
    assert found.dtype == wanted.dtype
    assert relative_error(found, wanted) < 0.03


@pytest.mark.parametrize("norm", norm_names())
@pytest.mark.parametrize("name", ["torch-pre", "bert"])
def test_every_norm_runs_in_their_place(name: str, norm: str) -> None:
    _, new, inputs = _two(LAYER[name], norm)
    output = _first(new.train()(**inputs))
    output.square().mean().backward()
    assert output.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in _reached(new))
    if name == "torch-pre":  # where evaluation has a path of its own
        with torch.no_grad():
            torch.testing.assert_close(_dropless(new, inputs), _dropless(new, inputs, train=True))


def _reached(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that take part: BERT's pooler does not."""
    return [p for name, p in model.named_parameters() if "pooler" not in name]


def _dropless(model: nn.Module, inputs: dict[str, Tensor], train: bool = False) -> Tensor:
    """The output without dropout, in the layers' training mode or in eval."""
    model.train(train)
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.MultiheadAttention):
            module.eval()
    return _first(model(**inputs)).masked_fill(PAD[..., None], 0)


def test_mamba_asks_its_norms_for_their_gains_dtype() -> None:
    sizes = {"vocab_size": 29, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    model = _hf("MambaForCausalLM", "MambaConfig", **sizes)
    before = {name: type(module) for name, module in model.named_modules()}
    with pytest.raises(UserError, match=r"MambaBlock reads self\.norm\.weight\.dtype of .*adanorm"):
        swap_norms(model, "adanorm")
    assert {name: type(module) for name, module in model.named_modules()} == before
    report = swap_norms(model, "layernorm")
    assert not report.notes
    assert _first(model(input_ids=IDS)).isfinite().all()
