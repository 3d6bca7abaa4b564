"""``zero_mean``: RMSNorm that trains as LayerNorm does (Jiang et al. 2023, section 3).

Both models are trained side by side in float64 from the same weights with the same dropout masks.
"""

from typing import Any

import pytest
import torch
from tiny import batch, causal_of, model_of, perturb_norms
from torch import Tensor

from normtrain.models import CausalLM, Seq2Seq
from normtrain.models.blocks import Residual
from normtrain.tasks.loss import training_loss
from normtrain.tasks.optimizers import parameter_groups

Model = Seq2Seq | CausalLM
RMS = "rmsnorm:bias=true"
SIZES = {"d_model": 8, "heads": 2, "d_ff": 12, "encoder_layers": 1, "decoder_layers": 2}
DROPOUTS = {"dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.1}
KINDS = {"seq2seq": model_of, "causal": causal_of}


def build(kind: str, norm: str, zero_mean: str, dropped: bool, **changes: Any) -> Model:
    dropouts: dict[str, Any] = DROPOUTS | {"word_dropout": 0.2} if dropped else {}
    model = KINDS[kind](norm=norm, zero_mean=zero_mean, **(SIZES | dropouts | changes)).double()
    perturb_norms(model)
    return model


def losses(model: Model, steps: int = 12) -> Tensor:
    """Train with AdamW, weight decay and label smoothing; the loss of every step."""
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1), lr=0.01, betas=(0.9, 0.98))
    torch.manual_seed(3)  # the same dropout masks for every model
    source, target = batch()
    found = []
    for _ in range(steps):
        hidden = model.hidden(*((source, target) if isinstance(model, Seq2Seq) else (target,)))
        wanted = target.roll(-1, 1)
        loss = training_loss(
            hidden, model.output_matrix(), wanted, 0.1, model.head.bias, ignore_index=0
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.detach())
    return torch.stack(found)


def distance(a: Tensor, b: Tensor) -> float:
    return float(((a - b) / b).abs().max())


@pytest.mark.extended
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("placement", ["pre", "sandwich"])
@pytest.mark.parametrize(("tie", "positions"), [("all", "sinusoidal"), ("none", "learned")])
def test_rmsnorm_on_a_recentred_stream_trains_as_layernorm(
    kind: str, dropped: bool, placement: str, tie: str, positions: str
) -> None:
    changes: dict[str, Any] = {"placement": placement, "tie": tie, "positions": positions}
    expected = losses(build(kind, "layernorm", "none", dropped, **changes))
    found = losses(build(kind, RMS, "stream", dropped, **changes))
    assert distance(found, expected) <= 1e-10
    assert float(expected[-1]) < float(expected[0]) - 0.3  # it did train
    for less in ("none", "embeddings"):
        assert distance(losses(build(kind, RMS, less, dropped, **changes), 2), expected[:2]) > 1e-6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "changes",
    [
        {"tie": "all", "positions": "learned", "head_bias": True},
        {"tie": "none", "positions": "sinusoidal", "activation": "swiglu", "d_stream": 11},
        {"tie": "all", "embedding_norm": "layernorm", "qk_norm": "rmsnorm"},
    ],
)
def test_the_other_options_keep_them_equal(kind: str, changes: dict[str, Any]) -> None:
    expected = losses(build(kind, "layernorm", "none", True, **changes))
    assert distance(losses(build(kind, RMS, "stream", True, **changes)), expected) <= 1e-10


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("placement", ["pre", "sandwich"])
def test_the_stream_has_no_mean_anywhere(kind: str, placement: str) -> None:
    model = build(kind, RMS, "stream", True, placement=placement, d_stream=9)
    seen: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, Residual):
            module.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.decoder.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    losses(model, 1)
    assert len(seen) == (9 if kind == "seq2seq" else 5)
    for x in seen:
        assert float(x.detach().mean(-1).abs().max()) < 1e-14
        assert float(x.detach().abs().max()) > 0.01  # the causal model starts small


@pytest.mark.parametrize("kind", KINDS)
def test_both_attributes_are_read_at_every_call(kind: str) -> None:
    wanted = build(kind, RMS, "stream", False).eval()
    model = build(kind, RMS, "none", False).eval()
    source, target = batch()
    inputs = (source, target) if kind == "seq2seq" else (target,)
    with torch.no_grad():
        assert not torch.allclose(model(*inputs), wanted(*inputs))
        model.zero_mean = "embeddings"
        embeddings = build(kind, RMS, "embeddings", False).eval()
        assert torch.equal(model(*inputs), embeddings(*inputs))
        for module in model.modules():
            if isinstance(module, Residual):
                module.recentre = True
        assert torch.equal(model(*inputs), wanted(*inputs))
