"""The decoder-only model: independent references, causality, ties, sizes, start, every norm."""

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import VOCAB, causal_of, model_of, perturb_norms
from torch import Tensor

from normtrain.errors import UserError
from normtrain.models import CausalLM
from normtrain.norms import norm_names


def tokens_of(*shape: int) -> Tensor:
    return torch.randint(0, VOCAB, shape, generator=torch.Generator().manual_seed(2))


def _reference(model: CausalLM, tokens: Tensor) -> Tensor:
    """Pre-norm forward of one row, position by position, each reading all up to itself."""
    x = model.embedding.weight[tokens] + model.positions.weight[: len(tokens)]
    for layer in model.decoder.layers:
        a: Any = layer.attention
        q, k, v = a.query_key_value(layer.attention_residual.norm(x)).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (a.heads, -1)) for part in (q, k, v))
        rows = []
        for t in range(len(tokens)):
            scores = torch.einsum("hd,thd->ht", q[t], k[: t + 1]) / q.size(-1) ** 0.5
            rows.append(torch.einsum("ht,thd->hd", scores.softmax(-1), v[: t + 1]).flatten())
        x = x + a.output(torch.stack(rows))
        f: Any = layer.feed_forward
        x = x + f.outer(F.relu(f.inner(layer.feed_forward_residual.norm(x))))
    return model.decoder.norm(x) @ model.head.weight.T


@pytest.mark.parametrize("tie", ["all", "none"])
@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_equals_a_plain_reference(tie: str, norm: str) -> None:
    model = causal_of(tie, norm=norm, positions="learned").double().eval()
    perturb_norms(model)
    tokens = tokens_of(2, 9)
    with torch.no_grad():
        expected = torch.stack([_reference(model, row) for row in tokens])
        torch.testing.assert_close(model(tokens), expected, rtol=1e-10, atol=1e-12)


def spread(model: CausalLM) -> None:
    """Weights large enough that an error anywhere shows in the logits."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.3 + (parameter.ndim == 1)


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("changes", [{}, {"qk_norm": "rmsnorm", "positions": "none"}], ids=str)
def test_grouped_heads_are_heads_with_repeated_keys_and_values(
    kv_heads: int, changes: dict[str, Any]
) -> None:
    model = causal_of(heads=4, kv_heads=kv_heads, **changes).double().eval()
    plain = causal_of(heads=4, **changes).double().eval()
    spread(model)
    state = model.state_dict()
    for name, value in state.items():
        if "query_key_value" in name:
            q, *rest = value.split([16, 4 * kv_heads, 4 * kv_heads])
            heads = (part.unflatten(0, (kv_heads, 4)) for part in rest)
            repeated = [h.repeat_interleave(4 // kv_heads, 0).flatten(0, 1) for h in heads]
            state[name] = torch.cat([q, *repeated])
    plain.load_state_dict(state)
    tokens = tokens_of(2, 9)
    torch.testing.assert_close(model(tokens), plain(tokens), rtol=1e-10, atol=1e-12)


CHANGES: list[dict[str, Any]] = [
    *({"placement": placement} for placement in ("pre", "post", "sandwich")),
    *({"positions": positions} for positions in ("learned", "sinusoidal", "none")),
    *({"qk_norm": "rmsnorm", "kv_heads": 1, "placement": p} for p in ("pre", "post", "sandwich")),
    {"kv_heads": 2, "activation": "swiglu", "d_stream": 15, "bias": False},
    {"embedding_norm": "fixnorm", "qk_norm": "layernorm", "positions": "none"},
    {"zero_mean": "stream", "norm": "rmsnorm", "kv_heads": 2, "head_bias": True},
]


def spread_of(changes: dict[str, Any]) -> CausalLM:
    model = causal_of(**changes).double().eval()
    spread(model)
    return model


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_later_tokens_change_nothing_before_them(changes: dict[str, Any]) -> None:
    model = spread_of(changes)
    tokens = tokens_of(2, 9)
    changed = tokens.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % VOCAB
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    torch.testing.assert_close(after[:, :5], before[:, :5])
    assert not torch.allclose(after[:, 5:], before[:, 5:])


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_other_rows_and_padding_change_nothing(changes: dict[str, Any]) -> None:
    model = spread_of(changes)
    tokens = tokens_of(3, 9)
    padded = torch.cat([tokens, torch.zeros(3, 20, dtype=torch.int64)], 1)
    with torch.no_grad():
        found = model(padded)[:, :9]
        for row in range(3):
            alone = model(tokens[row : row + 1])
            torch.testing.assert_close(found[row : row + 1], alone, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("portions", [[1] * 21, [5, 1, 1, 9, 2, 3]])
@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_tokens_in_any_portions_give_the_same_logits(
    changes: dict[str, Any], portions: list[int]
) -> None:
    model = spread_of(changes)
    tokens = tokens_of(2, 21)  # past the cache's first size
    with torch.no_grad():
        whole, state = model(tokens), model.start(2)
        parts = [
            model.prefill(part, state)
            if part.size(1) > 1
            else model.step(part[:, 0], state)[:, None]
            for part in tokens.split(portions, 1)
        ]
        last = model.prefill(tokens, model.start(2), last=True)
    assert state.length == 21
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(last, whole[:, -1:], rtol=1e-10, atol=1e-10)


def test_a_cache_holds_the_grouped_heads_alone() -> None:
    model = causal_of(heads=4, kv_heads=1).eval()
    state = model.start(3)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model.prefill(tokens_of(3, 5), state)
        model.step(tokens_of(3), state)
    for cache in state.caches:
        assert cache.store.shape == (16, 3, 2 * 4)
        assert cache.store.dtype == torch.bfloat16
        assert cache.spare is None


@pytest.mark.parametrize("tie", ["all", "none"])
def test_the_start_is_gpt2s(tie: str) -> None:
    layers = 8
    model = causal_of(
        tie, d_model=64, d_ff=256, layers=layers, kv_heads=2, head_bias=True, positions="learned"
    )
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" not in name:
            writes = name.endswith(("output.weight", "outer.weight"))
            expected = 0.02 / (2 * layers) ** 0.5 if writes else 0.02
            values = parameter.detach()
            assert float(values.std()) == pytest.approx(expected, rel=0.1), name
            assert abs(float(values.mean())) < 0.1 * expected, name


def test_only_normed_embeddings_are_scaled() -> None:
    assert causal_of().scale == 1.0
    assert causal_of(embedding_norm="fixnorm").scale == 4.0
    assert model_of().scale == 4.0


def test_the_tanh_gelu_is_not_the_exact_one() -> None:
    x = torch.linspace(-4, 4, 99, dtype=torch.float64)
    module = causal_of(activation="gelu-tanh").decoder.layers[0].feed_forward
    inner = (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)
    torch.testing.assert_close(module.activation(x), 0.5 * x * (1 + inner.tanh()))
    assert not torch.allclose(module.activation(x), F.gelu(x), rtol=0, atol=1e-4)


@pytest.mark.parametrize("norm", norm_names())
@pytest.mark.parametrize("placement", ["pre", "post", "sandwich"])
def test_every_norm_at_every_placement_trains(norm: str, placement: str) -> None:
    model = causal_of(norm=norm, placement=placement, qk_norm=norm, embedding_norm=norm)
    tokens = tokens_of(3, 7)
    loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    assert torch.isfinite(loss)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("positions", ["rotary", "learned", "sinusoidal", "none"])
def test_a_sequence_longer_than_the_positions_is_refused(positions: str) -> None:
    model = causal_of(positions=positions, max_positions=8)
    assert model.position_kind == positions
    with pytest.raises(UserError, match=r"9 tokens is longer than model\.max_positions=8"):
        model(tokens_of(1, 9))
    state = model.start(1)
    model.prefill(tokens_of(1, 8), state)
    with pytest.raises(UserError, match=r"9 tokens is longer than model\.max_positions=8"):
        model.step(tokens_of(1), state)
    assert state.length == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": "alibi"}, "positions"),
        ({"kv_heads": 3}, "model.kv_heads (3)"),
        ({"kv_heads": 0}, "kv_heads"),
        ({"heads": 3}, "model.heads (3)"),
        ({"norm_rules": [("encoder.*", "rmsnorm")]}, "norm rule 'encoder.*' matches no norm"),
    ],
)
def test_wrong_options_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        causal_of(**changes)


@pytest.mark.parametrize("shape", [(2, 3), (1, 0), (1,)])
def test_tokens_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    model = causal_of()
    with pytest.raises(UserError, match=r"tokens must be \(1, time\)"):
        model.prefill(torch.zeros(shape, dtype=torch.int64), model.start(1))
