"""Round trips of folders, and errors for what cannot be written or read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exchanged import (
    MODELS,
    bpe,
    our_model,
    section,
    written,
)
from safetensors.torch import load_file, save_file

from normtrain.errors import RunError, UserError
from normtrain.files import write_folder as write_whole
from normtrain.hf import load_into, read_folder, write_folder
from normtrain.models import build_model

UNWRITABLE: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"norm": "layernorm"}, "model.norm is layernorm (at decoder.layers.0.attention"),
    ("llama", {"norm": "rmsnorm:bias=true"}, "model.norm is rmsnorm:bias=true"),
    ("llama", {"norm": "rmsnorm:eps_mode=outside"}, "model.norm is rmsnorm:eps_mode=outside"),
    ("llama", {"norm_rules": (("decoder.norm", "layernorm"),)}, "layernorm (at decoder.norm)"),
    ("llama", {"norm_rules": (("decoder.norm", "rmsnorm:eps=0.1"),)}, "one eps, not 0.1"),
    ("llama", {"placement": "post"}, "model.placement is post"),
    ("llama", {"positions": "learned"}, "model.positions is learned, but Llama's format"),
    ("llama", {"activation": "gelu"}, "has only swiglu"),
    ("llama", {"qk_norm": "rmsnorm"}, "--format qwen3"),
    ("llama", {"embedding_norm": "rmsnorm"}, "model.embedding_norm is rmsnorm"),
    ("llama", {"zero_mean": "embeddings"}, "model.zero_mean is embeddings"),
    ("llama", {"d_stream": 31}, "model.d_stream is 31, but Llama's format has only null or 32"),
    ("llama", {"head_bias": True}, "model.head_bias is true"),
    ("qwen3", {"bias": True}, "no bias in feed-forward layers"),
    ("qwen3", {"qk_norm": "none"}, "model.qk_norm is none, but Qwen3's format has only rmsnorm"),
    ("qwen3", {"qk_norm": "rmsnorm:eps=0.1"}, "the eps of the other norms there, 1e-06"),
    ("gpt2", {"norm": "rmsnorm"}, "only layernorm:bias=true,eps_mode=inside"),
    ("gpt2", {"norm": "layernorm:bias=false"}, "model.norm is layernorm:bias=false"),
    ("gpt2", {"positions": "rotary"}, "model.positions is rotary, but GPT-2's format"),
    ("gpt2", {"activation": "swiglu"}, "has only gelu-tanh or gelu or relu"),
    ("gpt2", {"bias": False}, "model.bias is false, but GPT-2's format has only true"),
    ("gpt2", {"kv_heads": 2}, "model.kv_heads is 2"),
    ("gpt2", {"qk_norm": "layernorm"}, "model.qk_norm is layernorm"),
    ("gpt2", {"head_bias": True}, "model.head_bias is true"),
]


@pytest.mark.parametrize(("format", "values", "said"), UNWRITABLE)
def test_a_model_that_a_format_does_not_have_is_refused(
    format: str, values: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as refused:
        written(tmp_path / "made", format, **values)
    assert said in str(refused.value)
    assert "'normtrain export' without --format" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    settings = section(**MODELS["llama"])
    with pytest.raises(UserError, match="did you mean llama"):
        write_folder(tmp_path, "lama", settings, our_model(settings).state_dict(), bpe())


LAYERS = {"layers": 1}
CONFIGS: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"model_type": "mistral"}, 'model_type is "mistral"; it must be one of llama'),
    ("llama", {"model_type": ["llama"]}, "model_type is ["),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling is {"),
    ("llama", {"rope_parameters": {"rope_type": "llama3"}}, "rope_parameters is {"),
    ("llama", {"rope_parameters": "default"}, "rope_parameters is"),
    ("llama", {"rope_theta": -1.0, "rope_parameters": None}, "rope_theta is -1.0"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ("llama", {"sliding_window": 8}, "sliding_window is 8; it must be null"),
    ("llama", {"layer_types": ["sliding_attention"]}, "layer_types is"),
    ("llama", {"attention_bias": True}, "attention_bias is true; it must be false"),
    ("llama", {"mlp_bias": True}, "attention_bias is false; it must be true"),
    ("llama", {"hidden_act": "gelu"}, 'hidden_act is "gelu"; it must be "silu"'),
    ("llama", {"head_dim": 16}, "head_dim is 16"),
    ("llama", {"num_key_value_heads": 3}, "num_key_value_heads is 3"),
    ("llama", {"num_attention_heads": 0}, "num_attention_heads is 0; it must be an integer >= 1"),
    ("llama", {"hidden_size": "32"}, 'hidden_size is "32"; it must be an integer >= 1'),
    ("llama", {"hidden_size": None}, "hidden_size is missing"),
    ("llama", {"rms_norm_eps": "small"}, "rms_norm_eps is"),
    ("llama", {"attention_dropout": 1.5}, "attention_dropout is 1.5"),
    ("llama", {"tie_word_embeddings": "no"}, "tie_word_embeddings is"),
    ("llama", {"vocab_size": 100}, "must have shape"),
    ("llama", {"intermediate_size": 41}, "must have shape (41, 32)"),
    ("llama", {"num_hidden_layers": 2}, "weight model.layers.1."),
    ("llama", {"tie_word_embeddings": False}, "weight lm_head.weight not found"),
    ("llama", {"quantization_config": {"bits": 4}}, "quantization_config asks for quantized"),
    ("llama", {"auto_map": {"AutoModel": "x.Y"}}, "auto_map asks for code to run"),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 4}, "sliding_window is 4"),
    ("qwen3", {"attention_bias": True}, "attention_bias is true"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is true"),
    ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights is false"),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention is true"),
    ("gpt2", {"activation_function": "quick_gelu"}, "activation_function is"),
    ("gpt2", {"embd_pdrop": 0.5}, "embd_pdrop is 0.5; it must be 0.0"),
    ("gpt2", {"n_head": 5}, "n_head is 5; it must be a divisor of n_embd, 32"),
    ("gpt2", {"n_positions": 12}, "transformer.wpe.weight must have shape (12, 32)"),
    ("gpt2", {"n_layer": 0}, "n_layer is 0"),
]


@pytest.mark.parametrize(("format", "changes", "said"), CONFIGS)
def test_unsupported_config_values_are_refused(
    format: str, changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    folder = tmp_path / "made"
    written(folder, format, **LAYERS)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")
    assert_refused(folder, said)


def assert_refused(folder: Path, said: str) -> None:
    with pytest.raises(UserError) as refused:
        read_folder(folder)
    assert said in str(refused.value)
    assert str(folder) in str(refused.value)
    assert "\n" not in str(refused.value)


Tensors = dict[str, torch.Tensor]
WEIGHTS: list[tuple[Tensors, str]] = [
    ({"score.weight": torch.ones(2, 32)}, "unexpected weight score.weight"),
    ({"lm_head.weight": torch.ones(3, 32)}, "unexpected weight lm_head.weight"),
    ({"model.norm.weight": torch.ones(31)}, "model.norm.weight must have shape (32,)"),
    ({"model.norm.weight": torch.ones(32, dtype=torch.int8)}, "got int8; quantized weights"),
]


@pytest.mark.parametrize(("changes", "said"), WEIGHTS)
def test_wrong_weights_are_refused(changes: Tensors, said: str, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    written(folder, "llama", **LAYERS)
    file = folder / "model.safetensors"
    save_file(load_file(file) | changes, file)
    assert_refused(folder, said)


def _write(name: str, content: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(content)


def _remove(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).unlink()


def _index(content: Any) -> Callable[[Path], Any]:
    return _write("model.safetensors.index.json", json.dumps(content).encode())


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


DAMAGE: list[tuple[Callable[[Path], Any], str]] = [
    (_write("config.json", b"{"), "config.json is not JSON"),
    (_write("config.json", b"[1]"), "config.json is not a JSON object"),
    (_write("config.json", b"[" * 100_000), "config.json is not JSON"),
    (_remove("config.json"), "config.json not found"),
    (_remove("model.safetensors"), "model.safetensors not found"),
    (_write("model.safetensors", b"junk"), "is truncated or not a safetensors file"),
    (_pickled, "pytorch_model.bin, which can run code when it is loaded"),
    (_index([]), "is not an index"),
    (_index({"weight_map": {}}), "names no weights"),
    (_index({"weight_map": {"a": "gone.safetensors"}}), "shard gone.safetensors"),
    (
        _index({"weight_map": {"a": "../x.safetensors"}}),
        "must name safetensors files of this folder",
    ),
    (_remove("tokenizer.json"), "no tokenizer.json"),
    (_write("tokenizer.json", b"{"), "tokenizer.json is not JSON"),
    (_write("tokenizer.json", b'{"kind": "char", "characters": [1]}'), "must be a list of strings"),
    (_write("tokenizer_config.json", b'{"eos_token": 3}'), "eos_token must be a string"),
    (_write("model.safetensors.index.json", b'{"a":' * 100_000), "not an index"),
    (_write("tokenizer.json", b"{}"), "not a tokenizer file"),
]


@pytest.mark.parametrize(("damage", "said"), DAMAGE)
def test_damaged_folders_are_refused(
    damage: Callable[[Path], Any], said: str, tmp_path: Path
) -> None:
    folder = tmp_path / "made"
    written(folder, "llama", **LAYERS)
    damage(folder)
    assert_refused(folder, said)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path / "gone", "not found")


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path: Path) -> None:
    settings = section(**(MODELS["llama"] | LAYERS))
    model = our_model(settings, bpe().vocab_size - 1)
    write_folder(tmp_path / "made", "llama", settings, model.state_dict(), bpe())
    assert_refused(tmp_path / "made", "290 ids, but the embedding has 289 rows")


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("failure", ["disk", "bug", "interrupt"])
def test_an_error_leaves_the_folder_unchanged(there: bool, failure: str, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    if there:
        folder.mkdir()

    def write(temporary: Path) -> None:
        (temporary / "one").write_text("1")
        assert not (folder / "one").exists()
        if failure == "disk":
            raise OSError(28, "No space left on device")
        raise KeyboardInterrupt if failure == "interrupt" else ZeroDivisionError

    kinds = {"disk": RunError, "bug": ZeroDivisionError, "interrupt": KeyboardInterrupt}
    with pytest.raises(kinds[failure]):
        write_whole(folder, write)
    assert folder.exists() == there
    assert list(tmp_path.rglob("*")) == ([folder] if there else [])
    write_whole(folder, lambda temporary: (temporary / "two").write_text("2"))
    assert [path.name for path in folder.iterdir()] == ["two"]
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


@pytest.mark.parametrize(
    ("values", "loaded", "fresh", "dropped"),
    [
        ({"norm": "rmsnorm"}, 14, 0, 3),
        ({"norm": "adanorm"}, 11, 0, 6),
        ({"norm": "dyt"}, 17, 3, 0),
        ({"norm": "scalenorm"}, 11, 3, 6),
        ({"qk_norm": "rmsnorm"}, 17, 2, 0),
        ({"placement": "sandwich"}, 17, 4, 0),
        ({"placement": "post"}, 15, 0, 2),
    ],
)
def test_load_into_a_model_with_other_norms(
    values: dict[str, Any], loaded: int, fresh: int, dropped: int
) -> None:
    source = our_model(section(**(MODELS["gpt2"] | LAYERS)))
    model = build_model(section(**(MODELS["gpt2"] | LAYERS | values)), bpe().vocab_size)
    report = load_into(model, source.state_dict())
    assert (len(report.loaded), len(report.fresh), len(report.dropped)) == (loaded, fresh, dropped)
    state = model.state_dict()
    for name in report.loaded:
        assert torch.equal(state[name], source.state_dict()[name])


def test_load_into_a_model_of_another_size_is_refused() -> None:
    source = our_model(section(**(MODELS["gpt2"] | LAYERS)))
    wide = build_model(section(**(MODELS["gpt2"] | LAYERS | {"d_ff": 99})), bpe().vocab_size)
    deep = build_model(section(**(MODELS["gpt2"] | {"layers": 2})), bpe().vocab_size)
    with pytest.raises(UserError, match=r"inner.weight must have shape \(99, 32\), got \(40, 32\)"):
        load_into(wide, source.state_dict())
    with pytest.raises(UserError, match="not found"):
        load_into(deep, source.state_dict())
    with pytest.raises(UserError, match="unexpected pretrained weight decoder.layers.1"):
        load_into(source, deep.state_dict())
