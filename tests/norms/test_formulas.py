"""Every norm against its formula, written here once more in float64 and differently."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from variants import sampled

from normtrain.norms import NormSpec, build_norm, norm_info, norm_names
from normtrain.norms.lp import L1_CONSTANT, linf_constant


def _ln(x: Tensor, eps: float = 1e-5, outside: bool = False) -> Tensor:
    mu = x.sum(-1, keepdim=True) / x.shape[-1]
    var = ((x - mu) ** 2).sum(-1, keepdim=True) / x.shape[-1]
    return (x - mu) / ((var**0.5 + eps) if outside else (var + eps) ** 0.5)


def _rms(x: Tensor, k: int, eps: float = 1e-5, outside: bool = False) -> Tensor:
    square = (x[..., :k] ** 2).sum(-1, keepdim=True) / k
    return x / ((square**0.5 + eps) if outside else (square + eps) ** 0.5)


def _ada(x: Tensor, c: float, k: float, outside: bool = False, eps: float = 1e-5) -> Tensor:
    y = _ln(x, eps, outside)
    return c * (y - k * y.detach() * y)


def _detached(x: Tensor, mean: bool, std: bool, eps: float = 1e-5, outside: bool = False) -> Tensor:
    mu = x.sum(-1, keepdim=True) / x.shape[-1]
    var = (x**2).sum(-1, keepdim=True) / x.shape[-1] - mu**2
    sigma = (var**0.5 + eps) if outside else (var + eps) ** 0.5
    return (x - (mu.detach() if mean else mu)) / (sigma.detach() if std else sigma)


def _crms(x: Tensor, eps: float = 1e-5, outside: bool = False) -> Tensor:
    """RMSNorm of the whole row, of which the last feature is made here and dropped again."""
    whole = torch.cat((x, -x.sum(-1, keepdim=True)), dim=-1)
    return _rms(whole, whole.shape[-1], eps, outside)[..., :-1]


def _unit(x: Tensor, eps: float = 1e-5) -> Tensor:
    length = (x**2).sum(-1, keepdim=True) ** 0.5
    return x / torch.where(length > eps, length, eps)


def _lp(x: Tensor, k: int | None, eps: float = 1e-5) -> Tensor:
    """The statistic is the mean of the k largest distances, the constant the paper's."""
    n = x.shape[-1]
    centred = x - x.sum(-1, keepdim=True) / n
    distance = centred.abs()
    if k is None:
        return centred / (1.2533141373155003 * distance.sum(-1, keepdim=True) / n + eps)
    c = 0.5 * (1 + math.sqrt(math.pi * math.log(4))) / math.sqrt(2 * math.log(n))
    largest = distance.sort(-1).values[..., n - k :].sum(-1, keepdim=True) / k
    return centred / (c * largest + eps)


def _tanh(u: Tensor) -> Tensor:
    return 2 / (1 + torch.exp(-2 * u)) - 1


def _erf(u: Tensor) -> Tensor:
    return 1 - torch.special.erfc(u)


# spec: the formula in float64 from x and the parameters by their names; d = 12 wherever a count of
# features enters
Formula = Callable[..., Tensor]
FORMULAS: dict[str, Formula] = {
    "layernorm": lambda x, weight, bias: _ln(x) * weight + bias,
    "layernorm:bias=false": lambda x, weight: _ln(x) * weight,
    "layernorm:eps=0.3": lambda x, weight, bias: _ln(x, 0.3) * weight + bias,
    "layernorm:eps=0.3,eps_mode=outside": lambda x, weight, bias: _ln(x, 0.3, True) * weight + bias,
    "layernorm-simple": _ln,
    "layernorm-simple:eps=0.3": lambda x: _ln(x, 0.3),
    "layernorm-simple:eps=0.3,eps_mode=outside": lambda x: _ln(x, 0.3, True),
    "detachnorm": lambda x: _detached(x, True, True),
    "detachnorm:detach=mean,eps=0.3": lambda x: _detached(x, True, False, 0.3),
    "detachnorm:detach=std": lambda x: _detached(x, False, True),
    "detachnorm:eps=0.3,eps_mode=outside": lambda x: _detached(x, True, True, 0.3, True),
    "detachnorm:detach=mean,eps_mode=outside": lambda x: _detached(x, True, False, outside=True),
    "rmsnorm": lambda x, weight: _rms(x, 12) * weight,
    "rmsnorm:bias=true": lambda x, weight, bias: _rms(x, 12) * weight + bias,
    "rmsnorm:affine=false": lambda x: _rms(x, 12),
    "rmsnorm:affine=false,bias=true": lambda x, bias: _rms(x, 12) + bias,
    "rmsnorm:eps=0.3": lambda x, weight: _rms(x, 12, 0.3) * weight,
    "rmsnorm:eps=0.3,eps_mode=outside": lambda x, weight: _rms(x, 12, 0.3, True) * weight,
    "prmsnorm": lambda x, weight: _rms(x, 1) * weight,
    "prmsnorm:p=0.25": lambda x, weight: _rms(x, 3) * weight,
    "prmsnorm:p=0.6,eps=0.3": lambda x, weight: _rms(x, 8, 0.3) * weight,
    "prmsnorm:p=0.25,eps_mode=outside": lambda x, weight: _rms(x, 3, outside=True) * weight,
    "crmsnorm": lambda x, weight: _crms(x) * weight,
    "crmsnorm:affine=false": _crms,
    "crmsnorm:bias=true,eps=0.3": lambda x, weight, bias: _crms(x, 0.3) * weight + bias,
    "crmsnorm:affine=false,bias=true": lambda x, bias: _crms(x) + bias,
    "crmsnorm:eps=0.3,eps_mode=outside": lambda x, weight: _crms(x, 0.3, True) * weight,
    "scalenorm": lambda x, weight: _unit(x) * weight,
    "scalenorm:eps=7.5": lambda x, weight: _unit(x, 7.5) * weight,  # more than many rows' length
    "fixnorm": _unit,
    "fixnorm:eps=7.5": lambda x: _unit(x, 7.5),
    "l1norm": lambda x, weight, bias: _lp(x, None) * weight + bias,
    "l1norm:bias=false,eps=0.3": lambda x, weight: _lp(x, None, 0.3) * weight,
    "linfnorm": lambda x, weight, bias: _lp(x, 1) * weight + bias,
    "linfnorm:bias=false,eps=0.3": lambda x, weight: _lp(x, 1, 0.3) * weight,
    "topknorm": lambda x, weight, bias: _lp(x, 10) * weight + bias,
    "topknorm:k=1": lambda x, weight, bias: _lp(x, 1) * weight + bias,
    "topknorm:k=40": lambda x, weight, bias: _lp(x, 12) * weight + bias,
    "topknorm:bias=false,eps=0.3,k=3": lambda x, weight: _lp(x, 3, 0.3) * weight,
    "dyt": lambda x, weight, bias, alpha: _tanh(alpha * x) * weight + bias,
    "dyt:bias=false": lambda x, weight, alpha: _tanh(alpha * x) * weight,
    "derf": lambda x, weight, bias, alpha, shift: _erf(alpha * x + shift) * weight + bias,
    "derf:bias=false": lambda x, weight, alpha, shift: _erf(alpha * x + shift) * weight,
    "adanorm": lambda x: _ada(x, 1.0, 0.1),
    "adanorm:C=2,k=0.3": lambda x: _ada(x, 2.0, 0.3),
    "adanorm:eps=0.3": lambda x: _ada(x, 1.0, 0.1, eps=0.3),
    "adanorm:C=0.5,eps_mode=outside": lambda x: _ada(x, 0.5, 0.1, True),
    "none": lambda x: x,
}
DIM = 12
# what an option makes of the initial values is for the tests further down
INITIAL = {"alpha_init", "shift_init"}


def randomise(module: nn.Module) -> None:
    """Give the parameters values a wrong formula can't hide behind."""
    for parameter in module.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)


def leaves_of(module: nn.Module) -> dict[str, Tensor]:
    """The parameters again, in float64 and apart from the module."""
    return {n: p.detach().double().requires_grad_() for n, p in module.named_parameters()}


def test_every_registered_norm_and_option_has_a_formula_here() -> None:
    specs = [NormSpec.parse(spec) for spec in FORMULAS]
    assert {spec.name for spec in specs} == set(norm_names())
    for name in norm_names():
        used = {option for spec in specs if spec.name == name for option in spec.options}
        assert used == set(norm_info(name).options) - INITIAL, name


@pytest.mark.parametrize("shape", [(5, DIM), (2, 3, DIM), (DIM,), (0, DIM), (2, 0, DIM)])
@pytest.mark.parametrize("spec", FORMULAS)
def test_forward_and_gradients(spec: str, shape: tuple[int, ...]) -> None:
    norm = build_norm(spec, DIM, dtype=torch.float64)
    randomise(norm)
    x = (torch.randn(shape, dtype=torch.float64) * 2 + 0.7).requires_grad_()
    gradient = torch.randn(shape, dtype=torch.float64)
    leaves = leaves_of(norm)
    expected_x = x.detach().clone().requires_grad_()
    expected = FORMULAS[spec](expected_x, **leaves)
    expected.backward(gradient)

    y = norm(x)
    y.backward(gradient)

    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(x.grad, expected_x.grad, rtol=1e-10, atol=1e-12)
    for name, parameter in norm.named_parameters():
        torch.testing.assert_close(parameter.grad, leaves[name].grad, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(norm(x), y.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.extended
@pytest.mark.parametrize(
    ("spec", "own", "dtype"),
    sampled(list(FORMULAS), [True, False], [torch.float32, torch.bfloat16, torch.float16], each=3),
)
def test_low_precision(spec: str, own: bool, dtype: torch.dtype) -> None:
    """One rounding of the float64 result, no more: statistics are taken in float32."""
    norm = build_norm(spec, DIM, dtype=dtype if own else torch.float32)
    randomise(norm)
    # an offset that costs a statistic in half precision its digits; no feature lies at the mean
    # and no two are equally far from it, where lp norms have a kink
    levels = torch.tensor([-20, -13, -9, -6, -4, -1, 2, 3, 7, 10, 14, 25]) / 16 + 8
    x = torch.stack([levels[torch.randperm(DIM)] for _ in range(64)]).to(dtype).requires_grad_()
    gradient = torch.randn(64, DIM).to(dtype)
    leaves = leaves_of(norm)
    wide = x.detach().double().requires_grad_()
    expected = FORMULAS[spec](wide, **leaves)
    expected.backward(gradient.double())

    y = norm(x)
    y.backward(gradient)

    assert y.dtype == dtype
    assert x.grad.dtype == dtype
    near = max(torch.finfo(dtype).eps, 2e-5)
    torch.testing.assert_close(y.double(), expected, rtol=near, atol=near)
    torch.testing.assert_close(x.grad.double(), wide.grad, rtol=2 * near, atol=2 * near)
    for name, parameter in norm.named_parameters():
        have, want = parameter.grad, leaves[name].grad
        assert have.dtype == parameter.dtype
        # the kernels add up 64 rows, partly in the input's dtype
        coarse = 8 * near * max(1.0, want.abs().max().item())
        torch.testing.assert_close(have.double(), want, rtol=0, atol=coarse)


@pytest.mark.parametrize(
    ("spec", "dim", "excess"),
    [
        ("l1norm", 1024, 1.0),
        ("linfnorm", 64, 1.386),
        ("linfnorm", 1024, 1.423),
        ("topknorm", 64, 0.98),
        ("topknorm", 1024, 1.19),
    ],
)
def test_by_how_much_the_papers_constants_overrate_a_deviation(
    spec: str, dim: int, excess: float
) -> None:
    rows = torch.randn(2000, dim)
    # y is x over the rated deviation
    rated = (rows.std(-1) / build_norm(spec, dim)(rows).std(-1)).mean().item()
    assert rated == pytest.approx(excess, rel=0.02)


def test_the_constants() -> None:
    assert math.isclose(L1_CONSTANT, 1.2533141373155003, rel_tol=1e-15)
    assert linf_constant(1) == 1.0
    for n in (2, 7, 512):
        want = 0.5 * (1 + math.sqrt(math.pi * math.log(4))) / math.sqrt(2 * math.log(n))
        assert linf_constant(n) == pytest.approx(want, rel=1e-14)


@pytest.mark.parametrize(
    ("spec", "initial"),
    [
        ("layernorm", {"weight": [1.0] * 9, "bias": [0.0] * 9}),
        ("crmsnorm:bias=true", {"weight": [1.0] * 9, "bias": [0.0] * 9}),
        ("scalenorm", {"weight": [3.0]}),
        ("topknorm", {"weight": [1.0] * 9, "bias": [0.0] * 9}),
        ("dyt", {"alpha": [0.5], "weight": [1.0] * 9, "bias": [0.0] * 9}),
        ("dyt:alpha_init=0.25,bias=false", {"alpha": [0.25], "weight": [1.0] * 9}),
        (
            "derf:alpha_init=2,shift_init=-0.5",
            {"alpha": [2.0], "shift": [-0.5], "weight": [1.0] * 9, "bias": [0.0] * 9},
        ),
        *((name, {}) for name in ("layernorm-simple", "detachnorm", "fixnorm", "adanorm", "none")),
    ],
)
def test_initial_parameters(spec: str, initial: dict[str, list[float]]) -> None:
    norm = build_norm(spec, 9)
    assert {name: p.tolist() for name, p in norm.named_parameters()} == initial
    randomise(norm)
    norm.reset_parameters()
    assert {name: p.tolist() for name, p in norm.named_parameters()} == initial


@pytest.mark.parametrize("name", ["fixnorm", "scalenorm"])
def test_gradient_of_a_zero_row_is_the_upstream_one_over_eps(name: str) -> None:
    x, upstream = torch.zeros(2, 4, requires_grad=True), torch.randn(2, 4)
    build_norm(name, 4, eps=0.25)(x).backward(upstream)
    torch.testing.assert_close(x.grad, upstream * (4.0 if name == "fixnorm" else 8.0))


def test_features_at_the_mean_and_ties_of_the_maximum() -> None:
    """The slope of |.| at 0 is 0, and tied maxima share their gradient."""
    x = torch.tensor([[0.0, 1.0, -1.0, 0.0]], dtype=torch.float64)
    upstream = torch.tensor([[1.0, 2.0, 0.0, 0.0]], dtype=torch.float64)
    for name, constant, share in (
        ("l1norm", L1_CONSTANT / 2, 0.25),
        ("linfnorm", linf_constant(4), 0.5),
    ):
        leaf = x.clone().requires_grad_()
        build_norm(name, 4, eps=1e-12, dtype=torch.float64)(leaf).backward(upstream)
        slope = share * torch.tensor([[0.0, 1.0, -1.0, 0.0]], dtype=torch.float64)
        factor = constant * (2 if name == "l1norm" else 1)
        direct = upstream / constant - slope * (upstream * x).sum() * factor / constant**2
        want = direct - direct.mean()
        torch.testing.assert_close(leaf.grad, want)


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
