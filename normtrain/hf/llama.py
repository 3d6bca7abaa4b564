"""Hugging Face's Llama format, and Qwen3's: Llama with norms on queries and keys.

Touvron et al. 2023 (LLaMA): pre-norm RMSNorm, rotary positions, SwiGLU. Both libraries pair rotary
features i and i + d/2, so weights need no permutation. Query, key and value are three matrices in
the format and one matrix here, and so are gate and up projection of SwiGLU.
"""

from __future__ import annotations

from typing import Any

from normtrain.hf.model_config import PLAIN, Config
from normtrain.hf.refusal import common_eps, refusal, require, require_plain, shared_eps
from normtrain.hf.slots import Slot, slot
from normtrain.models.config import CausalLMConfig
from normtrain.norms import NormSpec

IGNORED = ("*.rotary_emb.inv_freq",)
"""Weights of old files that follow from the sizes."""
VOCAB_SIZE = 32000

_CLASSES = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_NAMES = {"llama": "Llama", "qwen3": "Qwen3"}


def to_config(section: CausalLMConfig, model_type: str) -> dict[str, Any]:
    """Return the ``config.json`` of a model, without its vocabulary.

    Args:
        section: config of the model.
        model_type: ``"llama"`` or ``"qwen3"``.

    Raises:
        UserError: the format has no such model; the message names the key.
    """
    form = _NAMES[model_type]
    require_plain(form, section)
    require(form, section, positions="rotary", activation="swiglu")
    eps = common_eps(form, section, "rmsnorm", bias=False, eps_mode="inside")
    _check_query_norm(section, model_type, eps)
    biases = {"attention_bias": section.bias}
    if model_type == "llama":
        biases["mlp_bias"] = section.bias
    return {
        "architectures": [_CLASSES[model_type]],
        "model_type": model_type,
        "hidden_size": section.d_model,
        "intermediate_size": section.d_ff,
        "num_hidden_layers": section.layers,
        "num_attention_heads": section.heads,
        "num_key_value_heads": section.kv_heads or section.heads,
        "head_dim": section.d_model // section.heads,
        "hidden_act": "silu",
        "max_position_embeddings": section.max_positions,
        "rms_norm_eps": eps,
        # transformers 4 reads rope_theta, transformers 5 rope_parameters.
        "rope_theta": section.rotary_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": section.rotary_base},
        **biases,
        "attention_dropout": section.attention_dropout,
        "tie_word_embeddings": section.tie,
        "use_cache": True,
    }


def _check_query_norm(section: CausalLMConfig, model_type: str, eps: float) -> None:
    spec = NormSpec.parse(section.qk_norm)
    if model_type == "llama":
        if spec.name != "none":
            hint = "; Qwen3's, --format qwen3, has rmsnorm" if spec.name == "rmsnorm" else ""
            raise refusal("Llama", "qk_norm", spec, f"only none{hint}")
        return
    if spec.name != "rmsnorm":
        raise refusal("Qwen3", "qk_norm", spec, "only rmsnorm")
    if section.bias:
        raise refusal("Qwen3", "bias", True, "no bias in feed-forward layers")
    options = {"bias": False, "eps_mode": "inside"}
    own = shared_eps("Qwen3", {"the queries": spec}, "rmsnorm", options)
    if own != eps:
        raise refusal("Qwen3", "qk_norm", spec, f"the eps of the other norms there, {eps:g}")


def from_config(config: Config) -> dict[str, Any]:
    """Return the values of the recipe's model section that a ``config.json`` describes.

    Raises:
        UserError: a key is missing, wrong, or asks for something unsupported.
    """
    model_type = config.values["model_type"]
    heads = config.whole("num_attention_heads")
    d_model = config.whole("hidden_size")
    kv_heads = config.whole("num_key_value_heads", heads)
    width = config.whole("head_dim", 128 if model_type == "qwen3" else max(1, d_model // heads))
    if width * heads != d_model:
        raise config.wrong("head_dim", f"hidden_size / num_attention_heads, {d_model / heads:g}")
    if heads % kv_heads:
        raise config.wrong("num_key_value_heads", f"a divisor of num_attention_heads, {heads}")
    config.only("hidden_act", "silu")
    if config.flag("use_sliding_window", model_type != "qwen3"):  # Qwen3 has a flag for it
        config.only("sliding_window", None)
    if any(kind != "full_attention" for kind in config.values.get("layer_types") or ()):
        raise config.wrong("layer_types", "full_attention for every layer")
    eps = config.number("rms_norm_eps", 1e-6)
    norm = str(NormSpec("rmsnorm", {"eps": eps}))
    return {
        "norm": norm,
        **PLAIN,
        "qk_norm": norm if model_type == "qwen3" else "none",
        "d_model": d_model,
        "heads": heads,
        "kv_heads": None if kv_heads == heads else kv_heads,
        "layers": config.whole("num_hidden_layers"),
        "d_ff": config.whole("intermediate_size"),
        "activation": "swiglu",
        "attention_dropout": config.fraction("attention_dropout", 0.0),
        "positions": "rotary",
        "rotary_base": _rotary_base(config),
        "max_positions": config.whole("max_position_embeddings", 2048),
        "bias": _bias(config, model_type),
        "tie": config.flag("tie_word_embeddings", False),
    }


def _bias(config: Config, model_type: str) -> bool:
    attention = config.flag("attention_bias", False)
    feed_forward = config.flag("mlp_bias", False) if model_type == "llama" else False
    if attention != feed_forward:
        wanted = f"{str(feed_forward).lower()}, as in the feed-forward layers"
        raise config.wrong("attention_bias", wanted)
    return attention


def _rotary_base(config: Config) -> float:
    """Return theta, from the key of transformers 4 or 5; refuse scaled positions."""
    config.only("partial_rotary_factor", None, 1.0)
    base = config.values.get("rope_theta")
    for key in ("rope_scaling", "rope_parameters"):
        rope = config.values.get(key)
        if rope is None:
            continue
        kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else ""
        if kind != "default" or rope.get("partial_rotary_factor", 1.0) != 1.0:
            raise config.wrong(key, "null or of rope_type default; scaled rotary positions are "
                               "unsupported")  # fmt: skip
        base = rope.get("rope_theta", base)
    if base is None:
        return 10000.0
    if type(base) not in (int, float) or not 0 < base < float("inf"):
        raise config.wrong("rope_theta", "a number > 0")
    return float(base)


def slots(section: CausalLMConfig, vocab_size: int) -> list[Slot]:
    """List where each weight is in the format."""
    d, ff = section.d_model, section.d_ff
    kv = d // section.heads * (section.kv_heads or section.heads)
    table = [
        slot("embedding.weight", "model.embed_tokens.weight", vocab_size, d),
        slot("decoder.norm.weight", "model.norm.weight", d),
    ]
    if not section.tie:
        table.append(slot("head.weight", "lm_head.weight", vocab_size, d))
    for i in range(section.layers):
        our, their = f"decoder.layers.{i}", f"model.layers.{i}"
        table += [
            slot(f"{our}.attention_residual.norm.weight", f"{their}.input_layernorm.weight", d),
            slot(f"{our}.feed_forward_residual.norm.weight",
                 f"{their}.post_attention_layernorm.weight", d),
        ]  # fmt: skip
        if section.qk_norm != "none":
            head = d // section.heads
            table += [
                slot(f"{our}.attention.{n}_norm.weight", f"{their}.self_attn.{n}_norm.weight", head)
                for n in "qk"
            ]
        for kind in ("weight", "bias") if section.bias else ("weight",):
            table += _linears(our, their, kind, d, kv, ff)
    return table


def _linears(our: str, their: str, kind: str, d: int, kv: int, ff: int) -> list[Slot]:
    def shape(rows: int, columns: int) -> tuple[int, ...]:
        return (rows, columns) if kind == "weight" else (rows,)

    attention, mlp = f"{their}.self_attn", f"{their}.mlp"
    parts = tuple(
        (f"{attention}.{n}_proj.{kind}", shape(rows, d))
        for n, rows in zip("qkv", (d, kv, kv))  # noqa: B905
    )
    gates = tuple((f"{mlp}.{name}_proj.{kind}", shape(ff, d)) for name in ("gate", "up"))
    return [
        Slot(f"{our}.attention.query_key_value.{kind}", parts),
        slot(f"{our}.attention.output.{kind}", f"{attention}.o_proj.{kind}", *shape(d, d)),
        Slot(f"{our}.feed_forward.inner.{kind}", gates),
        slot(f"{our}.feed_forward.outer.{kind}", f"{mlp}.down_proj.{kind}", *shape(d, ff)),
    ]
