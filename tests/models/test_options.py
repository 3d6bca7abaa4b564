"""Width of the stream, bias of the logits, norms of embeddings, and all of it while decoding."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import VOCAB, batch, causal_of, model_of, perturb_norms
from torch import Tensor

from normtrain.models import Seq2Seq
from normtrain.models.token_ids import BOS, EOS, PAD
from normtrain.norms import norm_names
from normtrain.tasks.translation.decoding.beam import beam_search

OPTIONS: list[dict[str, Any]] = [
    {"d_stream": 15, "heads": 2},
    {"d_stream": 21, "positions": "learned", "placement": "post", "activation": "swiglu"},
    {"head_bias": True},
    {"head_bias": True, "tie": "none"},
    {"embedding_norm": "fixnorm"},
    {"embedding_norm": "rmsnorm", "tie": "decoder", "positions": "learned"},
    {"embedding_norm": "layernorm", "tie": "none"},
    {"zero_mean": "embeddings", "norm": "rmsnorm"},
    {"zero_mean": "stream", "norm": "rmsnorm", "positions": "learned"},
    {"zero_mean": "stream", "placement": "sandwich", "norm": "rmsnorm:bias=true"},
    {"zero_mean": "stream", "d_stream": 13, "head_bias": True, "embedding_norm": "fixnorm"},
    *({"qk_norm": name} for name in norm_names()),
]


def prepared(**changes: Any) -> Seq2Seq:
    model = model_of(**changes).double().eval()
    perturb_norms(model)
    return model


@pytest.mark.parametrize("changes", OPTIONS, ids=str)
def test_step_by_step_equals_all_at_once(changes: dict[str, Any]) -> None:
    model = prepared(**changes)
    source, _ = batch()
    beams, steps = 2, 18  # past the cache's first size
    tokens = torch.randint(4, VOCAB, (len(source) * beams, steps))
    with torch.no_grad():
        whole = model(source.repeat_interleave(beams, 0), tokens)
        state = model.start(source, beams, steps)
        parts = [model.step(tokens[:, t], state) for t in range(steps)]
    # step's logits are float32
    torch.testing.assert_close(torch.stack(parts, 1), whole.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("changes", OPTIONS, ids=str)
def test_beam_search_scores_what_the_whole_model_says(changes: dict[str, Any]) -> None:
    model = prepared(**changes)
    source, _ = batch()
    found = beam_search(
        model, source, beam=3, length_penalty=0.6, max_length=torch.full((len(source),), 9)
    )
    assert sum(map(len, found)) > 0
    for row, hypotheses in enumerate(found):
        for hypothesis in hypotheses:
            fed = torch.tensor([[BOS, *hypothesis.tokens]])
            wanted = torch.tensor([[*hypothesis.tokens, EOS]])
            with torch.no_grad():
                log_probs = model(source[row : row + 1], fed).log_softmax(-1)
            expected = float(log_probs.gather(-1, wanted[..., None]).sum())
            assert hypothesis.log_prob == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_a_narrow_stream_has_its_shapes_and_trains() -> None:
    model = model_of(d_stream=15, heads=2, tie="none", positions="learned", head_bias=True)
    source, target = batch()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for _ in range(2):
        loss = F.cross_entropy(model(source, target).flatten(0, 1), target.flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    assert all(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    first = "decoder.layers.0."
    expected = {
        "source_embedding.weight": (VOCAB, 15),
        "target_embedding.weight": (VOCAB, 15),
        "head.weight": (VOCAB, 15),
        "head.bias": (VOCAB,),
        "source_positions.weight": (64, 15),
        "encoder.norm.weight": (15,),
        first + "attention.query_key_value.weight": (48, 15),
        first + "attention.query_key_value.bias": (48,),
        first + "attention.output.weight": (15, 16),
        first + "attention.output.bias": (15,),
        first + "cross_attention.query.weight": (16, 15),
        first + "cross_attention.key_value.weight": (32, 15),
        first + "feed_forward.inner.weight": (24, 15),
        first + "feed_forward.outer.weight": (15, 24),
        first + "feed_forward.outer.bias": (15,),
        first + "feed_forward_residual.norm.weight": (15,),
    }
    assert expected.items() <= shapes.items()
    assert model.scale == 4.0


def test_a_wide_streams_projections_are_each_initialised_whole() -> None:
    # Xavier's bound of each (rows, columns) block; a wrong split would use another one.
    model = model_of(d_stream=40, heads=2)
    attention = model.encoder.layers[0].attention
    bound = math.sqrt(6 / (16 + 40))
    for weight in (attention.query_key_value.weight, attention.output.weight):
        assert 0.95 * bound < float(weight.detach().abs().max()) <= bound


@pytest.mark.parametrize("tie", ["all", "decoder", "none"])
def test_the_heads_bias_starts_at_zero_and_is_added(tie: str) -> None:
    model = model_of(tie=tie, head_bias=True)
    plain = model_of(tie=tie)
    source, target = batch()
    assert torch.equal(model.head.bias, torch.zeros(VOCAB))
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k != "head.bias"})
    with torch.no_grad():
        expected = plain(source, target)
        assert torch.equal(model(source, target), expected)
        model.head.bias.copy_(torch.arange(float(VOCAB)))
        torch.testing.assert_close(model(source, target), expected + torch.arange(float(VOCAB)))


@pytest.mark.parametrize("tie", ["all", "decoder", "none"])
@pytest.mark.parametrize("d_stream", [None, 15])
def test_fixnorm_gives_every_vector_one_length(tie: str, d_stream: int | None) -> None:
    model = model_of(tie=tie, embedding_norm="fixnorm", d_stream=d_stream).double()
    with torch.no_grad():
        for parameter in {model.source_embedding.weight, model.target_embedding.weight}:
            parameter.mul_(torch.rand(VOCAB, 1) * 9 + 0.1)
    entered: list[Tensor] = []
    for positions in (model.source_positions, model.target_positions):
        positions.register_forward_pre_hook(lambda _, args: entered.append(args[0].detach()))
    source, target = batch([(5, 5), (5, 5)])
    model(source, target)
    assert len(entered) == 2
    for x, table, ids in zip(
        entered, (model.source_embedding, model.target_embedding), (source, target), strict=True
    ):
        rows = table.weight.detach()[ids]
        lengths = rows.square().sum(-1, keepdim=True).sqrt()
        torch.testing.assert_close(x, 4.0 * rows / lengths)
    matrix = model.output_matrix().detach()
    lengths = matrix.square().sum(-1).sqrt()
    if tie == "none":
        assert matrix.data_ptr() == model.head.weight.data_ptr()
    else:
        torch.testing.assert_close(lengths, torch.ones_like(lengths))


@pytest.mark.parametrize("tie", ["all", "decoder", "none"])
def test_a_normalised_output_row_never_starts_at_zero(tie: str) -> None:
    model = model_of(tie=tie, embedding_norm="fixnorm")
    zero = {
        name: not bool(getattr(model, name).weight[PAD].any())
        for name in ("source_embedding", "target_embedding")
    }
    assert zero == {"source_embedding": tie != "all", "target_embedding": tie == "none"}
    source, target = batch()
    model(source, target).square().mean().backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert float(parameter.grad.abs().max()) < 100


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"placement": "post", "zero_mean": "stream"}, "zero_mean stream needs model.placement"),
        ({"placement": "post", "zero_mean": "embeddings"}, "zero_mean embeddings needs"),
        ({"zero_mean": "all"}, "zero_mean"),
        ({"d_stream": 0}, "d_stream"),
        ({"embedding_norm": "fixnrm"}, "unknown norm 'fixnrm'"),
        ({"embedding_norm": "rmsnorm:eps=0"}, "eps must be > 0"),
    ],
)
@pytest.mark.parametrize("build", [model_of, causal_of])
def test_wrong_options_are_named(build: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**changes)
