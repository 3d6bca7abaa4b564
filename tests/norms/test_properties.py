"""Identities between the norms that the papers state, and what every norm class is."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from variants import (
    NAMES,
    SPECS,
    build,
    gradient,
    gradients,
    has_parameters,
    leaf,
    name_of,
    rows,
    sharp,
)

from normtrain.norms import NormSpec, build_norm, norm_info, norm_names

MODES = ["inside", "outside"]


def same(norm: nn.Module, other: nn.Module, x: Tensor, factor: float = 1.0) -> None:
    """The first is the second times the factor, output and every shared gradient alike."""
    upstream = torch.randn_like(x)
    torch.testing.assert_close(norm(x), factor * other(x), rtol=1e-10, atol=1e-12)
    have, want = gradients(norm, x, upstream), gradients(other, x, upstream)
    assert set(have) == set(want)
    for key in have:
        torch.testing.assert_close(have[key], factor * want[key], rtol=1e-9, atol=1e-11)


def copy_of(norm: nn.Module, other: nn.Module) -> nn.Module:
    """The first with the second's parameters."""
    norm.load_state_dict(other.state_dict(), strict=True)
    return norm


@pytest.mark.parametrize("mode", MODES)
def test_all_features_make_prmsnorm_rmsnorm(mode: str) -> None:
    rms = build(f"rmsnorm:eps_mode={mode}", 10)
    same(copy_of(build(f"prmsnorm:p=1,eps_mode={mode}", 10), rms), rms, rows(4, 10))


@pytest.mark.parametrize("mode", MODES)
def test_rmsnorm_of_centred_rows_is_layernorm(mode: str) -> None:
    """At equal eps; and LayerNorm's gradient is RMSNorm's, centred."""
    x, upstream = rows(4, 10), rows(4, 10)
    x = x - x.mean(-1, keepdim=True)
    layer = build(f"layernorm:eps_mode={mode}", 10)
    rms = copy_of(build(f"rmsnorm:bias=true,eps_mode={mode}", 10), layer)
    torch.testing.assert_close(rms(x), layer(x), rtol=1e-12, atol=1e-12)
    have, want = gradients(rms, x, upstream), gradients(layer, x, upstream)
    have["x"] = have["x"] - have["x"].mean(-1, keepdim=True)
    for key in want:
        torch.testing.assert_close(have[key], want[key], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_rmsnorm_after_centring_is_layernorm(mode: str) -> None:
    """The same as a function of any row, gradients too."""
    layer = build(f"layernorm:eps_mode={mode}", 10)
    rms = copy_of(build(f"rmsnorm:bias=true,eps_mode={mode}", 10), layer)

    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = rms.weight, rms.bias

        def forward(self, x: Tensor) -> Tensor:
            return rms(x - x.mean(-1, keepdim=True))

    same(Centred(), layer, rows(4, 10))


@pytest.mark.parametrize("mode", MODES)
def test_adanorm_without_slope_is_scaled_layernorm_simple(mode: str) -> None:
    ada = build_norm(f"adanorm:C=2,k=0,eps_mode={mode}", 10)
    same(ada, build_norm(f"layernorm-simple:eps_mode={mode}", 10), rows(4, 10), 2.0)


def test_adanorm_rows_have_the_mean_minus_k_times_c() -> None:
    z = build_norm("adanorm:C=1.5,k=0.2,eps=1e-12", 64)(rows(6, 64) * 3 + 1)
    torch.testing.assert_close(z.mean(-1), torch.full_like(z[:, 0], -0.3))


def test_adanorm_gradient_is_layernorms_of_the_factored_gradient() -> None:
    x, upstream = rows(4, 10), rows(4, 10)
    simple = build_norm("layernorm-simple", 10)
    expected = gradient(simple, x, upstream * 1.5 * (1 - 0.2 * simple(x)))
    actual = gradient(build_norm("adanorm:C=1.5,k=0.2", 10), x, upstream)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


def test_scalenorm_is_rmsnorm_with_one_gain_for_all() -> None:
    """g x / ||x|| is RMSNorm with the gain g / sqrt(d); so is the gradient by g."""
    scale, rms = sharp("scalenorm", 10), sharp("rmsnorm", 10)
    g = scale.weight.detach()
    assert g.shape == (1,)
    with torch.no_grad():
        rms.weight.copy_(g / math.sqrt(10))
    x, upstream = rows(4, 10), rows(4, 10)
    torch.testing.assert_close(scale(x), rms(x), rtol=1e-12, atol=1e-12)
    have, want = gradients(scale, x, upstream), gradients(rms, x, upstream)
    torch.testing.assert_close(have["x"], want["x"], rtol=1e-10, atol=1e-12)
    total = want["weight"].sum(0, keepdim=True) / math.sqrt(10)
    torch.testing.assert_close(have["weight"], total, rtol=1e-10, atol=1e-12)


def test_scalenorm_starts_as_rmsnorm() -> None:
    x = rows(4, 10)
    scale = build_norm("scalenorm", 10, eps=1e-30, dtype=torch.float64)
    torch.testing.assert_close(scale(x), build_norm("rmsnorm", 10, eps=1e-30)(x))


def test_fixnorm_times_the_root_of_d_is_rmsnorm() -> None:
    fix, x = build_norm("fixnorm", 10, eps=1e-30), rows(4, 10)
    rms = build_norm("rmsnorm", 10, eps=1e-30, dtype=torch.float64)
    rms.weight.requires_grad_(False)
    torch.testing.assert_close(fix(x).norm(dim=-1), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(fix(x) * math.sqrt(10), rms(x), rtol=1e-12, atol=1e-12)
    g = rows(4, 10)
    have, want = gradient(fix, x, g) * math.sqrt(10), gradient(rms, x, g)
    torch.testing.assert_close(have, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["fixnorm", "scalenorm"])
@pytest.mark.parametrize("length", [0.5, 2.0])
def test_short_rows_are_divided_by_eps(name: str, length: float) -> None:
    norm, x = build(name, 10, eps=1.0), rows(4, 10)
    x = x / x.norm(dim=-1, keepdim=True) * length
    g = norm.weight.detach() if name == "scalenorm" else 1.0
    torch.testing.assert_close(norm(x), g * x / max(1.0, length), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dim", [2, 3, 10])
def test_crmsnorm_is_layernorm_without_the_last_feature(dim: int, mode: str) -> None:
    """On centred rows, of which CRMSNorm stores all features but the last."""
    layer = build(f"layernorm:eps_mode={mode}", dim)
    stored = build(f"crmsnorm:bias=true,eps_mode={mode}", dim - 1)
    with torch.no_grad():
        stored.weight.copy_(layer.weight[:-1])
        stored.bias.copy_(layer.bias[:-1])
    c, upstream = rows(4, dim - 1), rows(4, dim - 1)
    whole = torch.cat((c, -c.sum(-1, keepdim=True)), dim=-1)
    torch.testing.assert_close(stored(c), layer(whole)[:, :-1], rtol=1e-12, atol=1e-12)

    # the dropped feature depends on the stored ones: d/dc = d/dx of the first - d/dx of the last
    padded = torch.cat((upstream, torch.zeros(4, 1, dtype=torch.float64)), dim=-1)
    have, want = gradients(stored, c, upstream), gradients(layer, whole, padded)
    by_x = want["x"][:, :-1] - want["x"][:, -1:]
    torch.testing.assert_close(have["x"], by_x, rtol=1e-9, atol=1e-11)
    for key in ("weight", "bias"):
        torch.testing.assert_close(have[key], want[key][:-1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("detach", ["mean", "std", "both"])
def test_detachnorm_is_layernorm_simple_forward(detach: str, mode: str) -> None:
    norm = build_norm("detachnorm", 10, detach=detach, eps_mode=mode)
    other, x = build_norm("layernorm-simple", 10, eps_mode=mode), rows(4, 10)
    torch.testing.assert_close(norm(x), other(x), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(gradient(norm, x, x), gradient(other, x, x), rtol=0.01)


@pytest.mark.parametrize("dim", [2, 5, 10])
def test_the_one_largest_deviation_is_the_maximum(dim: int) -> None:
    largest = build("linfnorm", dim)
    same(copy_of(build("topknorm:k=1", dim), largest), largest, rows(4, dim))


def l_inf_constant(n: int) -> float:
    """(1 + sqrt(pi ln 4)) / sqrt(8 ln n), of Hoffer et al. 2018."""
    return (1 + math.sqrt(math.pi * math.log(4))) / math.sqrt(8 * math.log(n))


@pytest.mark.parametrize("dim", [2, 5, 10])
def test_all_deviations_are_l1norm_but_for_the_constant(dim: int) -> None:
    """Their ratio is C_L1 / C_inf(n), as the authors' code uses C_inf(n) whatever k is."""
    one, top = sharp("l1norm:bias=false", dim), sharp(f"topknorm:k={dim},bias=false", dim)
    same(copy_of(top, one), one, rows(4, dim), math.sqrt(math.pi / 2) / l_inf_constant(dim))
    assert torch.equal(sharp("topknorm:k=99", dim)(x := rows(3, dim)).isfinite(), x.isfinite())


@pytest.mark.parametrize("name", ["layernorm", "layernorm-simple", "rmsnorm", "l1norm"])
def test_gaussian_rows_come_out_with_unit_scale(name: str) -> None:
    y = build_norm(name, 4096)(torch.randn(8, 4096) * 3)
    assert y.square().mean(-1).sqrt().tolist() == pytest.approx([1.0] * 8, rel=0.05)


def test_the_constant_of_the_maximum_is_no_unbiased_one() -> None:
    """The mean of the two bounds of E[max]: sigma comes out 1.44 times too large at n = 4096."""
    y = build_norm("linfnorm", 4096)(torch.randn(64, 4096) * 3)
    assert (1 / y.square().mean(-1).sqrt()).mean().item() == pytest.approx(1.438, rel=0.04)


def test_norms_compute_different_things() -> None:
    """So that the identities above can fail: but for these two, all variants differ."""
    x, upstream = rows(4, 32), rows(4, 32)
    seen: dict[str, Tensor] = {}
    equal = {("adanorm:k=0", "layernorm-simple")}
    for spec in (s for s in SPECS if "bias" not in s and "affine" not in s and "p=1" not in s):
        norm = build(spec, 32)
        g = torch.cat((norm(x), gradient(norm, x, upstream)))
        for other, theirs in seen.items():
            if tuple(sorted((spec, other))) not in equal:
                assert not torch.allclose(g, theirs, rtol=1e-7, atol=1e-9), (spec, other)
        seen[spec] = g


numbers = st.floats(-100, 100, allow_nan=False).map(lambda v: round(v, 3))


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    """Rows of some spread: all norms are discontinuous in the limit at constant or zero rows."""
    dim = draw(st.integers(2, 9))
    row = st.lists(numbers, min_size=dim, max_size=dim)
    spread = row.filter(lambda r: max(r) - min(r) > 1 and abs(r[0]) > 1)
    return torch.tensor(draw(st.lists(spread, min_size=1, max_size=4)), dtype=torch.float64)


SCALE_FREE = [name for name in NAMES if "scale" in norm_info(name).invariances]
CENTRING = [name for name in NAMES if "shift" in norm_info(name).invariances]


@pytest.mark.parametrize("name", SCALE_FREE)
@settings(max_examples=20, deadline=None)
@given(x=matrices(), scale=st.floats(1e-3, 1e3))
def test_scaling_a_row_changes_nothing_as_eps_vanishes(name: str, x: Tensor, scale: float) -> None:
    norm = build_norm(name, x.shape[-1], eps=1e-30, dtype=torch.float64)
    torch.testing.assert_close(norm(x * scale), norm(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CENTRING)
@settings(max_examples=20, deadline=None)
@given(x=matrices(), shift=st.floats(-1e3, 1e3))
def test_shifting_a_row_changes_nothing(name: str, x: Tensor, shift: float) -> None:
    norm = build_norm(name, x.shape[-1], dtype=torch.float64)
    torch.testing.assert_close(norm(x + shift), norm(x), rtol=1e-8, atol=1e-8)


def test_the_variants_here_are_of_every_registered_norm() -> None:
    assert set(norm_names()) == set(NAMES)
    for spec in SPECS:  # and none of them twice, under another spelling
        assert str(NormSpec.parse(spec)) == build_norm(spec, 8).spec
    assert len({build_norm(spec, 8).spec for spec in SPECS}) >= len(SPECS) - 2


@pytest.mark.parametrize("spec", SPECS)
def test_the_class_says_what_it_is(spec: str) -> None:
    norm = build_norm(spec, 4)
    assert not isinstance(norm, nn.LayerNorm | nn.RMSNorm)
    assert norm.dim == 4
    assert NormSpec.parse(str(norm.spec)).name == name_of(spec)
    assert str(NormSpec.parse(str(norm.spec))) == norm.spec
    assert "4" in repr(norm)
    assert bool(list(norm.parameters())) == has_parameters(spec)
    assert not list(norm.buffers())
    x = leaf(rows(3, 4))
    assert norm(x.float()).shape == x.shape


def test_sharded_classes_keep_their_spec() -> None:
    """FSDP2 replaces a module's class by a subclass of its own making."""
    norm = build_norm("prmsnorm:p=0.5", 8)
    norm.__class__ = type("FSDPPRMSNorm", (type(norm),), {})
    assert norm.spec == "prmsnorm:p=0.5"
