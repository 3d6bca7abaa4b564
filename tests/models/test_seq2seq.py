"""The encoder-decoder: shapes, masks, placements, cache, ties, and an independent reference."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import VOCAB, batch, model_of, perturb_norms
from torch import Tensor

from normtrain.models import Seq2Seq, norm_sites
from normtrain.models.positions import Positions, sinusoidal_table
from normtrain.norms import norm_names


@pytest.mark.parametrize("norm", norm_names())
@pytest.mark.parametrize("placement", ["pre", "post", "sandwich"])
def test_every_norm_at_every_placement_trains(norm: str, placement: str) -> None:
    model = model_of(norm=norm, placement=placement, qk_norm=norm)
    source, target = batch()
    loss = F.cross_entropy(model(source, target).flatten(0, 1), target.flatten(), ignore_index=0)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def _reference(model: Seq2Seq, source: Tensor, target: Tensor) -> Tensor:
    """Pre-norm forward, one sentence at a time, no padding, no fused kernels."""

    def attend(a: Any, x: Tensor, memory: Tensor, causal: bool) -> Tensor:
        d = model.head.weight.size(1)
        if a.cross:
            q = a.query(x)
            k, v = a.key_value(memory).split(d, -1)
        else:
            q, k, v = a.query_key_value(x).split(d, -1)
        parts = []
        size = d // a.heads
        for h in range(a.heads):
            cut = slice(h * size, (h + 1) * size)
            scores = q[:, cut] @ k[:, cut].T / size**0.5
            if causal:
                above = torch.ones_like(scores, dtype=torch.bool).triu(1)
                scores = scores.masked_fill(above, float("-inf"))
            parts.append(scores.softmax(-1) @ v[:, cut])
        return a.output(torch.cat(parts, -1))

    def embed(tokens: Tensor, table: Tensor) -> Tensor:
        d = table.size(1)
        return table[tokens] * d**0.5 + sinusoidal_table(len(tokens), d)

    def feed(f: Any, x: Tensor) -> Tensor:
        return f.outer(F.relu(f.inner(x)))

    x = embed(source, model.source_embedding.weight)
    for layer in model.encoder.layers:
        h = layer.attention_residual.norm(x)
        x = x + attend(layer.attention, h, h, False)
        x = x + feed(layer.feed_forward, layer.feed_forward_residual.norm(x))
    memory = model.encoder.norm(x)
    y = embed(target, model.target_embedding.weight)
    for layer in model.decoder.layers:
        h = layer.attention_residual.norm(y)
        y = y + attend(layer.attention, h, h, True)
        h = layer.cross_attention_residual.norm(y)
        y = y + attend(layer.cross_attention, h, memory, False)
        y = y + feed(layer.feed_forward, layer.feed_forward_residual.norm(y))
    return model.decoder.norm(y) @ model.head.weight.T


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm", "adanorm"])
def test_equals_a_plain_reference_sentence_by_sentence(norm: str) -> None:
    model = model_of(norm=norm).eval()
    perturb_norms(model)
    sizes = [(7, 5), (4, 6), (2, 1)]
    source, target = batch(sizes)
    with torch.no_grad():
        logits = model(source, target)
        for row, (s, t) in enumerate(sizes):
            expected = _reference(model, source[row, :s], target[row, :t])
            torch.testing.assert_close(logits[row, :t], expected, rtol=1e-4, atol=1e-5)


def test_later_targets_and_padding_change_nothing_before_them() -> None:
    model = model_of(placement="sandwich", qk_norm="rmsnorm").eval()
    source, target = batch()
    with torch.no_grad():
        logits = model(source, target)
        changed = target.clone()
        changed[:, 3:] = 5
        torch.testing.assert_close(model(source, changed)[:, :3], logits[:, :3])
        wider = F.pad(source, (0, 9))
        torch.testing.assert_close(model(wider, target), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("placement", "qk_norm", "positions", "activation"),
    [  # every pair of values of any two options
        ("pre", "none", "sinusoidal", "relu"),
        ("pre", "rmsnorm", "learned", "gelu"),
        ("pre", "layernorm", "sinusoidal", "swiglu"),
        ("post", "none", "learned", "gelu"),
        ("post", "rmsnorm", "sinusoidal", "swiglu"),
        ("post", "layernorm", "learned", "relu"),
        ("sandwich", "none", "learned", "swiglu"),
        ("sandwich", "rmsnorm", "sinusoidal", "relu"),
        ("sandwich", "layernorm", "sinusoidal", "gelu"),
    ],
)
def test_step_by_step_equals_all_at_once(
    placement: str, qk_norm: str, positions: str, activation: str
) -> None:
    model = model_of(
        placement=placement, qk_norm=qk_norm, positions=positions, activation=activation
    ).eval()
    perturb_norms(model)
    source, _ = batch()
    beams, steps = 2, 20  # past the cache's first size
    tokens = torch.randint(4, VOCAB, (len(source) * beams, steps))
    with torch.no_grad():
        whole = model(source.repeat_interleave(beams, 0), tokens)
        state = model.start(source, beams, steps)
        parts = [model.step(tokens[:, t], state) for t in range(steps)]
    torch.testing.assert_close(torch.stack(parts, 1), whole, rtol=1e-4, atol=1e-5)


def test_reorder_and_keep_follow_the_hypotheses() -> None:
    model = model_of().eval()
    source, _ = batch()
    tokens = torch.randint(4, VOCAB, (6, 4))
    with torch.no_grad():
        state = model.start(source, 2, 10)
        for t in range(3):
            model.step(tokens[:, t], state)
        order = torch.tensor([1, 1, 3, 2, 4, 4])
        state.reorder(order)
        state.keep(torch.tensor([0, 2]))
        rows = torch.tensor([0, 1, 4, 5])
        after = model.step(tokens[rows, 3], state)
        history = torch.cat([tokens[order][rows, :3], tokens[rows, 3:]], 1)
        kept = source[[0, 2]].repeat_interleave(2, 0)
        torch.testing.assert_close(after, model(kept, history)[:, -1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("tie", "matrices"), [("all", 1), ("decoder", 2), ("embeddings", 2), ("none", 3)]
)
def test_ties_share_the_very_parameter(tie: str, matrices: int) -> None:
    model = model_of(tie=tie)
    tables = {model.source_embedding.weight, model.target_embedding.weight, model.head.weight}
    assert len(tables) == matrices
    assert sum(p.size(0) == VOCAB for p in model.parameters()) == matrices


@pytest.mark.parametrize(
    "kind", ["dropout", "attention_dropout", "activation_dropout", "word_dropout"]
)
def test_each_kind_of_dropout_acts_in_training_only(kind: str) -> None:
    model = model_of(**{kind: 0.5})
    source, target = batch()
    assert not torch.equal(model(source, target), model(source, target))
    model.eval()
    assert torch.equal(model(source, target), model(source, target))
    plain = model_of().eval()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model(source, target), plain(source, target))


def test_rules_put_other_norms_where_they_match() -> None:
    rules = [("encoder.layers.0.*", "adanorm"), ("decoder.norm", "none")]
    model = model_of(norm="rmsnorm", norm_rules=rules)
    sites = norm_sites(model)
    kinds = {name: type(model.get_submodule(name)).__name__ for name in sites}
    assert len(sites) == 2 * 2 + 2 * 3 + 2
    first = [kind for name, kind in kinds.items() if name.startswith("encoder.layers.0.")]
    assert set(first) == {"AdaNorm"}
    assert kinds["decoder.norm"] == "NoNorm"
    assert list(kinds.values()).count("RMSNorm") == len(sites) - len(first) - 1


def test_a_rule_that_matches_nothing_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match=r"decoder\.layer\.0.*matches no norm"):
        model_of(norm_rules=[("decoder.layer.0.*", "rmsnorm")])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, r"model.heads \(3\)"),
        ({"placement": "peri"}, "placement"),
        ({"activation": "tanh"}, "activation"),
        ({"tie": "both"}, "tie"),
        ({"positions": "rotary"}, "positions"),
    ],
)
def test_wrong_sizes_and_names_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_of(**changes)


def test_a_sequence_longer_than_the_positions_is_refused() -> None:
    model = model_of(max_positions=8)
    with pytest.raises(ValueError, match="max_positions=8"):
        model(torch.full((1, 9), 5), torch.full((1, 2), 5))
    with pytest.raises(ValueError, match="decode.max_length"):
        model.start(torch.full((1, 3), 5), 1, 9)


@pytest.mark.parametrize(("length", "dim"), itertools.product([1, 5], [1, 6, 7]))
def test_sinusoidal_positions_follow_the_formula(length: int, dim: int) -> None:
    table = sinusoidal_table(length, dim)
    for t, i in itertools.product(range(length), range(dim)):
        angle = torch.tensor(t / 10000 ** ((i - i % 2) / dim), dtype=torch.float64)
        expected = angle.sin() if i % 2 == 0 else angle.cos()
        assert abs(float(table[t, i]) - float(expected)) < 1e-6
    x = torch.zeros(1, length, dim)
    assert torch.equal(Positions("sinusoidal", 5, dim)(x)[0], table)


def test_padding_vector_stays_zero_through_training() -> None:
    model = model_of(tie="none")
    source, target = batch()
    model(source, target).sum().backward()
    grad = model.source_embedding.weight.grad
    assert torch.equal(grad[0], torch.zeros_like(grad[0]))
