"""The residual streams of Hugging Face's Pre-LN transformers, found by their modules' names.

Nothing is imported from transformers. Each function returns the arguments of `Stream`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from normtrain.errors import UserError


def _base(model: nn.Module) -> tuple[nn.Module, str]:
    """The model without its heads, and the prefix of its modules' names."""
    prefix = str(getattr(model, "base_model_prefix", ""))
    inner = getattr(model, prefix, None) if prefix else None
    return (inner, f"{prefix}.") if isinstance(inner, nn.Module) else (model, "")


def _heads(model: nn.Module, prefix: str) -> tuple[str, ...]:
    """The linear heads over the last norm; none where its output leaves the model or is unclear."""
    if not prefix:
        return ()
    children = {n: m for n, m in model.named_children() if f"{n}." != prefix}
    heads = {n: m for n, m in children.items() if not isinstance(m, nn.Dropout | nn.Identity)}
    return tuple(heads) if all(type(m) is nn.Linear for m in heads.values()) else ()


def _width(model: nn.Module, norm: str) -> int:
    shape = getattr(model.get_submodule(norm), "normalized_shape", None)
    if not shape or len(shape) != 1:
        raise UserError(f"{norm} is a {type(model.get_submodule(norm)).__name__}, not a LayerNorm")
    return int(shape[0])


def gpt2(model: nn.Module) -> list[dict[str, Any]]:
    """GPT-2, with or without cross-attention."""
    base, prefix = _base(model)
    norms: dict[str, tuple[str, ...]] = {}
    writers: list[str] = []
    for i, block in enumerate(base.h):  # type: ignore[arg-type]
        at = f"{prefix}h.{i}."
        norms |= {f"{at}ln_1": (f"{at}attn.c_attn",), f"{at}ln_2": (f"{at}mlp.c_fc",)}
        writers += [f"{at}attn.c_proj", f"{at}mlp.c_proj"]
        if hasattr(block, "crossattention"):
            norms[f"{at}ln_cross_attn"] = (f"{at}crossattention.q_attn",)
            writers.append(f"{at}crossattention.c_proj")
    last = f"{prefix}ln_f"
    norms[last] = _heads(model, prefix)
    inputs = (f"{prefix}wte", f"{prefix}wpe")
    return [{"width": _width(model, last), "norms": norms, "writers": writers, "inputs": inputs}]


def opt(model: nn.Module) -> list[dict[str, Any]]:
    """OPT, except the 350m model, which is post-norm."""
    base, prefix = _base(model)
    decoder: Any = base.decoder
    at = f"{prefix}decoder."
    if not decoder.config.do_layer_norm_before:
        raise UserError(
            f"{at}layers.0.self_attn_layer_norm is post-norm (do_layer_norm_before=False): it "
            f"writes the stream; only pre-norm models convert exactly"
        )
    if decoder.final_layer_norm is None:
        raise UserError(
            f"{at}final_layer_norm is missing: what follows reads the stream without a norm"
        )
    norms: dict[str, tuple[str, ...]] = {}
    writers: list[str] = []
    for i in range(len(decoder.layers)):
        layer, attention = f"{at}layers.{i}.", f"{at}layers.{i}.self_attn."
        norms[f"{layer}self_attn_layer_norm"] = tuple(f"{attention}{k}_proj" for k in "qkv")
        norms[f"{layer}final_layer_norm"] = (f"{layer}fc1",)
        writers += [f"{attention}out_proj", f"{layer}fc2"]
    projected = decoder.project_out is not None
    norms[f"{at}final_layer_norm"] = (f"{at}project_out",) if projected else _heads(model, prefix)
    tokens = "project_in" if decoder.project_in is not None else "embed_tokens"
    inputs = (f"{at}{tokens}", f"{at}embed_positions")
    width = _width(model, f"{at}final_layer_norm")
    return [{"width": width, "norms": norms, "writers": writers, "inputs": inputs}]


def gpt_neox(model: nn.Module) -> list[dict[str, Any]]:
    """GPT-NeoX and Pythia, with parallel or sequential residuals."""
    base, prefix = _base(model)
    norms: dict[str, tuple[str, ...]] = {}
    writers: list[str] = []
    for i in range(len(base.layers)):  # type: ignore[arg-type]
        at = f"{prefix}layers.{i}."
        norms[f"{at}input_layernorm"] = (f"{at}attention.query_key_value",)
        norms[f"{at}post_attention_layernorm"] = (f"{at}mlp.dense_h_to_4h",)
        writers += [f"{at}attention.dense", f"{at}mlp.dense_4h_to_h"]
    last = f"{prefix}final_layer_norm"
    norms[last] = _heads(model, prefix)
    inputs = (f"{prefix}embed_in",)
    return [{"width": _width(model, last), "norms": norms, "writers": writers, "inputs": inputs}]


def vit(model: nn.Module) -> list[dict[str, Any]]:
    """ViT, with the module names of transformers 4 and of 5."""
    base, prefix = _base(model)
    old = hasattr(base, "encoder")
    layers: Any = base.encoder.layer if old else base.layers  # type: ignore[union-attr]
    place = "encoder.layer" if old else "layers"
    attention = "attention.attention." if old else "attention."
    qkv = ("query", "key", "value") if old else ("q_proj", "k_proj", "v_proj")
    first, second = ("intermediate.dense", "output.dense") if old else ("mlp.fc1", "mlp.fc2")
    output = "attention.output.dense" if old else "attention.o_proj"
    norms: dict[str, tuple[str, ...]] = {}
    writers: list[str] = []
    for i in range(len(layers)):
        at = f"{prefix}{place}.{i}."
        norms[f"{at}layernorm_before"] = tuple(f"{at}{attention}{name}" for name in qkv)
        norms[f"{at}layernorm_after"] = (f"{at}{first}",)
        writers += [f"{at}{output}", f"{at}{second}"]
    last = f"{prefix}layernorm"
    norms[last] = _heads(model, prefix)
    names = ["patch_embeddings.projection", "cls_token", "position_embeddings"]
    if getattr(base.embeddings, "mask_token", None) is not None:
        # A mask token takes a patch's place, so it is one more of the values the patch map gives.
        names.append("mask_token")
    inputs = tuple(f"{prefix}embeddings.{name}" for name in names)
    return [{"width": _width(model, last), "norms": norms, "writers": writers, "inputs": inputs}]


def whisper(model: nn.Module) -> list[dict[str, Any]]:
    """Whisper: the encoder's stream begins after an activation, so it is recentred at run time."""
    base, prefix = _base(model)
    if not (hasattr(base, "encoder") and hasattr(base, "decoder")):
        raise UserError(
            f"{type(model).__name__} is not known to read its streams through norms alone; "
            f"WhisperModel and WhisperForConditionalGeneration are"
        )
    crossing = tuple(
        f"{prefix}decoder.layers.{i}.encoder_attn.{k}_proj"
        for i in range(len(base.decoder.layers))  # type: ignore[union-attr, arg-type]
        for k in "kv"
    )
    streams = []
    for side, last_readers in (("encoder", crossing), ("decoder", _heads(model, prefix))):
        at = f"{prefix}{side}."
        norms: dict[str, tuple[str, ...]] = {}
        writers: list[str] = []
        for i in range(len(getattr(base, side).layers)):
            layer = f"{at}layers.{i}."
            self_qkv = tuple(f"{layer}self_attn.{k}_proj" for k in "qkv")
            norms[f"{layer}self_attn_layer_norm"] = self_qkv
            writers.append(f"{layer}self_attn.out_proj")
            if side == "decoder":
                norms[f"{layer}encoder_attn_layer_norm"] = (f"{layer}encoder_attn.q_proj",)
                writers.append(f"{layer}encoder_attn.out_proj")
            norms[f"{layer}final_layer_norm"] = (f"{layer}fc1",)
            writers.append(f"{layer}fc2")
        norms[f"{at}layer_norm"] = last_readers
        plain = {"width": _width(model, f"{at}layer_norm"), "norms": norms, "writers": writers}
        if side == "encoder":
            plain["entry"] = f"{at}layers.0"
        else:
            plain["inputs"] = (f"{at}embed_tokens", f"{at}embed_positions")
        streams.append(plain)
    return streams


_PARTS = {"gpt2": "h", "opt": "decoder", "gpt_neox": "layers", "vit": "embeddings"}


def is_whole(model: nn.Module, family: str) -> bool:
    """Whether the module is a model of the family, with or without a head, and no part of one."""
    base, _ = _base(model)
    return family not in _PARTS or hasattr(base, _PARTS[family])


FAMILIES: dict[str, Callable[[nn.Module], list[dict[str, Any]]]] = {
    "gpt2": gpt2,
    "opt": opt,
    "gpt_neox": gpt_neox,
    "vit": vit,
    "whisper": whisper,
}
