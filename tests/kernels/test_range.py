"""No NaN, no infinity: rows of every size, in every dtype, on every path, against float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

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
UNCENTRED = [spec for spec in WITH_EPS if spec.startswith(("rms", "prms", "crms", "scale", "fix"))]

ALTERNATING = torch.tensor([1.0, -1.0]).repeat(DIM // 2)
FIRST = torch.eye(DIM)[0]


@pytest.fixture(autouse=True)
def _same_rows() -> None:
    """A narrow feature that happens to equal the mean would sit on the kink of ``|.|``."""
    torch.manual_seed(1)


def ordinary() -> Tensor:
    return torch.randn(5, DIM) * 2 + 0.3


def huge(dtype: torch.dtype) -> Tensor:
    """Rows whose squares, and for some whose sums, leave float32."""
    if dtype == torch.float16:
        return torch.stack([6e4 * ALTERNATING, 6e4 * FIRST, 2e4 * torch.randn(DIM).clamp(-3, 3)])
    rows = [3e38 * ALTERNATING, 3e38 * FIRST, 1e38 * torch.randn(DIM).clamp(-3, 3)]
    rows += [scale * torch.randn(DIM) for scale in (1e30, 3e19, 1e10, 2e9)]
    return torch.stack(rows)


def tiny(dtype: torch.dtype) -> Tensor:
    if dtype == torch.float16:
        return torch.stack([torch.zeros(DIM), 6e-8 * ALTERNATING, 1e-6 * torch.randn(DIM)])
    rows = [torch.zeros(DIM), 1e-40 * ALTERNATING, 1e-40 * FIRST]
    rows += [scale * torch.randn(DIM) for scale in (1e-37, 1e-30, 1e-22, 1e-19, 1e-14, 1e-12)]
    return torch.stack(rows)


def eager(norm: nn.Module, x: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().clone().requires_grad_()
    y = norm(x)
    y.backward(upstream)
    assert x.grad is not None
    return y.detach(), x.grad


def transformed(norm: nn.Module, x: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
    """Function transforms take the plain formulas."""
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


def pair(spec: str, dtype: torch.dtype, **options: float) -> tuple[nn.Module, nn.Module]:
    """A norm with float32 parameters, and the same in float64."""
    norm = build_norm(spec, DIM, **options)
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    oracle = build_norm(spec, DIM, dtype=torch.float64, **options)
    oracle.load_state_dict(norm.state_dict())
    return norm, oracle


def assert_near(
    actual: Tensor, expected: Tensor, dtype: torch.dtype, least: float | None = None
) -> None:
    """Near the expected row by its largest entry, or by `least`, the smallest step of the dtype."""
    assert actual.isfinite().all(), actual
    info = torch.finfo(dtype)
    near = max(2 * info.eps, 3e-5) * expected.abs().amax(-1, keepdim=True)
    least = 2 * info.smallest_normal * info.eps if least is None else least
    off = (actual.double() - expected).abs() - near - least
    assert (off <= 0).all(), (actual, expected)


def check(
    spec: str, x: Tensor, path: str, upstream: float = 1.0, **options: float
) -> tuple[Tensor, Tensor]:
    dtype = x.dtype
    norm, oracle = pair(spec, dtype, **options)
    gradient = (torch.randn(x.shape) * upstream).to(dtype)
    y, dx = PATHS[path](norm, x, gradient)
    wanted, dwanted = eager(oracle, x.double(), gradient.double())
    assert y.dtype == dx.dtype == dtype
    assert_near(y, wanted, dtype)
    # a gradient that small is lost before it reaches the smallest number
    assert_near(dx, dwanted, dtype, least=None if upstream >= 1e-3 else 1e-37)
    for got, want in zip(norm.parameters(), oracle.parameters(), strict=True):
        assert got.grad is not None
        assert want.grad is not None
        scale = (wanted.abs().amax() + 1) * gradient.double().abs().sum()
        # PyTorch's kernel adds up the rows of narrow inputs in their dtype
        near = 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps
        torch.testing.assert_close(got.grad / scale, want.grad / scale, rtol=0, atol=near,
                                   check_dtype=False)  # fmt: skip
    return y, dx


DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spec", SPECS)
def test_huge_rows(spec: str, dtype: torch.dtype, path: str) -> None:
    check(spec, huge(dtype).to(dtype), path)
    check(spec, torch.cat([ordinary(), huge(dtype)]).to(dtype), path)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spec", SPECS)
def test_tiny_rows(spec: str, dtype: torch.dtype, path: str) -> None:
    small = 1e-3 if dtype == torch.float16 else 1.0
    check(spec, torch.cat([ordinary(), tiny(dtype)]).to(dtype), path, upstream=small)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("spec", WITH_EPS)
def test_an_eps_that_is_next_to_nothing(spec: str, dtype: torch.dtype, path: str) -> None:
    rows = torch.cat([ordinary(), huge(dtype), tiny(dtype)])
    check(spec, rows.to(dtype), path, eps=1e-30)
    check(spec, rows.to(dtype), path, eps=1e-22)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("spec", WITH_EPS)
def test_an_eps_below_what_float32_holds(spec: str, path: str) -> None:
    norm, _ = pair(spec, torch.float32, eps=1e-60)
    x = torch.cat([ordinary(), huge(torch.float32), tiny(torch.float32)])
    y, dx = PATHS[path](norm, x, torch.randn_like(x))
    assert y.isfinite().all()
    assert dx.isfinite().all()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("upstream", [1e-12, 1e15])
@pytest.mark.parametrize("spec", SPECS)
def test_large_and_tiny_gradients(spec: str, upstream: float, path: str) -> None:
    rows = torch.cat([ordinary(), huge(torch.float32), tiny(torch.float32)])
    check(spec, rows, path, upstream=upstream)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("value", [3e38, 1e30, 1e19, 1e10, 1e4, 1.0, 1e-20, 1e-40])
@pytest.mark.parametrize("spec", SPECS)
def test_constant_rows(spec: str, value: float, path: str) -> None:
    """Their deviation is the rounding of their mean, so that only what does not centre is exact."""
    x = torch.full((3, DIM), value)
    if spec in UNCENTRED:
        check(spec, x, path)
        return
    norm, _ = pair(spec, torch.float32)
    for rows in (x, torch.full((3, 7), value)):
        norm = build_norm(spec, rows.shape[-1])
        y, dx = PATHS[path](norm, rows, torch.randn_like(rows))
        # a deviation of rounding errors alone is still at most one, like any row's
        assert y.abs().max() < 10 * DIM**0.5
        assert dx.isfinite().all()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in norm.parameters())


@pytest.mark.parametrize("path", PATHS)
def test_features_that_the_statistic_of_prmsnorm_does_not_see(path: str) -> None:
    """They may be far larger than those it sees; its gradient sums over them all."""
    small = torch.tensor([1.0, -2.0, 0.5, 1.0])
    rows = [torch.cat([scale * small, 3e38 * torch.tensor([1.0, -1, 1, -0.7])]) for scale in
            (10.0, 300.0, 1e6, 1e10, 1e18, 1e25, 1e37)]  # fmt: skip
    rows.append(torch.cat([1e3 * small, 3e38 * torch.tensor([1.0, 1.0, 1.0, 1.0])]))
    norm, oracle = pair("prmsnorm:p=0.5", torch.float32)
    for row in rows:
        x, gradient = row[None], torch.randn(1, DIM)
        y, dx = PATHS[path](norm, x, gradient)
        wanted, dwanted = eager(oracle, x.double(), gradient.double())
        for part in (slice(0, 4), slice(4, 8)):
            assert_near(y[:, part], wanted[:, part], torch.float32)
            assert_near(dx[:, part], dwanted[:, part], torch.float32)
        assert all(p.grad is not None and p.grad.isfinite().all() for p in norm.parameters())
        norm.zero_grad()
        oracle.zero_grad()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spec", SPECS)
def test_ordinary_rows_do_not_notice_the_company_of_huge_ones(
    spec: str, dtype: torch.dtype
) -> None:
    norm, _ = pair(spec, dtype)
    x, upstream = ordinary().to(dtype), torch.randn(5, DIM).to(dtype)
    alone = eager(norm, x, upstream)
    more = huge(dtype).to(dtype)
    together = eager(norm, torch.cat([x, more]), torch.cat([upstream, torch.ones_like(more)]))
    for ours, theirs in zip(alone, together, strict=True):
        near = 16 * torch.finfo(dtype).eps * ours.abs().amax(-1, keepdim=True)
        assert ((theirs[:5] - ours).abs() <= near).all()
    # and on the plain path itself not by a bit
    for ours, theirs in zip(
        transformed(norm, x, upstream),
        transformed(norm, torch.cat([x, more]), torch.cat([upstream, torch.ones_like(more)])),
        strict=True,
    ):
        assert torch.equal(theirs[:5], ours)


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


@pytest.mark.parametrize("spec", SPECS)
def test_float64_has_its_own_range(spec: str) -> None:
    x = torch.stack([1e300 * ALTERNATING.double(), 1e-310 * ALTERNATING.double()])
    norm = build_norm(spec, DIM, dtype=torch.float64)
    for path in PATHS.values():
        y, dx = path(norm, x, torch.ones_like(x))
        reach = y[0].abs().max().item()
        assert 0 < reach <= 3.0
        assert y.isfinite().all()
        assert dx.isfinite().all()


@pytest.mark.parametrize("spec", [*SPECS, "none"])
def test_gradients_of_each_row_by_transforms(spec: str) -> None:
    """vmap(grad) over a batch is the loop over its rows, huge ones included."""
    norm, _ = pair(spec, torch.float32)
    state = {name: p.detach() for name, p in norm.named_parameters()}
    x = torch.cat([ordinary(), huge(torch.float32)])
    weights = torch.randn(DIM)

    def loss(state: dict[str, Tensor], row: Tensor) -> Tensor:
        return (torch.func.functional_call(norm, state, (row,)) * weights).sum()

    if spec == "none":
        x = x[:5]
    by_row = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)), in_dims=(None, 0))(state, x)
    for i, row in enumerate(x):
        y, dx = eager(norm, row, weights)
        torch.testing.assert_close(by_row[1][i], dx, rtol=1e-4, atol=1e-5 * dx.abs().max().item())
        for name, parameter in norm.named_parameters():
            torch.testing.assert_close(by_row[0][name][i], parameter.grad, rtol=1e-4, atol=1e-5)
        norm.zero_grad()


@pytest.mark.parametrize("spec", SPECS)
def test_forward_mode(spec: str) -> None:
    norm = build_norm(spec, DIM, dtype=torch.float64)
    x, tangent = torch.randn(2, 3, DIM, dtype=torch.float64)
    upstream = torch.randn(3, DIM, dtype=torch.float64)
    _, along = torch.func.jvp(norm, (x,), (tangent,))
    with torch.autograd.forward_ad.dual_level():
        dual = norm(torch.autograd.forward_ad.make_dual(x, tangent))
        plain = torch.autograd.forward_ad.unpack_dual(dual).tangent
    torch.testing.assert_close(plain, along)
    _, dx = eager(norm, x, upstream)
    torch.testing.assert_close((along * upstream).sum(), (dx * tangent).sum())


@pytest.mark.parametrize("spec", ["layernorm", "rmsnorm", "prmsnorm:p=0.5", "adanorm"])
def test_many_backwards_at_once(spec: str) -> None:
    """A graph recorded by the fast operations, pulled back by transforms afterwards."""
    norm = build_norm(spec, DIM)
    x = torch.randn(2, DIM)
    rows = torch.autograd.functional.jacobian(norm, x)
    at_once = torch.autograd.functional.jacobian(norm, x, vectorize=True)
    torch.testing.assert_close(at_once, rows)


@pytest.mark.parametrize("spec", ["layernorm", "rmsnorm", "prmsnorm:p=0.5", "l1norm", "scalenorm"])
def test_compiled(spec: str) -> None:
    torch._dynamo.reset()
    norm, _ = pair(spec, torch.float32)
    compiled = torch.compile(norm, backend="aot_eager", fullgraph=True)
    x = torch.cat([ordinary(), huge(torch.float32), tiny(torch.float32)])
    upstream = torch.randn_like(x)
    y, dx = eager(compiled, x, upstream)
    wanted, dwanted = transformed(norm, x, upstream)
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(dx, dwanted)


@pytest.mark.parametrize("spec", SPECS)
def test_traced_exported_and_fake(spec: str) -> None:
    norm = build_norm(spec, DIM)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert norm(torch.empty(3, DIM)).shape == (3, DIM)
    traced = make_fx(norm)(torch.randn(3, DIM))
    program = torch.export.export(norm, (torch.randn(3, DIM),))
    x = torch.cat([ordinary()[:2], 1e30 * ALTERNATING[None]])
    for recorded in (traced, program.module()):
        torch.testing.assert_close(recorded(x), norm(x))


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


@pytest.mark.parametrize("value", [37.3, 1234.567, 333333.33, -1e-3])
@pytest.mark.parametrize("d", [10, 63])
@pytest.mark.parametrize(
    "name",
    ["layernorm", "layernorm-simple", "detachnorm", "adanorm", "l1norm", "linfnorm", "topknorm"],
)
def test_constant_rows_come_out_as_zeros(name: str, d: int, value: float) -> None:
    """The rounding of a mean must not be taken for a spread; mixed with other rows, neither."""
    norm = build_norm(name, d)
    x = torch.randn(3, d)
    x[1] = value
    for y in (norm(x), torch.func.vmap(norm)(x)):
        assert y[1].abs().max().item() <= 1e-3


@pytest.mark.parametrize("eps", [1e-20, 1e-24, 1e-26, 1e-30])
@pytest.mark.parametrize("name", ["layernorm", "layernorm-simple", "adanorm", "rmsnorm"])
def test_small_eps_has_finite_gradients_at_constant_rows(name: str, eps: float) -> None:
    norm = build_norm(name, 4, eps=eps)
    x = torch.tensor([[0.5] * 4, [0.0] * 4], requires_grad=True)
    norm(x).backward(torch.randn(2, 4))
    assert x.grad is not None
    assert x.grad.isfinite().all()
