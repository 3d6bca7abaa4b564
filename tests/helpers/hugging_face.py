"""Weights of this package's causal models in Hugging Face's layouts, written out for tests."""

from __future__ import annotations

from torch import Tensor

from normtrain.models import CausalLM


def as_llama(model: CausalLM) -> dict[str, Tensor]:
    """Pre-norm, RMSNorm, SwiGLU, rotary, no biases: a LlamaForCausalLM's state dict."""
    found = {
        "model.embed_tokens.weight": model.embedding.weight,
        "model.norm.weight": model.decoder.norm.weight,
        "lm_head.weight": model.head.weight,
    }
    for i, layer in enumerate(model.decoder.layers):
        at, attention, feed = f"model.layers.{i}.", layer.attention, layer.feed_forward
        sizes = [attention.dim, attention.kv_dim, attention.kv_dim]
        q, k, v = attention.query_key_value.weight.split(sizes)
        gate, up = feed.inner.weight.chunk(2)
        found |= {
            at + "self_attn.q_proj.weight": q,
            at + "self_attn.k_proj.weight": k,
            at + "self_attn.v_proj.weight": v,
            at + "self_attn.o_proj.weight": attention.output.weight,
            at + "mlp.gate_proj.weight": gate,
            at + "mlp.up_proj.weight": up,
            at + "mlp.down_proj.weight": feed.outer.weight,
            at + "input_layernorm.weight": layer.attention_residual.norm.weight,
            at + "post_attention_layernorm.weight": layer.feed_forward_residual.norm.weight,
        }
    return found


def as_gpt2(model: CausalLM) -> dict[str, Tensor]:
    """Pre-norm, LayerNorm, learned positions, gelu-tanh: a GPT2LMHeadModel's state dict."""
    found = {
        "transformer.wte.weight": model.embedding.weight,
        "transformer.wpe.weight": model.positions.weight,
        "lm_head.weight": model.head.weight,
    }
    pairs = {"transformer.ln_f": model.decoder.norm}
    for i, layer in enumerate(model.decoder.layers):
        at = f"transformer.h.{i}."
        pairs[at + "ln_1"] = layer.attention_residual.norm
        pairs[at + "ln_2"] = layer.feed_forward_residual.norm
        linears = {
            "attn.c_attn": layer.attention.query_key_value,
            "attn.c_proj": layer.attention.output,
            "mlp.c_fc": layer.feed_forward.inner,
            "mlp.c_proj": layer.feed_forward.outer,
        }
        for name, linear in linears.items():
            # GPT-2's Conv1D keeps its matrix the other way round.
            found |= {at + name + ".weight": linear.weight.T, at + name + ".bias": linear.bias}
    for name, norm in pairs.items():
        found |= {name + ".weight": norm.weight, name + ".bias": norm.bias}
    return found
