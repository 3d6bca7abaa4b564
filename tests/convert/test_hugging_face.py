"""Exact conversions of Hugging Face's Pre-LN models, built small and random: no download."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scrambled import relative_error, scramble
from torch import Tensor, nn

from normtrain.convert import streams_of, to_crmsnorm, to_layernorm, to_rmsnorm
from normtrain.errors import UserError

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

GPT2 = {"vocab_size": 29, "n_positions": 16, "n_embd": 12, "n_layer": 2, "n_head": 2}
OPT = {
    "vocab_size": 29,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "ffn_dim": 20,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "word_embed_proj_dim": 12,
}
NEOX = {
    "vocab_size": 29,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
}
VIT = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "image_size": 8,
    "patch_size": 4,
    "num_labels": 5,
}
WHISPER = {
    "vocab_size": 29,
    "num_mel_bins": 4,
    "d_model": 12,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 20,
    "max_source_positions": 6,
    "max_target_positions": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}


def _ids(rows: int = 2, time: int = 6) -> Tensor:
    return torch.randint(3, 29, (rows, time), generator=torch.Generator().manual_seed(2))


def _noise(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _build(kind: str, config: str, **options: Any) -> nn.Module:
    return getattr(transformers, kind)(getattr(transformers, config)(**options))


def _tokens(model: nn.Module) -> dict[str, Tensor]:
    return {"input_ids": _ids()}


def _image(model: nn.Module) -> dict[str, Tensor]:
    return {"pixel_values": _noise(2, 3, 8, 8).to(model.dtype)}


def _speech(model: nn.Module) -> dict[str, Tensor]:
    return {"input_features": _noise(2, 4, 12).to(model.dtype), "decoder_input_ids": _ids()}


def _crossing(model: nn.Module) -> dict[str, Tensor]:
    return {"input_ids": _ids(), "encoder_hidden_states": _noise(2, 4, 12).to(model.dtype)}


Case = tuple[Callable[[], nn.Module], Callable[[nn.Module], dict[str, Tensor]]]
MODELS: dict[str, Case] = {
    "gpt2": (lambda: _build("GPT2LMHeadModel", "GPT2Config", **GPT2), _tokens),
    "gpt2-untied": (
        lambda: _build("GPT2LMHeadModel", "GPT2Config", **GPT2, tie_word_embeddings=False),
        _tokens,
    ),
    "gpt2-crossing": (
        lambda: _build("GPT2LMHeadModel", "GPT2Config", **GPT2, add_cross_attention=True),
        _crossing,
    ),
    "gpt2-classifier": (
        lambda: _build("GPT2ForTokenClassification", "GPT2Config", **GPT2, num_labels=3),
        _tokens,
    ),
    "opt": (lambda: _build("OPTForCausalLM", "OPTConfig", **OPT), _tokens),
    "opt-projected": (
        lambda: _build("OPTForCausalLM", "OPTConfig", **OPT | {"word_embed_proj_dim": 8}),
        _tokens,
    ),
    "opt-no-gain": (
        lambda: _build("OPTForCausalLM", "OPTConfig", **OPT, layer_norm_elementwise_affine=False),
        _tokens,
    ),
    "gpt-neox": (lambda: _build("GPTNeoXForCausalLM", "GPTNeoXConfig", **NEOX), _tokens),
    "gpt-neox-sequential": (
        lambda: _build("GPTNeoXForCausalLM", "GPTNeoXConfig", **NEOX, use_parallel_residual=False),
        _tokens,
    ),
    "vit": (lambda: _build("ViTForImageClassification", "ViTConfig", **VIT), _image),
    "whisper": (
        lambda: _build("WhisperForConditionalGeneration", "WhisperConfig", **WHISPER),
        _speech,
    ),
}
HEADLESS: dict[str, Case] = {
    "gpt2": (lambda: _build("GPT2Model", "GPT2Config", **GPT2), _tokens),
    "opt": (lambda: _build("OPTModel", "OPTConfig", **OPT), _tokens),
    "gpt-neox": (lambda: _build("GPTNeoXModel", "GPTNeoXConfig", **NEOX), _tokens),
    "vit": (lambda: _build("ViTModel", "ViTConfig", **VIT), _image),
    "vit-masked": (
        lambda: _build("ViTForMaskedImageModeling", "ViTConfig", **VIT, encoder_stride=4),
        lambda model: {**_image(model), "bool_masked_pos": torch.eye(4)[:2].bool()},
    ),
    "whisper": (lambda: _build("WhisperModel", "WhisperConfig", **WHISPER), _speech),
}
CONVERSIONS = {"rmsnorm": to_rmsnorm, "crmsnorm": to_crmsnorm}


@torch.no_grad()
def run(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    result = model(**inputs)
    found = result.get("logits", result.get("reconstruction"))
    return result.last_hidden_state if found is None else found


def built(case: Case, dtype: torch.dtype) -> tuple[nn.Module, dict[str, Tensor], Tensor]:
    torch.manual_seed(0)
    make, inputs = case
    model = scramble(make()).to(dtype)
    fed = inputs(model)
    return model, fed, run(model, fed)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("to", CONVERSIONS)
@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_those_of_the_original(
    name: str, to: str, dtype: torch.dtype, limit: float
) -> None:
    model, fed, expected = built(MODELS[name], dtype)
    count = sum(isinstance(m, nn.LayerNorm) for m in model.modules())
    report = CONVERSIONS[to](model)
    assert relative_error(run(model, fed), expected) <= limit
    assert len(report.replaced) == count
    assert not any(isinstance(m, nn.LayerNorm) for m in model.modules())


@pytest.mark.parametrize("name", HEADLESS)
def test_models_without_a_head(name: str) -> None:
    model, fed, expected = built(HEADLESS[name], torch.float64)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(UserError, match="leaves the model"):
        to_crmsnorm(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    to_rmsnorm(model)
    assert relative_error(run(model, fed), expected) <= 1e-10


@pytest.mark.parametrize("name", MODELS)
def test_back_to_layernorm_and_narrower_from_rmsnorm(name: str) -> None:
    model, fed, expected = built(MODELS[name], torch.float64)
    kinds = [type(m) for m in model.modules()]
    to_rmsnorm(model)
    narrow = copy.deepcopy(model)
    to_layernorm(model)
    assert relative_error(run(model, fed), expected) <= 1e-10
    assert [type(m) for m in model.modules()] == kinds
    assert not any(m._forward_pre_hooks for m in model.modules())
    to_crmsnorm(narrow)
    assert relative_error(run(narrow, fed), expected) <= 1e-10


@pytest.mark.parametrize("to", CONVERSIONS)
@pytest.mark.parametrize("name", MODELS)
def test_a_fresh_model_converted_takes_the_state_dict(name: str, to: str) -> None:
    """How a converted model is kept: convert a new one of the same configuration, then load."""
    model, fed, expected = built(MODELS[name], torch.float64)
    CONVERSIONS[to](model)
    fresh = MODELS[name][0]().double().eval()
    CONVERSIONS[to](fresh)
    fresh.load_state_dict(model.state_dict())
    assert relative_error(run(fresh, fed), expected) <= 1e-10


def test_tied_embeddings_stay_tied_for_rmsnorm() -> None:
    model, fed, expected = built(MODELS["gpt2"], torch.float64)
    weight = model.lm_head.weight
    report = to_rmsnorm(model)
    assert model.transformer.wte.weight is weight is model.lm_head.weight
    assert model.config.tie_word_embeddings
    assert any("transformer.wte is tied" in note for note in report.notes)
    to_crmsnorm(model)
    assert not model.config.tie_word_embeddings
    assert model.lm_head.weight is not model.transformer.wte.weight
    assert relative_error(run(model, fed), expected) <= 1e-10


@pytest.mark.parametrize("to", CONVERSIONS)
@pytest.mark.parametrize("name", ["gpt2", "opt", "gpt-neox", "whisper"])
def test_generation_is_unchanged(name: str, to: str) -> None:
    """Greedy decoding goes through the caches of keys and values."""
    model, fed, _ = built(MODELS[name], torch.float64)
    fed = {k: v for k, v in fed.items() if k != "decoder_input_ids"}
    options = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0}
    expected = model.generate(**fed, **options)
    CONVERSIONS[to](model)
    assert torch.equal(model.generate(**fed, **options), expected)


@pytest.mark.parametrize("to", CONVERSIONS)
@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (
            lambda: _build("OPTForCausalLM", "OPTConfig", **OPT, do_layer_norm_before=False),
            "model.decoder.layers.0.self_attn_layer_norm is post-norm",
        ),
        (
            lambda: _build("OPTForCausalLM", "OPTConfig", **OPT, _remove_final_layer_norm=True),
            "model.decoder.final_layer_norm is missing",
        ),
        (
            lambda: _build(
                "WhisperForAudioClassification",
                "WhisperConfig",
                **WHISPER,
                use_weighted_layer_sum=True,
            ),
            "not known to read its streams through norms alone",
        ),
        (
            lambda: _build(
                "BertModel", "BertConfig", **{k: v for k, v in NEOX.items() if k != "rotary_pct"}
            ),
            "streams of a BertModel are not known",
        ),
    ],
)
def test_what_is_not_exact_is_refused(build: Callable[[], nn.Module], reason: str, to: str) -> None:
    with pytest.raises(UserError) as failure:
        CONVERSIONS[to](build())
    assert reason in str(failure.value)


@pytest.mark.parametrize("kind", ["GPT2Block", "ViTEmbeddings", "OPTDecoder"])
def test_a_part_of_a_model_is_refused(kind: str) -> None:
    case = {"GPT2Block": "gpt2", "ViTEmbeddings": "vit", "OPTDecoder": "opt"}[kind]
    model = MODELS[case][0]()
    part = next(m for m in model.modules() if type(m).__name__ == kind)
    with pytest.raises(UserError, match=f"a {kind} is a part of a model"):
        to_rmsnorm(part)


def test_a_head_that_reads_features_itself_is_not_narrowed() -> None:
    model = _build("GPT2DoubleHeadsModel", "GPT2Config", **GPT2, summary_use_proj=False)
    with pytest.raises(UserError, match="leaves the model"):
        to_crmsnorm(model)
    assert to_rmsnorm(model).replaced


def test_ties_that_stay_are_not_called_untied() -> None:
    model = _build("OPTForCausalLM", "OPTConfig", **OPT | {"word_embed_proj_dim": 8})
    report = to_crmsnorm(model)
    assert model.config.tie_word_embeddings
    assert model.lm_head.weight is model.model.decoder.embed_tokens.weight
    assert "no longer tied" not in str(report)


def test_saved_and_read_again(tmp_path: Path) -> None:
    """RMSNorm keeps all shapes, so the library's own saving works; the norms are put in again."""
    model, fed, expected = built(MODELS["gpt2"], torch.float64)
    to_rmsnorm(model)
    model.save_pretrained(tmp_path)
    again = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, dtype=torch.float64).eval()
    to_rmsnorm(again)
    assert relative_error(run(again, fed), expected) <= 1e-10


def test_the_streams_are_all_there_is() -> None:
    """Every LayerNorm of the models is on a stream."""
    for make, _ in MODELS.values():
        model = make()
        norms = {n for n, m in model.named_modules() if isinstance(m, nn.LayerNorm)}
        assert norms == {name for stream in streams_of(model) for name in stream.norms}
