"""Identities between the norms that the papers state, and what every norm class is."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from variants import (
    NAMES,
    SPECS,
    build,
    gradients,
    has_parameters,
    leaf,
    name_of,
    rows,
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
