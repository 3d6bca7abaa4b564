"""Cases for the fused kernels: a norm of the table, its parameters, and inputs of all sizes."""

import math
import os
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from normtrain.kernels import choice, native
from normtrain.kernels.backend import Backend, Dropout, Parameters
from normtrain.kernels.table import DETACH, KINDS, Scalars

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
CASES = [*(kind for kind in KINDS if kind != "detach"), *(f"detach-{what}" for what in DETACH)]
CASES += ["rms-partial", "l2-vector"]


def supported(backend: str) -> list[str]:
    """The cases for which a backend has kernels."""
    return [case for case in CASES if backend in KINDS[case.partition("-")[0]].saved]


@dataclass
class Target:
    """A backend under test and where its tensors are."""

    backend: Backend
    device: str


def targets() -> list[object]:
    """Every instruction set of the C++ kernels, and Triton on a GPU or in its interpreter."""
    found: list[object] = []
    for i, name in enumerate(native.instruction_sets()):
        marks = [pytest.mark.extended] if i else []
        found.append(pytest.param(("native", name), id=f"native-{name}", marks=marks))
    if not isinstance(choice.load_backend("triton"), str):
        found.append(pytest.param(("triton", ""), id="triton", marks=[pytest.mark.extended]))
    return found


def make_target(name: str) -> Target:
    backend = choice.load_backend(name)
    assert isinstance(backend, Backend)
    on_gpu = name == "triton" and os.environ.get("TRITON_INTERPRET") != "1"
    return Target(backend, "cuda" if on_gpu else "cpu")


def make(case: str, d: int, dtype: torch.dtype, device: str) -> tuple[str, Parameters, Scalars]:
    """A kind, parameters of a dtype (none of them 0 or 1), and the scalars."""
    kind, _, more = case.partition("-")
    generator = torch.Generator().manual_seed(3)

    def uniform(name: str, size: int) -> Tensor | None:
        if name not in KINDS[kind].parameters:
            return None
        return (torch.rand(size, generator=generator) + 0.5).to(device, dtype)

    weight = uniform("weight", 1 if case == "l2" else d)
    parameters = weight, uniform("bias", d), uniform("alpha", 1)
    count = 0
    if kind == "rms":
        count = (d + 1) // 2 if more else d
    elif kind == "detach":
        count = DETACH.index(more)
    a = math.sqrt(math.pi / 2) if kind == "l1" else 1.25
    return kind, parameters, Scalars(1e-5, count, a, 0.1)


def rows_of_all_sizes(d: int, dtype: torch.dtype, device: str, ordinary: int = 3) -> Tensor:
    """Ordinary rows, zeros, a constant, an offset, and rows whose squares overflow float32."""
    generator = torch.Generator().manual_seed(5)

    def normal(count: int = 1) -> Tensor:
        return torch.randn(count, d, generator=generator)

    signs = 1.0 - 2.0 * (torch.arange(d) % 2)
    most = 6e4 if dtype == F16 else 3e38
    rows = [normal(ordinary) * 2 + 0.3, torch.zeros(1, d), torch.full((1, d), 333.33)]
    rows += [1000.0 + normal(), 1e-4 * normal(), signs[None] * most]
    rows += [most * (torch.arange(d) == (d - 1) // 2)[None].float()]
    rows += [3e3 * normal()] if dtype == F16 else [1e4 * normal(), 1e12 * normal(), 1e30 * normal()]
    return torch.cat(rows).to(device, dtype)


def gradient_like(x: Tensor) -> Tensor:
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(7)).to(x.device, x.dtype)


def assert_near(actual: Tensor, expected: Tensor, bound: float = 3e-5) -> None:
    """Compare rows relative to the largest entry, or to the smallest step of the dtype."""
    assert actual.isfinite().all()
    info = torch.finfo(actual.dtype)
    near = max(info.eps, bound) * expected.abs().amax(-1, keepdim=True)
    least = 2 * info.smallest_normal * info.eps
    off = (actual.double() - expected).abs() - near - least
    assert (off <= 0).all(), (off.amax(-1), actual, expected)


def in_float64(
    kind: str, x: Tensor, parameters: Parameters, scalars: Scalars, grad: Tensor
) -> tuple[Tensor, Tensor, Parameters]:
    """Output, input gradient and parameter gradients of the table's formula in float64."""
    wide = x.double().requires_grad_()
    doubles = [None if t is None else t.double().requires_grad_() for t in parameters]
    y = KINDS[kind].formula(wide, *doubles, scalars)
    leaves = [wide, *(t for t in doubles if t is not None)]
    found = iter(torch.autograd.grad(y, leaves, grad.double()))
    dx = next(found)
    dw, db, da = (None if t is None else next(found) for t in doubles)
    return y.detach(), dx, (dw, db, da)


def assert_sums_near(
    actual: Parameters, expected: Parameters, terms: Tensor, parameters: Parameters
) -> None:
    """Compare parameter gradients, sums over rows, relative to the sum of their terms."""
    for got, want, parameter in zip(actual, expected, parameters, strict=True):
        assert (got is None) == (parameter is None)
        if got is not None and want is not None and parameter is not None:
            assert (got.dtype, got.shape) == (parameter.dtype, parameter.shape)
            near = 1e-5 * terms.sum() + 2 * torch.finfo(got.dtype).eps * want.abs()
            assert ((got.double() - want).abs() <= near).all(), (got, want)


def check(
    target: Target, case: str, x: Tensor, dtype: torch.dtype, bound: float = 3e-5
) -> tuple[Tensor, Parameters]:
    """Compare output and all gradients with float64; returns dx and the parameters' gradients."""
    kind, parameters, scalars = make(case, x.shape[-1], dtype, target.device)
    if F16 in (x.dtype, dtype):
        # float16 cannot hold the gradients of a row of zeros with a smaller one
        scalars = scalars._replace(eps=1e-3)
    grad = gradient_like(x)
    y, stats = target.backend.forward(kind, x, parameters, scalars)
    dx, grads = target.backend.backward(kind, grad, x, parameters, stats, scalars)
    assert stats.shape == (len(x), target.backend.columns(kind))
    assert (y.dtype, dx.dtype, y.shape, dx.shape) == (x.dtype, x.dtype, x.shape, x.shape)
    wanted, dwanted, expected = in_float64(kind, x, parameters, scalars, grad)
    assert_near(y, wanted, bound)
    if x.shape[-1] == 1:
        # the difference of terms of this size: the row's scale times the gradient (and weight)
        size = (stats.double()[:, :2].prod(-1, keepdim=True) * grad.double()).abs()
        assert ((dx.double() - dwanted).abs() <= 2e-6 * size + 1e-5 * dwanted.abs()).all()
    else:
        assert_near(dx, dwanted, bound)
    terms = grad.double().abs() * (wanted.abs() + 1)
    assert_sums_near(grads, expected, terms, parameters)
    return dx, grads


def dropout_mask(target: Target, seeds: Tensor, d: int, p: float) -> Tensor:
    """The factors of dropout, seen through a sum with zeros."""
    ones, scalars = torch.ones(len(seeds), d, device=target.device), Scalars(1e-5, d)
    dropout, no_parameters = Dropout(seeds, p), (None, None, None)
    return target.backend.forward_add("rms", ones, 0 * ones, dropout, no_parameters, scalars)[1]


def check_add(
    target: Target, case: str, p: float | None, dtype: torch.dtype, d: int, with_total: bool
) -> None:
    """Compare residual add, dropout and norm in one pass with float64."""
    kind, parameters, scalars = make(case, d, F32, target.device)
    generator = torch.Generator().manual_seed(11)

    def normal() -> Tensor:
        return torch.randn(4, d, generator=generator).to(target.device, dtype)

    x, residual, grad, grad_total = normal(), normal(), normal(), normal() if with_total else None
    seeds = None
    if p is not None:
        seeds = torch.randint(2**62, (4,), generator=generator).to(target.device)
    dropout, call = Dropout(seeds, p or 0.0), target.backend
    y, total, stats = call.forward_add(kind, x, residual, dropout, parameters, scalars)
    dresidual, dx, grads = call.backward_add(
        kind, grad, grad_total, total, dropout, parameters, stats, scalars
    )
    factor = torch.ones_like(x).double()
    if seeds is not None:
        factor = dropout_mask(target, seeds, d, dropout.p).double()
    assert_near(total, x.double() * factor + residual.double(), 1e-6)
    wanted, dwanted, expected = in_float64(kind, total, parameters, scalars, grad)
    assert_near(y, wanted)
    dwanted = dwanted + (0.0 if grad_total is None else grad_total.double())
    assert_near(dresidual, dwanted)
    assert (dx is None) == (seeds is None)
    if dx is not None:
        assert_near(dx, dwanted * factor)
    assert_sums_near(grads, expected, grad.double().abs() * (wanted.abs() + 1), parameters)
