"""Exact conversions of this package's models: encoder-decoder and decoder-only."""

import copy
from typing import Any

import pytest
import torch
from scrambled import relative_error, scramble
from torch import Tensor, nn

from normtrain.convert import streams_of, to_crmsnorm, to_layernorm, to_rmsnorm
from normtrain.errors import UserError
from normtrain.models import CausalLM, Seq2Seq, norm_sites
from normtrain.models.config import CausalLMConfig, Seq2SeqConfig

VOCAB, WIDTH = 23, 12
CONVERSIONS = {"rmsnorm": to_rmsnorm, "crmsnorm": to_crmsnorm}


SIZES: dict[str, Any] = {"d_model": WIDTH, "heads": 2, "d_ff": 20, "dropout": 0.1}


def seq2seq(norm: str = "layernorm", rules: Any = (), **options: Any) -> nn.Module:
    sizes = SIZES | {"encoder_layers": 2, "decoder_layers": 2, "max_positions": 16} | options
    return Seq2Seq(Seq2SeqConfig(norm=norm, norm_rules=tuple(rules), **sizes), VOCAB)


def causal(norm: str = "layernorm", rules: Any = (), **options: Any) -> nn.Module:
    sizes = SIZES | {"layers": 2, "max_positions": 16, "activation": "relu"} | options
    if "tie" in sizes:
        sizes["tie"] = sizes["tie"] != "none"
    return CausalLM(CausalLMConfig(norm=norm, norm_rules=tuple(rules), **sizes), VOCAB)


BUILDERS = {"seq2seq": seq2seq, "causal": causal}
VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "untied": {"tie": "none"},
    "tied-decoder": {"tie": "decoder"},
    "learned-positions": {"positions": "learned"},
    "sinusoidal-positions": {"positions": "sinusoidal"},
    "untied-learned": {"tie": "none", "positions": "learned"},
    "no-gain": {"norm": "layernorm-simple"},
    "no-norm-bias": {"norm": "layernorm:bias=false"},
    "large-eps": {"norm": "layernorm:eps=0.3"},
    "eps-outside": {"norm": "layernorm:eps=0.3,eps_mode=outside"},
    "detached": {"norm": "detachnorm"},
    "mixed": {"rules": [("*.feed_forward_residual.norm", "layernorm-simple")]},
    "no-biases": {"bias": False},
    "gated": {"activation": "swiglu"},
    "qk-norm": {"qk_norm": "rmsnorm"},
    "qk-layernorm": {"qk_norm": "layernorm"},
    "embedding-norm": {"embedding_norm": "fixnorm"},
    "embedding-norm-untied": {"embedding_norm": "fixnorm", "tie": "none"},
    "head-bias": {"head_bias": True},
    "narrow-stream": {"d_stream": 9},
    "sandwich": {"placement": "sandwich", "rules": [("*.norm_out", "layernorm-simple")]},
}
# Rotary is the default of a causal model, so all of the above have it too where none are named.
CAUSAL_ONLY: dict[str, dict[str, Any]] = {
    "grouped": {"heads": 4, "kv_heads": 2, "positions": "learned"},
    "no-positions": {"positions": "none"},
    "rotary-grouped": {"heads": 2, "kv_heads": 1, "rotary_base": 500.0},
    "rotary-narrow-untied": {"d_stream": 9, "kv_heads": 1, "tie": "none", "qk_norm": "rmsnorm"},
    "nothing-added-sandwich": VARIANTS["sandwich"] | {"positions": "none", "kv_heads": 1},
    "gelu-tanh": {"activation": "gelu-tanh", "bias": False},
}


def tokens(rows: int = 3, time: int = 7) -> Tensor:
    ids = torch.randint(4, VOCAB, (rows, time), generator=torch.Generator().manual_seed(1))
    ids[0, -2:] = 0  # padding
    return ids


@torch.no_grad()
def outputs(model: nn.Module) -> Tensor:
    if isinstance(model, Seq2Seq):
        return model(tokens(), tokens(time=5))
    return model(tokens())


def pair(
    builder: str, dtype: torch.dtype = torch.float64, **options: Any
) -> tuple[nn.Module, Tensor]:
    """A scrambled model and its outputs."""
    model = scramble(BUILDERS[builder](**options)).to(dtype)
    return model, outputs(model)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("to", CONVERSIONS)
@pytest.mark.parametrize(
    ("builder", "variant"),
    [(b, v) for b in BUILDERS for v in VARIANTS] + [("causal", v) for v in CAUSAL_ONLY],
)
def test_outputs_are_those_of_the_original(
    builder: str, variant: str, to: str, dtype: torch.dtype, limit: float
) -> None:
    model, expected = pair(builder, dtype, **(VARIANTS | CAUSAL_ONLY)[variant])
    report = CONVERSIONS[to](model)
    assert relative_error(outputs(model), expected) <= limit
    assert set(report.replaced) == {
        name for stream in streams_of(model) for name in (*stream.norms, *stream.outer_norms)
    }
    kinds = {type(model.get_submodule(name)).__name__ for name in report.replaced}
    assert kinds == {{"rmsnorm": "RMSNorm", "crmsnorm": "CRMSNorm"}[to]}
    sites = norm_sites(model)
    assert [str(model.norms.spec_for(s)) for s in sites] == [
        model.get_submodule(s).spec for s in sites
    ]


@pytest.mark.parametrize("builder", BUILDERS)
def test_crmsnorm_after_rmsnorm_and_back_again(builder: str) -> None:
    model, expected = pair(builder)
    to_rmsnorm(model)
    back, narrow = copy.deepcopy(model), model
    to_crmsnorm(narrow)
    assert relative_error(outputs(narrow), expected) <= 1e-10
    report = to_layernorm(back)
    assert relative_error(outputs(back), expected) <= 1e-10
    assert {new for _, new in report.replaced.values()} == {"layernorm"}
    assert back.zero_mean == "none"
    to_rmsnorm(back)
    assert relative_error(outputs(back), expected) <= 1e-10


@pytest.mark.parametrize("placement", ["pre", "sandwich"])
@pytest.mark.parametrize("to", ["rmsnorm", "crmsnorm", "layernorm"])
@pytest.mark.parametrize("builder", BUILDERS)
def test_models_trained_with_a_zero_mean_convert(builder: str, to: str, placement: str) -> None:
    rules = [("*.norm_out", "rmsnorm:affine=false")] if placement == "sandwich" else []
    model, expected = pair(
        builder, norm="rmsnorm:bias=true", rules=rules, placement=placement, zero_mean="stream"
    )
    {**CONVERSIONS, "layernorm": to_layernorm}[to](model)
    assert relative_error(outputs(model), expected) <= 1e-10
    residuals = [m for m in model.modules() if hasattr(m, "recentre")]
    assert residuals
    assert not any(m.recentre for m in residuals)


@pytest.mark.parametrize("to", CONVERSIONS)
def test_decoding_step_by_step_agrees_too(to: str) -> None:
    model = scramble(seq2seq()).double()
    assert isinstance(model, Seq2Seq)
    CONVERSIONS[to](model)
    source, target = tokens(), tokens(time=5)
    with torch.no_grad():
        expected = model(source, target)
        state = model.start(source, beams=1, max_length=5)
        for t in range(5):
            step = model.step(target[:, t], state)
            torch.testing.assert_close(step, expected[:, t].float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("placement", ["pre", "sandwich"])
@pytest.mark.parametrize("positions", ["rotary", "learned", "sinusoidal", "none"])
@pytest.mark.parametrize("to", CONVERSIONS)
def test_a_causal_model_goes_on_decoding(to: str, positions: str, placement: str) -> None:
    rules = [("*.norm_out", "layernorm-simple")] if placement == "sandwich" else []
    model, expected = pair(
        "causal", positions=positions, placement=placement, kv_heads=1, rules=rules
    )
    assert isinstance(model, CausalLM)
    CONVERSIONS[to](model)
    table = to == "crmsnorm" and positions == "sinusoidal"
    assert model.position_kind == ("learned" if table else positions)
    with torch.no_grad():
        state = model.start(3)
        parts = [model.prefill(part, state) for part in tokens().split([3, 1, 3], 1)]
    assert relative_error(torch.cat(parts, 1), expected) <= 1e-10


@pytest.mark.parametrize("tie", ["all", "none"])
def test_a_narrowed_causal_model_is_one_that_can_be_built(tie: str) -> None:
    """Its scale comes with its embedding norm, so both are in the table afterwards."""
    model, expected = pair("causal", embedding_norm="fixnorm", tie=tie)
    to_crmsnorm(model)
    norm = str(model.norms.spec_for("decoder.norm"))
    rebuilt = causal(norm, tie="none", d_stream=WIDTH - 1, head_bias=True).double().eval()
    rebuilt.load_state_dict(model.state_dict())
    assert relative_error(outputs(rebuilt), expected) <= 1e-10


def test_parameters_keep_their_identity_where_their_shape_stays() -> None:
    """An optimizer built before goes on working after to_rmsnorm."""
    model = scramble(seq2seq())
    before = {name: id(p) for name, p in model.named_parameters()}
    to_rmsnorm(model)
    assert {name: id(p) for name, p in model.named_parameters()} == before
    head, embedding = model.head.weight, model.target_embedding.weight
    assert head is embedding


def test_crmsnorm_stores_one_feature_fewer_and_no_gains() -> None:
    model = scramble(seq2seq(tie="all"))
    to_crmsnorm(model)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes["target_embedding.weight"] == (VOCAB, WIDTH - 1)
    assert shapes["head.weight"] == (VOCAB, WIDTH - 1)
    assert shapes["head.bias"] == (VOCAB,)
    assert shapes["encoder.layers.0.attention.output.weight"] == (WIDTH - 1, WIDTH)
    assert shapes["encoder.layers.0.attention.query_key_value.weight"] == (3 * WIDTH, WIDTH - 1)
    assert not any(".norm." in name for name in shapes)
    assert all(p.requires_grad and p.is_leaf for p in model.parameters())


def test_the_report_says_what_was_done() -> None:
    model = scramble(seq2seq(qk_norm="rmsnorm", norm="detachnorm"))
    text = str(to_rmsnorm(model))
    assert "12 × detachnorm → rmsnorm:affine=false" in text
    assert "left alone" in text
    assert "encoder.layers.0.attention.q_norm" in text
    assert "constant in the backward" in text


def unchanged(model: nn.Module, before: dict[str, Tensor], norms: list[str]) -> bool:
    after = model.state_dict()
    return (
        list(after) == list(before)
        and all(torch.equal(after[k], before[k]) for k in before)
        and [type(m).__name__ for m in model.modules()] == norms
    )


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "post": ({"placement": "post"}, "encoder.layers.0.attention_residual", "post-norm"),
    "adanorm": ({"norm": "adanorm"}, "encoder.layers.0.attention_residual.norm", "quadratic"),
    "one-adanorm": (
        {"rules": [("decoder.norm", "adanorm:k=0.2")]},
        "decoder.norm (adanorm:k=0.2)",
        "quadratic",
    ),
    "rmsnorm": ({"norm": "rmsnorm"}, "encoder.layers.0.attention_residual.norm", "mean"),
    "one-rmsnorm": (
        {"rules": [("*.1.feed_forward_residual.norm", "rmsnorm")]},
        "encoder.layers.1.feed_forward_residual.norm",
        "mean",
    ),
    "prmsnorm": ({"norm": "prmsnorm"}, "norm (prmsnorm)", "mean"),
    "scalenorm": ({"norm": "scalenorm"}, "norm (scalenorm)", "mean"),
    "dyt": ({"norm": "dyt"}, "norm (dyt)", "mean"),
    "derf": ({"norm": "derf"}, "norm (derf)", "mean"),
    "crmsnorm": ({"norm": "crmsnorm"}, "norm (crmsnorm)", "where conversions end"),
    "l1norm": ({"norm": "l1norm"}, "norm (l1norm)", "another statistic"),
    "linfnorm": ({"norm": "linfnorm"}, "norm (linfnorm)", "another statistic"),
    "topknorm": ({"norm": "topknorm"}, "norm (topknorm)", "another statistic"),
    "none": ({"norm": "none"}, "norm (none)", "does not normalize"),
    "sandwich": (
        {"placement": "sandwich"},
        "encoder.layers.0.attention_residual.norm_out",
        "gain that differs",
    ),
}


@pytest.mark.parametrize("to", CONVERSIONS)
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_exact_is_refused_and_left_alone(case: str, to: str) -> None:
    options, name, reason = REFUSED[case]
    model = scramble(seq2seq(**options))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    kinds = [type(m).__name__ for m in model.modules()]
    with pytest.raises(UserError) as failure:
        CONVERSIONS[to](model)
    assert name in str(failure.value)
    assert reason in str(failure.value)
    assert "\n" not in str(failure.value)
    assert unchanged(model, before, kinds)


def test_nothing_left_to_convert_is_an_error() -> None:
    model = scramble(seq2seq())
    to_rmsnorm(model)
    with pytest.raises(UserError, match="already"):
        to_rmsnorm(model)
    to_crmsnorm(model)
    with pytest.raises(UserError, match=r"crmsnorm:affine=false"):
        to_crmsnorm(model)


def test_back_conversion_wants_streams_without_a_mean() -> None:
    with pytest.raises(UserError, match="centres already"):
        to_layernorm(scramble(seq2seq()))
    with pytest.raises(UserError, match=r"encoder.layers.0.attention.output adds a mean"):
        to_layernorm(scramble(seq2seq(norm="rmsnorm")))
    model = scramble(seq2seq())
    to_rmsnorm(model)
    spoiled = copy.deepcopy(model)
    with torch.no_grad():
        spoiled.decoder.layers[1].feed_forward.outer.bias[3] += 0.01
    with pytest.raises(UserError, match=r"decoder.layers.1.feed_forward.outer adds a mean"):
        to_layernorm(spoiled)
    model.zero_mean = "none"
    with pytest.raises(UserError, match=r"source_embedding adds a mean"):
        to_layernorm(model)
