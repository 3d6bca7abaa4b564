"""Hugging Face's GPT-2 format (Radford et al. 2019).

Pre-norm LayerNorm, learned positions, biases everywhere but in the output matrix. Its linear
layers (``Conv1D``) store matrices as ``(in, out)``; they are transposed here.
"""

from __future__ import annotations

from typing import Any

from normtrain.hf.model_config import PLAIN, Config
from normtrain.hf.refusal import common_eps, require, require_plain
from normtrain.hf.slots import Slot, slot
from normtrain.models.config import CausalLMConfig
from normtrain.norms import NormSpec

IGNORED = ("*.attn.bias", "*.attn.masked_bias")
"""The causal mask, which old files store."""
VOCAB_SIZE = 50257

_FORM = "GPT-2"
_ACTIVATIONS = {"gelu-tanh": "gelu_new", "gelu": "gelu", "relu": "relu"}
# gelu_pytorch_tanh is torch's name for the formula of gelu_new.
_THEIRS = {"gelu_new": "gelu-tanh", "gelu_pytorch_tanh": "gelu-tanh", "gelu": "gelu",
           "relu": "relu"}  # fmt: skip


def to_config(section: CausalLMConfig, model_type: str) -> dict[str, Any]:
    """Return the ``config.json`` of a model, without its vocabulary.

    Args:
        section: config of the model.
        model_type: ``"gpt2"``.

    Raises:
        UserError: the format has no such model; the message names the key.
    """
    require_plain(_FORM, section)
    require(_FORM, section, positions="learned", qk_norm="none", bias=True)
    require(_FORM, section, activation=tuple(_ACTIVATIONS), kv_heads=(None, section.heads))
    eps = common_eps(_FORM, section, "layernorm", bias=True, eps_mode="inside")
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": model_type,
        "n_embd": section.d_model,
        "n_inner": section.d_ff,
        "n_layer": section.layers,
        "n_head": section.heads,
        "n_positions": section.max_positions,
        "n_ctx": section.max_positions,
        "activation_function": _ACTIVATIONS[section.activation],
        "layer_norm_epsilon": eps,
        "resid_pdrop": section.dropout,
        "embd_pdrop": section.dropout,
        "attn_pdrop": section.attention_dropout,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "tie_word_embeddings": section.tie,
        "use_cache": True,
    }


def from_config(config: Config) -> dict[str, Any]:
    """Return the values of the recipe's model section that a ``config.json`` describes.

    Raises:
        UserError: a key is missing, wrong, or asks for something unsupported.
    """
    d_model, heads = config.whole("n_embd", 768), config.whole("n_head", 12)
    if d_model % heads:
        raise config.wrong("n_head", f"a divisor of n_embd, {d_model}")
    config.only("scale_attn_weights", True)
    config.only("scale_attn_by_inverse_layer_idx", False)
    config.only("add_cross_attention", False)
    config.only("activation_function", *_THEIRS)
    dropout = config.fraction("resid_pdrop", 0.1)
    config.only("embd_pdrop", dropout)  # normtrain has one key for both
    return {
        "norm": str(NormSpec("layernorm", {"eps": config.number("layer_norm_epsilon", 1e-5)})),
        **PLAIN,
        "qk_norm": "none",
        "d_model": d_model,
        "heads": heads,
        "kv_heads": None,
        "layers": config.whole("n_layer", 12),
        "d_ff": config.whole("n_inner", 4 * d_model),
        "activation": _THEIRS[config.values.get("activation_function", "gelu_new")],
        "dropout": dropout,
        "attention_dropout": config.fraction("attn_pdrop", 0.1),
        "activation_dropout": 0.0,
        "positions": "learned",
        "rotary_base": 10000.0,
        "max_positions": config.whole("n_positions", 1024),
        "bias": True,
        "tie": config.flag("tie_word_embeddings", True),
    }


def slots(section: CausalLMConfig, vocab_size: int) -> list[Slot]:
    """List where each weight is in the format."""
    d, ff = section.d_model, section.d_ff
    table = [
        slot("embedding.weight", "transformer.wte.weight", vocab_size, d),
        slot("positions.weight", "transformer.wpe.weight", section.max_positions, d),
    ]
    if not section.tie:
        table.append(slot("head.weight", "lm_head.weight", vocab_size, d))
    norms = {"decoder.norm": "transformer.ln_f"}
    linears: dict[str, tuple[str, int, int]] = {}
    for i in range(section.layers):
        our, their = f"decoder.layers.{i}", f"transformer.h.{i}"
        norms[f"{our}.attention_residual.norm"] = f"{their}.ln_1"
        norms[f"{our}.feed_forward_residual.norm"] = f"{their}.ln_2"
        linears |= {
            f"{our}.attention.query_key_value": (f"{their}.attn.c_attn", d, 3 * d),
            f"{our}.attention.output": (f"{their}.attn.c_proj", d, d),
            f"{our}.feed_forward.inner": (f"{their}.mlp.c_fc", d, ff),
            f"{our}.feed_forward.outer": (f"{their}.mlp.c_proj", ff, d),
        }
    for ours, theirs in norms.items():
        table += [slot(f"{ours}.{kind}", f"{theirs}.{kind}", d) for kind in ("weight", "bias")]
    for ours, (theirs, inputs, outputs) in linears.items():
        table.append(slot(f"{ours}.weight", f"{theirs}.weight", inputs, outputs, transposed=True))
        table.append(slot(f"{ours}.bias", f"{theirs}.bias", outputs))
    return table
