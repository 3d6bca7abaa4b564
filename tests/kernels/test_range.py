"""No NaN or Inf at the edges that the table of rows in norms/test_edges.py does not reach."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from normtrain import kernels
from normtrain.kernels import dispatch, formulas
from normtrain.norms import build_norm, norm_names

DIM = 8
MODES = ["layernorm", "layernorm-simple", "adanorm", "detachnorm", "rmsnorm", "crmsnorm"]
SPECS = [
    *(name for name in norm_names() if name != "none"),
    *(f"{name}:eps_mode=outside" for name in [*MODES, "prmsnorm"]),
    "prmsnorm:p=0.5",
    "rmsnorm:bias=true",
    "detachnorm:detach=mean",
    "detachnorm:detach=std",
    "topknorm:k=3",
]
WITH_EPS = [spec for spec in SPECS if not spec.startswith(("dyt", "derf"))]

ALTERNATING = torch.tensor([1.0, -1.0]).repeat(DIM // 2)
FIRST = torch.eye(DIM)[0]


@pytest.fixture(autouse=True)
def _same_rows() -> None:
    """A half-precision feature equal to the mean would be at the kink of ``|.|``."""
    torch.manual_seed(1)


def ordinary() -> Tensor:
    return torch.randn(5, DIM) * 2 + 0.3


def huge() -> Tensor:
    """Rows whose squares, and for some whose sums, overflow float32."""
    rows = [3e38 * ALTERNATING, 3e38 * FIRST, 1e38 * torch.randn(DIM).clamp(-3, 3)]
    return torch.stack(rows + [scale * torch.randn(DIM) for scale in (1e30, 3e19, 1e10, 2e9)])


def tiny() -> Tensor:
    rows = [torch.zeros(DIM), 1e-40 * ALTERNATING, 1e-40 * FIRST]
    scales = (1e-37, 1e-30, 1e-22, 1e-19, 1e-14, 1e-12)
    return torch.stack(rows + [scale * torch.randn(DIM) for scale in scales])


def eager(norm: nn.Module, x: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().clone().requires_grad_()
    y = norm(x)
    y.backward(upstream)
    return y.detach(), x.grad


def transformed(norm: nn.Module, x: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
    """Function transforms use the formulas."""
    state = {name: p.detach() for name, p in norm.named_parameters()}
    y, pull = torch.func.vjp(lambda s, t: torch.func.functional_call(norm, s, (t,)), state, x)
    grads, dx = pull(upstream)
    for name, parameter in norm.named_parameters():
        parameter.grad = grads[name]
    return y, dx


PATHS: dict[str, Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "eager": eager,
    "transformed": transformed,
}


def pair(spec: str, **options: float) -> tuple[nn.Module, nn.Module]:
    """A norm with float32 parameters, and the same in float64."""
    norm = build_norm(spec, DIM, **options)
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    oracle = build_norm(spec, DIM, dtype=torch.float64, **options)
    oracle.load_state_dict(norm.state_dict())
    return norm, oracle


def assert_near(actual: Tensor, expected: Tensor) -> None:
    """Compare rows relative to the largest entry, or to the smallest step of float32."""
    assert actual.isfinite().all(), actual
    info = torch.finfo(torch.float32)
    near = 3e-5 * expected.abs().amax(-1, keepdim=True) + 2 * info.smallest_normal * info.eps
    assert ((actual.double() - expected).abs() <= near).all(), (actual, expected)


EXTENDED = pytest.mark.extended


@EXTENDED
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("spec", WITH_EPS)
def test_eps_below_the_range_of_float32(spec: str, path: str) -> None:
    norm, _ = pair(spec, eps=1e-60)
    x = torch.cat([ordinary(), huge(), tiny()])
    y, dx = PATHS[path](norm, x, torch.randn_like(x))
    assert y.isfinite().all()
    assert dx.isfinite().all()


@pytest.mark.parametrize("path", PATHS)
def test_features_outside_the_statistic_of_prmsnorm(path: str) -> None:
    """They may be far larger; the gradient of the statistic sums over all features."""
    small = torch.tensor([1.0, -2.0, 0.5, 1.0])
    rows = [torch.cat([scale * small, 3e38 * torch.tensor([1.0, -1, 1, -0.7])]) for scale in
            (10.0, 300.0, 1e6, 1e10, 1e18, 1e25, 1e37)]  # fmt: skip
    rows.append(torch.cat([1e3 * small, 3e38 * torch.tensor([1.0, 1.0, 1.0, 1.0])]))
    norm, oracle = pair("prmsnorm:p=0.5")
    for row in rows:
        x, gradient = row[None], torch.randn(1, DIM)
        y, dx = PATHS[path](norm, x, gradient)
        wanted, dwanted = eager(oracle, x.double(), gradient.double())
        for part in (slice(0, 4), slice(4, 8)):
            assert_near(y[:, part], wanted[:, part])
            assert_near(dx[:, part], dwanted[:, part])
        assert all(p.grad is not None and p.grad.isfinite().all() for p in norm.parameters())
        norm.zero_grad()
        oracle.zero_grad()


def test_the_factor_of_a_row() -> None:
    rows = torch.tensor([[0.0, 1.0], [2.0**30, -1.0], [-(2.0**31), 0.0], [0.0, 3e38]])
    factor = formulas.within_range(rows.requires_grad_())
    assert factor.dtype == torch.float32
    assert not factor.requires_grad
    assert factor.flatten().tolist() == pytest.approx([1.0, 1.0, 0.5, 2.0**30 / 3e38])
    narrow = torch.tensor([[3e38], [1.0]], dtype=torch.bfloat16)
    assert formulas.within_range(narrow).dtype == torch.float32
    assert formulas.within_range(torch.tensor([[1e300]]).double()).item() < 1
    assert formulas.within_range(torch.empty(0, 3)).shape == (0, 1)


@EXTENDED
@pytest.mark.parametrize("spec", ["layernorm", "rmsnorm", "prmsnorm:p=0.5", "adanorm"])
def test_batched_gradients(spec: str) -> None:
    """A graph recorded by opaque functions, differentiated by vmap."""
    norm = build_norm(spec, DIM)
    x = torch.randn(2, DIM)
    rows = torch.autograd.functional.jacobian(norm, x)
    at_once = torch.autograd.functional.jacobian(norm, x, vectorize=True)
    torch.testing.assert_close(at_once, rows)


class _Tagged(Tensor):
    """A subclass that acts like a tensor."""


def test_aten_kernels_run_only_where_values_can_be_read() -> None:
    x, seen = torch.randn(2, 4), []
    with kernels.use("aten"):

        def use_aten(x: Tensor, eps: float = 1e-5) -> bool:
            return dispatch._use_aten(x, "inside", eps)

        assert use_aten(x)
        assert use_aten(nn.Parameter(x))
        assert not use_aten(x, eps=1e-30)
        assert use_aten(x.double(), eps=1e-30)
        assert not use_aten(x.as_subclass(_Tagged))
        assert not use_aten(x.to("meta"))
        torch.func.vmap(lambda t: seen.append(use_aten(t)) or t)(x)
    assert seen == [False]


@EXTENDED
@pytest.mark.parametrize("eps", [1e-20, 1e-24, 1e-26, 1e-30])
@pytest.mark.parametrize("name", ["layernorm", "layernorm-simple", "adanorm", "rmsnorm"])
def test_small_eps_has_finite_gradients_at_constant_rows(name: str, eps: float) -> None:
    norm = build_norm(name, 4, eps=eps)
    x = torch.tensor([[0.5] * 4, [0.0] * 4], requires_grad=True)
    norm(x).backward(torch.randn(2, 4))
    assert x.grad.isfinite().all()
