"""The gradients of every norm: the theorem on what the statistics do to them, and their orders."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from variants import NAMES, SPECS, build, gradient, leaf, name_of, rows, sharp

from normtrain.norms import build_norm, norm_names

# The part of the graph these leave out on purpose; gradcheck knows nothing of that.
NOT_DERIVATIVES = ("adanorm", "detachnorm")

# Xu et al. 2019, theorem on y = N(x) with the gradient g of the output, per row: whether the
# gradient of the input keeps mean(g) / sigma (or has mean 0), and whether it keeps the whole
# variance Var(g) / sigma^2 (or loses the part along y).
THEOREM = {
    "layernorm-simple": (False, False),
    "detachnorm:detach=mean": (True, False),
    "detachnorm:detach=std": (False, True),
    "detachnorm:detach=both": (True, True),
}
MODES = ["inside", "outside"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("spec", THEOREM)
def test_the_theorem_on_backward_gradients(spec: str, mode: str) -> None:
    keeps_mean, keeps_variance = THEOREM[spec]
    norm = build_norm(spec, 16, eps=1e-30, eps_mode=mode)
    x, g = rows(50, 16) * 3, rows(50, 16) + 1
    dx = gradient(norm, x, g)

    sigma = x.std(-1, correction=0)
    variance = dx.var(-1, correction=0)
    whole = g.var(-1, correction=0) / sigma**2
    mean = g.mean(-1) / sigma if keeps_mean else torch.zeros_like(sigma)
    torch.testing.assert_close(dx.mean(-1), mean, rtol=1e-9, atol=1e-12)
    if keeps_variance:
        torch.testing.assert_close(variance, whole, rtol=1e-9, atol=1e-12)
    else:
        y = (x - x.mean(-1, keepdim=True)) / sigma[:, None]
        lost = (g * y).mean(-1).square() / sigma**2
        torch.testing.assert_close(variance, whole - lost, rtol=1e-9, atol=1e-12)
        assert (variance <= whole).all()
        assert (variance < 0.999 * whole).any()


# norm: whether each row of the input's gradient sums to 0 (the mean is differentiated), and
# whether it is orthogonal to the row (nothing is gained by scaling it)
DIRECTIONS: dict[str, tuple[bool, bool]] = {
    "adanorm": (True, True),
    "crmsnorm": (False, True),
    "derf": (False, False),
    "detachnorm": (False, False),
    "detachnorm:detach=mean": (False, False),
    "detachnorm:detach=mean,eps_mode=outside": (False, False),
    "detachnorm:detach=std": (True, False),
    "dyt": (False, False),
    "fixnorm": (False, True),
    "l1norm": (True, True),
    "layernorm": (True, True),
    "layernorm-simple": (True, True),
    "linfnorm": (True, True),
    "none": (False, False),
    "prmsnorm": (False, True),
    "rmsnorm": (False, True),
    "scalenorm": (False, True),
    "topknorm": (True, True),
}


@pytest.mark.parametrize("spec", SPECS)
def test_directions_the_gradient_avoids(spec: str) -> None:
    sums_to_zero, orthogonal = DIRECTIONS[spec if spec in DIRECTIONS else name_of(spec)]
    x = rows(6, 11)
    dx = gradient(sharp(spec, 11), x, rows(6, 11))
    scale = dx.abs().sum(-1)
    assert (dx.sum(-1).abs() <= 1e-12 * scale).all() == sums_to_zero
    assert ((dx * x).sum(-1).abs() <= 1e-11 * scale * x.abs().amax(-1)).all() == orthogonal


def test_the_tables_here_have_every_registered_norm() -> None:
    assert {name_of(spec) for spec in DIRECTIONS} == set(norm_names()) == set(NAMES)
    assert set(NOT_DERIVATIVES) <= set(NAMES)
    assert {name_of(spec) for spec in [*CHECKED, *BY_HAND]} == set(NAMES)


def away_from_zero(*shape: int) -> Tensor:
    """Rows whose features all are 0.5 to 1.5 in size: statistics of one feature stay smooth."""
    size = torch.rand(shape, dtype=torch.float64) + 0.5
    return size * torch.where(torch.rand(shape) < 0.5, 1.0, -1.0)


CHECKED = [spec for spec in SPECS if name_of(spec) not in NOT_DERIVATIVES]


@pytest.mark.parametrize("spec", CHECKED)
def test_gradcheck_twice(spec: str) -> None:
    norm = build(spec, 5)
    names = [name for name, _ in norm.named_parameters()]

    def call(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(norm, dict(zip(names, values, strict=True)), (x,))

    inputs = (leaf(away_from_zero(2, 5)), *(leaf(p) for p in norm.parameters()))
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


def _simple(x: Tensor, detach: str = "", outside: bool = False, eps: float = 1e-5) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    if detach in ("mean", "both"):
        mean = mean.detach()
    variance = (x - mean).square().mean(-1, keepdim=True)
    sigma = variance.sqrt() + eps if outside else (variance + eps).sqrt()
    if detach in ("std", "both"):
        sigma = sigma.detach()
    return (x - mean) / sigma


def _ada(x: Tensor, c: float = 1.0, k: float = 0.1, outside: bool = False) -> Tensor:
    y = _simple(x, outside=outside)
    return c * (1 - k * y.detach()) * y


# What is held constant, written with detach()
BY_HAND: dict[str, Callable[[Tensor], Tensor]] = {
    "adanorm": _ada,
    "adanorm:C=2,k=0.3": lambda x: _ada(x, 2.0, 0.3),
    "adanorm:k=0": lambda x: _ada(x, k=0.0),
    "adanorm:eps_mode=outside": lambda x: _ada(x, outside=True),
    "detachnorm": lambda x: _simple(x, "both"),
    "detachnorm:detach=mean": lambda x: _simple(x, "mean"),
    "detachnorm:detach=std": lambda x: _simple(x, "std"),
    "detachnorm:detach=mean,eps_mode=outside": lambda x: _simple(x, "mean", outside=True),
}


def test_every_variant_of_a_detaching_norm_is_written_by_hand() -> None:
    assert set(BY_HAND) == {spec for spec in SPECS if name_of(spec) in NOT_DERIVATIVES}


def _two_orders(call: Callable[[Tensor], Tensor], x: Tensor, g: Tensor) -> tuple[Tensor, ...]:
    """The output, its gradient by x, and the gradients of that one's square by x and by g."""
    x, g = leaf(x), leaf(g)
    y = call(x)
    (first,) = torch.autograd.grad(y, x, g, create_graph=True)
    by_x, by_g = torch.autograd.grad(first.square().sum(), (x, g), allow_unused=True)
    return y, first, torch.zeros_like(x) if by_x is None else by_x, by_g


@pytest.mark.parametrize("spec", BY_HAND)
def test_both_orders_hold_the_same_constants(spec: str) -> None:
    x, g = rows(4, 7), rows(4, 7)
    expected = _two_orders(BY_HAND[spec], x, g)
    for have, want in zip(_two_orders(build(spec, 7), x, g), expected, strict=True):
        torch.testing.assert_close(have, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("spec", [s for s in SPECS if name_of(s) in ("prmsnorm", "rmsnorm")])
def test_the_gradient_of_a_partial_statistic(spec: str) -> None:
    """diag(w) (I - [column <= k] x x^T / (k r^2)) / r: only the first k features feel the rest."""
    norm, x = build(spec, 6), away_from_zero(6)
    k = {"prmsnorm": 1, "prmsnorm:p=0.5": 3, "prmsnorm:p=0.5,eps_mode=outside": 3}.get(spec, 6)
    eps = 1e-5
    root = x[:k].square().mean().sqrt()
    r = root + eps if "outside" in spec else (root**2 + eps).sqrt()
    inner = root * r if "outside" in spec else r**2
    first = (torch.arange(6) < k).double()
    expected = (torch.eye(6) - torch.outer(x, x * first) / (k * inner)) / r
    weight = dict(norm.named_parameters()).get("weight", torch.ones(6)).detach()
    torch.testing.assert_close(
        torch.autograd.functional.jacobian(norm, x), weight[:, None] * expected
    )
