"""Every norm against its formula, written here once more in float64 and differently."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from normtrain.norms import build_norm, norm_names


def _ln(x: Tensor, eps: float = 1e-5, outside: bool = False) -> Tensor:
    mu = x.sum(-1, keepdim=True) / x.shape[-1]
    var = ((x - mu) ** 2).sum(-1, keepdim=True) / x.shape[-1]
    return (x - mu) / ((var**0.5 + eps) if outside else (var + eps) ** 0.5)


def _rms(x: Tensor, k: int, eps: float = 1e-5, outside: bool = False) -> Tensor:
    square = (x[..., :k] ** 2).sum(-1, keepdim=True) / k
    return x / ((square**0.5 + eps) if outside else (square + eps) ** 0.5)


def _ada(x: Tensor, c: float, k: float, outside: bool = False) -> Tensor:
    y = _ln(x, outside=outside)
    return c * (y - k * y.detach() * y)


# spec: the formula from (x, weight, bias) in float64; d = 12 wherever a count of features enters
Formula = Callable[[Tensor, Tensor, Tensor], Tensor]
FORMULAS: dict[str, Formula] = {
    "layernorm": lambda x, w, b: _ln(x) * w + b,
    "layernorm:bias=false": lambda x, w, b: _ln(x) * w,
    "layernorm:eps=0.3": lambda x, w, b: _ln(x, 0.3) * w + b,
    "layernorm:eps=0.3,eps_mode=outside": lambda x, w, b: _ln(x, 0.3, True) * w + b,
    "layernorm-simple": lambda x, w, b: _ln(x),
    "layernorm-simple:eps_mode=outside": lambda x, w, b: _ln(x, outside=True),
    "rmsnorm": lambda x, w, b: _rms(x, 12) * w,
    "rmsnorm:bias=true": lambda x, w, b: _rms(x, 12) * w + b,
    "rmsnorm:eps=0.3": lambda x, w, b: _rms(x, 12, 0.3) * w,
    "rmsnorm:eps=0.3,eps_mode=outside": lambda x, w, b: _rms(x, 12, 0.3, True) * w,
    "prmsnorm": lambda x, w, b: _rms(x, 1) * w,
    "prmsnorm:p=0.25": lambda x, w, b: _rms(x, 3) * w,
    "prmsnorm:p=0.6,eps=0.3": lambda x, w, b: _rms(x, 8, 0.3) * w,
    "prmsnorm:p=0.25,eps_mode=outside": lambda x, w, b: _rms(x, 3, outside=True) * w,
    "adanorm": lambda x, w, b: _ada(x, 1.0, 0.1),
    "adanorm:C=2,k=0.3": lambda x, w, b: _ada(x, 2.0, 0.3),
    "adanorm:C=0.5,eps_mode=outside": lambda x, w, b: _ada(x, 0.5, 0.1, True),
    "none": lambda x, w, b: x,
}
DIM = 12


def randomise(module: nn.Module) -> None:
    """Give the parameters values a wrong formula can't hide behind."""
    for parameter in module.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)


def test_every_registered_norm_has_a_formula_here() -> None:
    assert {spec.partition(":")[0] for spec in FORMULAS} == set(norm_names())


@pytest.mark.parametrize("shape", [(5, DIM), (2, 3, DIM), (DIM,), (0, DIM), (2, 0, DIM)])
@pytest.mark.parametrize("spec", FORMULAS)
def test_forward_and_gradients(spec: str, shape: tuple[int, ...]) -> None:
    norm = build_norm(spec, DIM, dtype=torch.float64)
    randomise(norm)
    x = (torch.randn(shape, dtype=torch.float64) * 2 + 0.7).requires_grad_()
    gradient = torch.randn(shape, dtype=torch.float64)
    state = dict(norm.named_parameters())
    zero = torch.zeros(DIM, dtype=torch.float64)
    weight, bias = (
        state.get(name, zero).detach().clone().requires_grad_() for name in ("weight", "bias")
    )
    expected_x = x.detach().clone().requires_grad_()
    expected = FORMULAS[spec](expected_x, weight, bias)
    expected.backward(gradient)

    y = norm(x)
    y.backward(gradient)

    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(x.grad, expected_x.grad, rtol=1e-10, atol=1e-12)
    for name, leaf in (("weight", weight), ("bias", bias)):
        if name in state:
            torch.testing.assert_close(state[name].grad, leaf.grad, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(norm(x), y.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("own", [True, False], ids=["same-dtype", "float32-weights"])
@pytest.mark.parametrize("spec", FORMULAS)
def test_low_precision(spec: str, own: bool, dtype: torch.dtype) -> None:
    """One rounding of the float64 result, no more: statistics are taken in float32."""
    norm = build_norm(spec, DIM, dtype=dtype if own else torch.float32)
    randomise(norm)
    # an offset that costs a statistic in half precision its digits
    x = (torch.randn(64, DIM) + 8).to(dtype).requires_grad_()
    gradient = torch.randn(64, DIM).to(dtype)
    zero = torch.zeros(DIM)
    state = {name: p.detach().double() for name, p in norm.named_parameters()}
    weight, bias = state.get("weight", zero.double()), state.get("bias", zero.double())
    wide = x.detach().double().requires_grad_()
    expected = FORMULAS[spec](wide, weight, bias)
    expected.backward(gradient.double())

    y = norm(x)
    y.backward(gradient)

    assert y.dtype == dtype
    assert x.grad is not None
    assert x.grad.dtype == dtype
    near = max(torch.finfo(dtype).eps, 2e-5)
    torch.testing.assert_close(y.double(), expected, rtol=near, atol=near)
    torch.testing.assert_close(x.grad.double(), wide.grad, rtol=2 * near, atol=2 * near)
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in norm.parameters())


@pytest.mark.parametrize("name", norm_names())
def test_autocast_neither_widens_nor_narrows(name: str) -> None:
    norm = build_norm(name, 16)
    x = torch.randn(4, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert norm(x.bfloat16()).dtype == torch.bfloat16
        kept = x.clone().requires_grad_()
        inside = norm(kept)
        inside.backward(torch.ones_like(inside))
    outside = x.clone().requires_grad_()
    y = norm(outside)
    y.backward(torch.ones_like(y))
    assert torch.equal(inside, y)
    assert kept.grad is not None
    assert outside.grad is not None
    assert torch.equal(kept.grad, outside.grad)


@pytest.mark.parametrize("name", norm_names())
@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        (torch.float16, 0.0),
        (torch.float16, 6e4),
        (torch.float16, 6e-8),
        (torch.bfloat16, 0.0),
        (torch.bfloat16, 1e4),
        (torch.float32, 0.0),
        (torch.float32, 1e4),
        (torch.float32, 1e-4),
        (torch.float32, 3.0),
    ],
)
@pytest.mark.parametrize("mode", ["inside", "outside"])
@pytest.mark.parametrize("constant", [True, False], ids=["constant", "signs"])
def test_extreme_rows_stay_finite(
    name: str, dtype: torch.dtype, values: float, mode: str, constant: bool
) -> None:
    norm = build_norm(name, 7, **({} if name == "none" else {"eps_mode": mode}))
    x = torch.full((3, 7), values)
    if not constant:
        x[:, ::2] *= -1
    x = x.to(dtype).requires_grad_()
    y = norm(x)
    y.backward(torch.full_like(y, 1e-3))
    assert x.grad is not None
    assert y.isfinite().all()
    assert x.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in norm.parameters())


@pytest.mark.parametrize("scale", [1e4, 1.0, 1e-2])
@pytest.mark.parametrize("name", ["layernorm", "layernorm-simple", "rmsnorm", "adanorm"])
def test_rows_come_out_with_unit_scale(name: str, scale: float) -> None:
    y = build_norm(name, 4096)(torch.randn(3, 4096) * scale)
    expected = math.sqrt(1 + 0.1**2 * 3) if name == "adanorm" else 1.0
    assert y.square().mean(-1).sqrt().tolist() == pytest.approx([expected] * 3, rel=0.08)


@pytest.mark.parametrize("name", norm_names())
@pytest.mark.parametrize("dim", [1, 3, 17])
def test_odd_sizes_and_strides(name: str, dim: int) -> None:
    norm = build_norm(name, dim, dtype=torch.float64)
    randomise(norm)
    base = torch.randn(dim, 6, 4, dtype=torch.float64)
    dense = base.permute(2, 1, 0).contiguous().requires_grad_()
    strided = base.requires_grad_()
    y = norm(strided.permute(2, 1, 0))
    expected = norm(dense)
    torch.testing.assert_close(y, expected)
    y.sum().backward()  # an expanded gradient, of stride 0
    expected.sum().backward()
    assert strided.grad is not None
    torch.testing.assert_close(strided.grad.permute(2, 1, 0), dense.grad)


def test_eps_placement_at_small_rows() -> None:
    """At RMS 1e-4 and eps 1e-5 the two conventions give 0.032 and 0.91 of the unit row."""
    x = torch.tensor([[1e-4, -1e-4]])
    inside = build_norm("rmsnorm", 2)(x)
    outside = build_norm("rmsnorm", 2, eps_mode="outside")(x)
    assert inside[0, 0].item() == pytest.approx(0.0316, abs=1e-4)
    assert outside[0, 0].item() == pytest.approx(0.909, abs=1e-3)


@pytest.mark.parametrize("name", ["layernorm", "rmsnorm"])
def test_state_dicts_load_from_torch(name: str) -> None:
    theirs = {"layernorm": nn.LayerNorm, "rmsnorm": nn.RMSNorm}[name](9, eps=1e-5)
    randomise(theirs)
    ours = build_norm(name, 9)
    assert {n: p.tolist() for n, p in ours.named_parameters()} == {
        n: [1.0 if n == "weight" else 0.0] * 9 for n, _ in theirs.named_parameters()
    }
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(4, 9)
    torch.testing.assert_close(ours(x), theirs(x))
