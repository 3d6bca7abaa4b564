"""Compare logits with `transformers`, of models written for it and models that it saved."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from exchanged import (
    GPT2,
    LLAMA,
    TEXT,
    assert_close,
    bpe,
    our_logits,
    our_model,
    rebuilt,
    scrambled,
    section,
    their_logits,
    tokens,
    written,
)
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from normtrain.data.tokenizers.build import train_text_tokenizer
from normtrain.hf import read_folder, write_folder
from normtrain.hf.tokenizers import OWN

pytestmark = pytest.mark.extended

WRITTEN: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"tie": True, "bias": True, "kv_heads": None}),
    ("llama", {"tie": False, "bias": True, "kv_heads": 2}),
    ("llama", {"tie": True, "bias": False, "kv_heads": 2}),
    ("llama", {"tie": False, "bias": False, "kv_heads": 1}),
    ("llama", {"d_model": 48, "heads": 6, "kv_heads": 3, "layers": 1, "rotary_base": 500.0}),
    ("llama", {"norm": "rmsnorm", "heads": 1, "d_stream": 32, "attention_dropout": 0.25}),
    ("qwen3", {"tie": True, "kv_heads": 2}),
    ("qwen3", {"tie": False, "heads": 2}),
    ("gpt2", {"tie": True, "activation": "gelu-tanh"}),
    ("gpt2", {"tie": False, "activation": "gelu"}),
    ("gpt2", {"tie": True, "activation": "relu"}),
    ("gpt2", {"norm": "layernorm:eps=0.001", "d_ff": 128, "layers": 3, "heads": 8}),
    ("gpt2", {"kv_heads": 4, "d_stream": 32, "dropout": 0.125, "attention_dropout": 0.25}),
]


@pytest.mark.parametrize(("format", "values"), WRITTEN)
def test_written_and_read_back(format: str, values: dict[str, Any], tmp_path: Path) -> None:
    model, notes = written(tmp_path / "made", format, **values)
    assert notes == []
    theirs, loading = AutoModelForCausalLM.from_pretrained(
        tmp_path / "made", output_loading_info=True
    )
    assert not any(loading.values()), loading
    assert theirs.config.model_type == format
    ids = tokens(bpe().vocab_size)
    expected = our_logits(model, ids)
    assert_close(their_logits(theirs, ids), expected)
    pretrained = read_folder(tmp_path / "made")
    assert_close(our_logits(rebuilt(pretrained), ids), expected)
    assert pretrained.model_type == format
    for key, value in values.items():
        if key not in ("d_stream", "kv_heads"):  # null means these values
            assert pretrained.model[key] == value


def test_logits_depend_on_every_weight(tmp_path: Path) -> None:
    """So that the comparison above fails for any one wrong weight."""
    for format in ("llama", "gpt2"):
        written(tmp_path / format, format, tie=False, bias=True)
        file = tmp_path / format / "model.safetensors"
        weights = load_file(file)
        ids = tokens(bpe().vocab_size)
        expected = our_logits(rebuilt(read_folder(tmp_path / format)), ids)
        for name in weights:
            save_file(weights | {name: weights[name] + 0.1 * weights[name].sign()}, file)
            changed = our_logits(rebuilt(read_folder(tmp_path / format)), ids)
            # A key's bias moves every score of a query alike, which softmax does not see, unless
            # positions are rotary.
            if not name.endswith("k_proj.bias"):
                assert (changed - expected).abs().amax() > 1e-4, name


THEIRS: dict[str, Any] = {
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(
            vocab_size=bpe().vocab_size, hidden_size=32, intermediate_size=40, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=24,
            rope_parameters={"rope_type": "default", "rope_theta": 700.0},
        )
    ),
    "llama with biases": lambda: LlamaForCausalLM(
        LlamaConfig(
            vocab_size=bpe().vocab_size, hidden_size=32, intermediate_size=40, num_hidden_layers=1,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=24,
            attention_bias=True, mlp_bias=True, tie_word_embeddings=True,
        )
    ),
    "qwen3": lambda: Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=bpe().vocab_size, hidden_size=32, intermediate_size=40, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=24,
        )
    ),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=bpe().vocab_size, n_embd=32, n_layer=2, n_head=4, n_positions=24)
    ),
    "gpt2 of another width": lambda: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=bpe().vocab_size, n_embd=32, n_layer=1, n_head=2, n_positions=24, n_inner=20,
            activation_function="gelu_pytorch_tanh", tie_word_embeddings=False, resid_pdrop=0.2,
            embd_pdrop=0.2, attn_pdrop=0.3, layer_norm_epsilon=1e-6,
        )
    ),
}  # fmt: skip


def saved(folder: Path, model: Any, **options: Any) -> Any:
    """Save a model of `transformers` with its tokenizer."""
    scrambled(model)
    model.save_pretrained(folder, **options)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer_object(), eos_token="<|endoftext|>", bos_token="<|endoftext|>"
    ).save_pretrained(folder)
    return model


def tokenizer_object() -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(bpe().to_json())


@pytest.mark.parametrize("kind", THEIRS)
def test_models_saved_by_transformers_are_read(kind: str, tmp_path: Path) -> None:
    model = saved(tmp_path, THEIRS[kind]())
    ids = tokens(bpe().vocab_size)
    pretrained = read_folder(tmp_path)
    assert_close(our_logits(rebuilt(pretrained), ids), their_logits(model, ids))
    assert pretrained.model_type == model.config.model_type
    assert pretrained.tokenizer.encode(TEXT) == bpe().encode(TEXT)
    assert len(pretrained.sha256) == 64
    dropouts = {"gpt2": (0.1, 0.1), "gpt2 of another width": (0.2, 0.3)}
    found = pretrained.model
    if kind in dropouts:
        assert (found["dropout"], found["attention_dropout"]) == dropouts[kind]
    else:
        assert "dropout" not in found


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_shards(kind: str, tmp_path: Path) -> None:
    model = saved(tmp_path, THEIRS[kind](), max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    ids = tokens(bpe().vocab_size)
    pretrained = read_folder(tmp_path)
    assert_close(our_logits(rebuilt(pretrained), ids), their_logits(model, ids))
    again = read_folder(tmp_path)
    assert again.sha256 == pretrained.sha256


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_becomes_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    model = THEIRS["llama"]().to(dtype)
    saved(tmp_path, model)
    pretrained = read_folder(tmp_path)
    assert {weight.dtype for weight in pretrained.weights.values()} == {torch.float32}
    name = str(dtype).removeprefix("torch.")
    assert pretrained.notes == (f"weights were converted from {name} to float32",)
    ids = tokens(bpe().vocab_size)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert_close(our_logits(rebuilt(pretrained), ids), their_logits(theirs, ids))


def test_a_bfloat16_model_is_written_in_bfloat16(tmp_path: Path) -> None:
    settings = section(**LLAMA)
    model = our_model(settings).to(torch.bfloat16)
    write_folder(tmp_path / "made", "llama", settings, model.state_dict(), bpe())
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "made", dtype="auto")
    assert theirs.dtype == torch.bfloat16


def test_gpt2_without_its_output_layer_and_with_old_masks(tmp_path: Path) -> None:
    """Checkpoints of 2019 have no prefix, and the causal mask among the weights."""
    model = saved(tmp_path, THEIRS["gpt2"]())
    file = tmp_path / "model.safetensors"
    weights = {name.removeprefix("transformer."): w for name, w in load_file(file).items()}
    for i in range(2):
        weights[f"h.{i}.attn.bias"] = torch.ones(1, 1, 24, 24, dtype=torch.uint8).tril()
        weights[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(weights, file)
    ids = tokens(bpe().vocab_size)
    assert isinstance(model.transformer, GPT2Model)
    assert_close(our_logits(rebuilt(read_folder(tmp_path)), ids), their_logits(model, ids))


def test_a_tied_matrix_may_be_there_twice(tmp_path: Path) -> None:
    model, _ = written(tmp_path / "made", "llama", tie=True)
    file = tmp_path / "made" / "model.safetensors"
    weights = load_file(file)
    save_file(weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}, file)
    ids = tokens(bpe().vocab_size)
    assert_close(our_logits(rebuilt(read_folder(tmp_path / "made")), ids), our_logits(model, ids))


def test_embedding_rows_without_a_token_are_dropped(tmp_path: Path) -> None:
    size = bpe().vocab_size
    config = THEIRS["gpt2"]().config
    config.vocab_size = size + 14
    model = saved(tmp_path, GPT2LMHeadModel(config))
    pretrained = read_folder(tmp_path)
    assert pretrained.notes == (f"dropped 14 of {size + 14} embedding rows, which have no token",)
    ids = tokens(size)
    assert_close(our_logits(rebuilt(pretrained), ids), their_logits(model, ids)[..., :size])


@pytest.mark.parametrize("format", ["llama", "qwen3", "gpt2"])
def test_the_tokenizer_gives_the_same_ids(format: str, tmp_path: Path) -> None:
    written(tmp_path / "made", format)
    text = f"{TEXT}  Ünïcode, tabs\t and \r\n lines 🙂"
    expected = bpe().encode(text)
    for read in (AutoTokenizer, PreTrainedTokenizerFast):
        theirs = read.from_pretrained(tmp_path / "made")
        assert theirs(text).input_ids == expected
        assert theirs.decode(expected) == text
        assert theirs.eos_token_id == theirs.bos_token_id == bpe().eos
        assert theirs.model_max_length == 24
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "made")
    assert model.generation_config.eos_token_id == bpe().eos
    assert read_folder(tmp_path / "made").tokenizer.to_json() == bpe().to_json()


@pytest.mark.parametrize("kind", ["word", "char", "byte"])
def test_a_tokenizer_of_our_own(kind: str, tmp_path: Path) -> None:
    tokenizer = train_text_tokenizer(kind, [TEXT], None)
    settings = section(**GPT2)
    model = our_model(settings, tokenizer.vocab_size)
    notes = write_folder(tmp_path / "made", "gpt2", settings, model.state_dict(), tokenizer)
    assert notes == [
        f"the {kind} tokenizer is in {OWN}, which normtrain reads and transformers does not"
    ]
    assert not (tmp_path / "made" / "tokenizer.json").exists()
    pretrained = read_folder(tmp_path / "made")
    assert pretrained.tokenizer.encode(TEXT) == tokenizer.encode(TEXT)
    ids = tokens(tokenizer.vocab_size)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "made")
    assert_close(their_logits(theirs, ids), our_logits(model, ids))
    assert_close(our_logits(rebuilt(pretrained), ids), our_logits(model, ids))


def test_another_end_of_text(tmp_path: Path) -> None:
    """Such as Llama's ``</s>``: reading and writing keeps it."""
    model = THEIRS["llama"]()
    rules = json.loads(bpe().to_json())
    for token in rules["added_tokens"]:
        token["content"] = "</s>"
    rules["model"]["vocab"]["</s>"] = rules["model"]["vocab"].pop("<|endoftext|>")
    saved(tmp_path / "one", model)
    (tmp_path / "one" / "tokenizer.json").write_text(json.dumps(rules), encoding="utf-8")
    config = json.loads((tmp_path / "one" / "tokenizer_config.json").read_text(encoding="utf-8"))
    config |= {"eos_token": "</s>", "bos_token": "</s>"}
    (tmp_path / "one" / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    first = read_folder(tmp_path / "one")
    settings = section(**first.model)
    write_folder(tmp_path / "two", "llama", settings, first.weights, first.tokenizer)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "two")
    assert theirs.eos_token == "</s>"
    assert theirs("the cat", add_special_tokens=False).input_ids == bpe().encode("the cat")
    assert read_folder(tmp_path / "two").tokenizer.to_json() == first.tokenizer.to_json()


def test_training_settings_that_are_lost_are_reported(tmp_path: Path) -> None:
    _, notes = written(tmp_path / "one", "llama", dropout=0.1, activation_dropout=0.2)
    assert notes == [
        "not in the format, since only training uses it: model.activation_dropout (0.2), "
        "model.dropout (0.1)"
    ]
    _, notes = written(tmp_path / "two", "gpt2", dropout=0.1)
    assert notes == []
