"""What the papers say must hold: identities, invariances, and what a module must survive."""

from __future__ import annotations

import copy
import io
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from normtrain.norms import AdaNorm, NormSpec, build_norm, norm_names
from normtrain.norms.base import NormBase

WITH_EPS = [name for name in norm_names() if name != "none"]
SPECS = [*norm_names(), "rmsnorm:bias=true", "prmsnorm:p=0.5", "layernorm:eps_mode=outside"]


def double(spec: str, dim: int) -> nn.Module:
    norm = build_norm(spec, dim, dtype=torch.float64)
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    return norm


def rows(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def gradient(norm: nn.Module, x: Tensor, upstream: Tensor) -> Tensor:
    x = x.detach().clone().requires_grad_()
    norm(x).backward(upstream)
    assert x.grad is not None
    return x.grad


@pytest.mark.parametrize("spec", [s for s in SPECS if s != "adanorm"])
def test_gradcheck_twice(spec: str) -> None:
    norm = double(spec, 5)
    names = [name for name, _ in norm.named_parameters()]

    def call(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(norm, dict(zip(names, values, strict=True)), (x,))

    inputs = (rows(3, 5), *(p.detach().clone() for p in norm.parameters()))
    inputs = tuple(t.requires_grad_() for t in inputs)
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


def test_second_gradient_of_adanorm_keeps_the_factor_constant() -> None:
    x, upstream = rows(3, 5).requires_grad_(), rows(3, 5)
    y = build_norm("layernorm-simple", 5)(x)
    by_hand = 2.0 * (1 - 0.3 * y.detach()) * y
    z = AdaNorm(5, C=2.0, k=0.3)(x)
    for result in (z, by_hand):
        (first,) = torch.autograd.grad(result, x, upstream, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
        if result is z:
            kept = first, second
    torch.testing.assert_close(kept[0], first)
    torch.testing.assert_close(kept[1], second)


def test_all_features_make_prmsnorm_rmsnorm() -> None:
    full, rms = double("prmsnorm:p=1", 10), double("rmsnorm", 10)
    full.load_state_dict(rms.state_dict())
    x, upstream = rows(4, 10), rows(4, 10)
    assert torch.equal(full(x), rms(x))
    assert torch.equal(gradient(full, x, upstream), gradient(rms, x, upstream))


def test_rmsnorm_of_centred_rows_is_layernorm() -> None:
    x = rows(4, 10)
    x = x - x.mean(-1, keepdim=True)
    torch.testing.assert_close(build_norm("rmsnorm", 10)(x), build_norm("layernorm-simple", 10)(x))


def test_adanorm_without_slope_is_scaled_layernorm_simple() -> None:
    x, upstream = rows(4, 10), rows(4, 10)
    ada, simple = build_norm("adanorm:C=2,k=0", 10), build_norm("layernorm-simple", 10)
    torch.testing.assert_close(ada(x), 2 * simple(x))
    torch.testing.assert_close(
        gradient(ada, x, upstream), gradient(simple, x, upstream) * 2, rtol=1e-9, atol=1e-12
    )


def test_adanorm_rows_have_the_mean_minus_k_times_c() -> None:
    z = build_norm("adanorm:C=1.5,k=0.2,eps=1e-12", 64)(rows(6, 64) * 3 + 1)
    torch.testing.assert_close(z.mean(-1), torch.full_like(z[:, 0], -0.3))


def test_adanorm_gradient_holds_the_factor_constant() -> None:
    x, upstream = rows(4, 10), rows(4, 10)
    simple = build_norm("layernorm-simple", 10)
    factor = 1.5 * (1 - 0.2 * simple(x))
    expected = gradient(simple, x, upstream * factor)
    actual = gradient(build_norm("adanorm:C=1.5,k=0.2", 10), x, upstream)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["layernorm", "layernorm-simple", "adanorm"])
def test_gradient_of_a_centring_norm_sums_to_zero(name: str) -> None:
    total = gradient(double(name, 10), rows(4, 10), rows(4, 10)).sum(-1)
    torch.testing.assert_close(total, torch.zeros_like(total))


numbers = st.floats(-100, 100, allow_nan=False).map(lambda v: round(v, 3))


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    """Rows of some spread: all norms are discontinuous in the limit at constant or zero rows."""
    dim = draw(st.integers(2, 9))
    row = st.lists(numbers, min_size=dim, max_size=dim)
    spread = row.filter(lambda r: max(r) - min(r) > 1 and abs(r[0]) > 1)
    return torch.tensor(draw(st.lists(spread, min_size=1, max_size=4)), dtype=torch.float64)


@pytest.mark.parametrize("name", WITH_EPS)
@settings(max_examples=25, deadline=None)
@given(x=matrices(), scale=st.floats(1e-3, 1e3))
def test_scaling_a_row_changes_nothing_as_eps_vanishes(name: str, x: Tensor, scale: float) -> None:
    norm = build_norm(name, x.shape[-1], eps=1e-30, dtype=torch.float64)
    torch.testing.assert_close(norm(x * scale), norm(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["layernorm", "layernorm-simple", "adanorm"])
@settings(max_examples=25, deadline=None)
@given(x=matrices(), shift=st.floats(-1e3, 1e3))
def test_shifting_a_row_changes_nothing(name: str, x: Tensor, shift: float) -> None:
    norm = build_norm(name, x.shape[-1], dtype=torch.float64)
    torch.testing.assert_close(norm(x + shift), norm(x), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["rmsnorm", "prmsnorm"])
def test_shifting_a_row_changes_what_does_not_centre(name: str) -> None:
    norm, x = build_norm(name, 8), torch.randn(3, 8)
    assert not torch.allclose(norm(x + 3), norm(x), atol=0.1)


@pytest.mark.parametrize("name", WITH_EPS)
def test_rows_do_not_touch_each_other(name: str) -> None:
    norm, x = double(name, 6), rows(4, 6)
    changed = x.clone()
    changed[2] = 1e3 * torch.arange(6)
    kept = [0, 1, 3]
    assert torch.equal(norm(changed)[kept], norm(x)[kept])


@pytest.mark.parametrize("spec", SPECS)
def test_copies_and_state_survive(spec: str) -> None:
    norm = double(spec, 8)
    x = rows(3, 8)
    twin = copy.deepcopy(norm)
    buffer = io.BytesIO()
    torch.save(norm.state_dict(), buffer)
    buffer.seek(0)
    loaded = build_norm(str(norm.spec), 8, dtype=torch.float64)
    loaded.load_state_dict(torch.load(buffer, weights_only=True), strict=True)
    assert torch.equal(twin(x), norm(x))
    assert torch.equal(loaded(x), norm(x))
    assert all(a is not b for a, b in zip(twin.parameters(), norm.parameters(), strict=True))


@pytest.mark.parametrize("spec", SPECS)
def test_meta_device_and_reset(spec: str) -> None:
    norm = build_norm(spec, 8, device="meta", dtype=torch.bfloat16)
    assert {p.device.type for p in norm.parameters()} <= {"meta"}
    assert {p.dtype for p in norm.parameters()} <= {torch.bfloat16}
    assert norm(torch.empty(2, 8, device="meta")).shape == (2, 8)
    real = norm.to_empty(device="cpu").float()
    cast(NormBase, real).reset_parameters()
    x = torch.randn(2, 8)
    assert torch.equal(real(x), build_norm(spec, 8)(x))


@pytest.mark.parametrize("spec", [*SPECS, "adanorm:C=2"])
def test_compiled_whole_and_equal(spec: str) -> None:
    torch._dynamo.reset()
    norm, x, upstream = double(spec, 8), rows(3, 8).requires_grad_(), rows(3, 8)
    compiled = torch.compile(norm, backend="eager", fullgraph=True)
    expected, actual = norm(x), compiled(x)
    torch.testing.assert_close(actual, expected)
    (want,) = torch.autograd.grad(expected, x, upstream)
    (got,) = torch.autograd.grad(actual, x, upstream)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("name", norm_names())
def test_the_class_says_it_is_a_norm(name: str) -> None:
    norm = build_norm(name, 4)
    assert "Norm" in type(norm).__name__
    assert not isinstance(norm, nn.LayerNorm | nn.RMSNorm)
    assert norm.dim == 4
    assert str(NormSpec.parse(str(norm.spec))) == norm.spec
    assert "4" in repr(norm)


@pytest.mark.parametrize("name", WITH_EPS)
def test_wrong_width_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"\(\.\.\., 6\)"):
        build_norm(name, 6)(torch.randn(3, 1))


def test_sharded_classes_keep_their_spec() -> None:
    """FSDP2 replaces a module's class by a subclass of its own making."""
    norm = build_norm("prmsnorm:p=0.5", 8)
    norm.__class__ = type("FSDPPRMSNorm", (type(norm),), {})
    assert norm.spec == "prmsnorm:p=0.5"
