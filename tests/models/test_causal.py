"""The decoder-only model: an independent reference, causality, ties, sizes, every norm."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import VOCAB, causal_of, perturb_norms
from torch import Tensor

from normtrain.models import CausalLM, norm_sites
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


@pytest.mark.parametrize("placement", ["pre", "post", "sandwich"])
def test_later_tokens_change_nothing_before_them(placement: str) -> None:
    model = causal_of(placement=placement, qk_norm="rmsnorm").eval()
    tokens = tokens_of(2, 9)
    changed = tokens.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % VOCAB
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    torch.testing.assert_close(after[:, :5], before[:, :5])
    assert not torch.allclose(after[:, 5:], before[:, 5:])


@pytest.mark.parametrize("norm", norm_names())
@pytest.mark.parametrize("placement", ["pre", "post", "sandwich"])
def test_every_norm_at_every_place_trains(norm: str, placement: str) -> None:
    model = causal_of(norm=norm, placement=placement, qk_norm=norm, embedding_norm=norm)
    tokens = tokens_of(3, 7)
    loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    assert torch.isfinite(loss)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize(("tie", "matrices"), [("all", 1), ("none", 2)])
def test_names_shapes_and_ties(tie: str, matrices: int) -> None:
    model = causal_of(tie, d_stream=15, head_bias=True, positions="learned")
    assert (model.head.weight is model.embedding.weight) == (tie == "all")
    assert sum(p.shape == (VOCAB, 15) for p in model.parameters()) == matrices
    assert model(tokens_of(2, 3)).shape == (2, 3, VOCAB)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert shapes["positions.weight"] == (64, 15)
    assert shapes["decoder.layers.1.attention.query_key_value.weight"] == (48, 15)
    assert shapes["decoder.layers.1.attention.output.weight"] == (15, 16)
    assert shapes["decoder.norm.weight"] == (15,)
    assert torch.equal(model.head.bias, torch.zeros(VOCAB))


def test_norm_sites_are_the_stacks_norms() -> None:
    pair = ("attention_residual", "feed_forward_residual")
    expected = [f"decoder.layers.{i}.{name}.norm" for i in range(2) for name in pair]
    model = causal_of(norm_rules=[("decoder.norm", "rmsnorm")], embedding_norm="rmsnorm")
    assert norm_sites(model) == [*expected, "decoder.norm"]
    assert type(model.decoder.norm).__name__ == "RMSNorm"
    assert type(model.get_submodule(expected[0])).__name__ == "LayerNorm"


def test_a_sequence_longer_than_the_positions_is_refused() -> None:
    with pytest.raises(ValueError, match="max_positions=8"):
        causal_of(max_positions=8)(tokens_of(1, 9))
