"""The Triton kernels against float64: in Triton's interpreter on the CPU, or compiled on a GPU.

    TRITON_INTERPRET=1 python -m pytest tests/kernels/test_triton_rows.py    # on any machine
    python -m pytest tests/kernels/test_triton_rows.py                       # on a GPU

The interpreter has to be chosen before Triton is imported, which other tests do; so
``test_triton.py`` runs this file in a process of its own where there is no GPU.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import pytest
import torch
from torch import Tensor

from normtrain.kernels.table import DETACH, KINDS, Scalars

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip(
        "no GPU: test_triton.py runs these in Triton's interpreter", allow_module_level=True
    )

from normtrain.kernels import triton as launch  # noqa: E402

if INTERPRETED:
    import triton_bfloat16  # noqa: F401

DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = [] if INTERPRETED else [pytest.mark.gpu]
ON_GPU = pytest.mark.skipif(INTERPRETED, reason="needs the compiled kernels, on a GPU")

CASES = [
    *(kind for kind in KINDS if kind != "detach"),
    *(f"detach-{what}" for what in DETACH),
    "rms-partial",
    "l2-vector",
]
CENTRED = ("layer", "detach", "ada", "l1")
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
MIXES = [(F32, F32), (BF16, F32), (BF16, BF16), (F16, F32), (F16, F16)]

Parameters = tuple[Tensor | None, Tensor | None, Tensor | None]


def exact(kind: str, x: Tensor, parameters: Parameters, n: Scalars) -> Tensor:
    """The norm as its paper writes it, in the dtype of x."""
    weight, bias, alpha = parameters
    if kind == "tanh":
        assert alpha is not None
        h = torch.tanh(alpha * x)
    elif kind == "rms":
        h = x / (x[:, : n.count].square().mean(-1, keepdim=True) + n.eps).sqrt()
    elif kind == "crms":
        full = torch.cat([x, -x.sum(-1, keepdim=True)], -1)
        h = x / (full.square().mean(-1, keepdim=True) + n.eps).sqrt()
    elif kind == "l2":
        h = x / x.square().sum(-1, keepdim=True).add(1e-300).sqrt().clamp_min(n.eps)
    else:
        mean = x.mean(-1, keepdim=True)
        if kind == "detach" and DETACH[n.count] in ("mean", "both"):
            mean = mean.detach()
        c = x - mean
        if kind == "l1":
            h = c / (n.a * c.abs().mean(-1, keepdim=True) + n.eps)
        else:
            deviation = (c.square().mean(-1, keepdim=True) + n.eps).sqrt()
            if kind == "detach" and DETACH[n.count] in ("std", "both"):
                deviation = deviation.detach()
            h = c / deviation
    if kind == "ada":
        return n.a * (1 - n.b * h.detach()) * h
    h = h if weight is None else h * weight
    return h if bias is None else h + bias


def make(case: str, d: int, dtype: torch.dtype) -> tuple[str, Parameters, Scalars]:
    """A kind with parameters of a dtype, none of them special."""
    kind, _, more = case.partition("-")
    generator = torch.Generator().manual_seed(3)

    def uniform(size: int) -> Tensor:
        return (torch.rand(size, generator=generator) + 0.5).to(DEVICE, dtype)

    weight = bias = alpha = None
    if kind not in ("detach", "ada"):
        weight = uniform(1 if case == "l2" else d)
        bias = None if kind == "l2" else uniform(d)
    if kind == "tanh":
        alpha = uniform(1)
    count = 0
    if kind == "rms":
        count = (d + 1) // 2 if more else d
    elif kind == "detach":
        count = DETACH.index(more)
    # float16 could not hold the gradients of a row of zeros with a smaller one
    eps = 1e-3 if dtype == F16 else 1e-5
    return kind, (weight, bias, alpha), Scalars(eps, count, 1.25, 0.1)


def rows_of_all_sizes(d: int, dtype: torch.dtype, ordinary: int = 3) -> Tensor:
    """Ordinary rows, zeros, a constant, an offset, and rows whose squares leave float32."""
    generator = torch.Generator().manual_seed(5)

    def normal(count: int = 1) -> Tensor:
        return torch.randn(count, d, generator=generator)

    signs = 1.0 - 2.0 * (torch.arange(d) % 2)
    most = 6e4 if dtype == F16 else 3e38
    rows = [normal(ordinary) * 2 + 0.3, torch.zeros(1, d), torch.full((1, d), 333.33)]
    rows += [1000.0 + normal(), 1e-4 * normal(), signs[None] * most]
    rows += [most * (torch.arange(d) == (d - 1) // 2)[None].float()]
    rows += [3e3 * normal()] if dtype == F16 else [1e4 * normal(), 1e12 * normal(), 1e30 * normal()]
    return torch.cat(rows).to(DEVICE, dtype)


def assert_rows_near(actual: Tensor, expected: Tensor, bound: float = 3e-5) -> None:
    """Near each expected row by its largest entry, or by the smallest step of the dtype."""
    assert actual.isfinite().all()
    info = torch.finfo(actual.dtype)
    near = max(info.eps, bound) * expected.abs().amax(-1, keepdim=True)
    least = 2 * info.smallest_normal * info.eps
    off = (actual.double() - expected).abs() - near - least
    assert (off <= 0).all(), (off.amax(-1), actual, expected)


def assert_sums_near(
    actual: Parameters, expected: Parameters, terms: Tensor, parameters: Parameters
) -> None:
    """Gradients that are sums over rows, near by what was added up; of the parameter's dtype."""
    for got, want, parameter in zip(actual, expected, parameters, strict=True):
        assert (got is None) == (parameter is None)
        if got is not None and want is not None and parameter is not None:
            assert got.dtype == parameter.dtype
            assert got.shape == parameter.shape
            near = 1e-5 * terms.sum() + 2 * torch.finfo(got.dtype).eps * want.abs()
            assert ((got.double() - want).abs() <= near).all(), (got, want)


def check(
    case: str, x: Tensor, dtype: torch.dtype, bound: float = 3e-5
) -> tuple[Tensor, Parameters]:
    """Forward and all gradients against float64; returns dx and the parameters' gradients."""
    kind, parameters, n = make(case, x.shape[-1], dtype)
    if x.dtype == F16:
        n = n._replace(eps=1e-3)
    g = torch.randn(x.shape, generator=torch.Generator().manual_seed(7)).to(x.device, x.dtype)
    y, stats = launch.BACKEND.forward(kind, x, *parameters, n)
    dx, *grads = launch.BACKEND.backward(kind, g, x, *parameters, stats, n)
    assert stats.shape == (len(x), launch.BACKEND.columns(kind))
    assert y.dtype == dx.dtype == x.dtype

    wide = x.double().requires_grad_()
    doubles = tuple(None if t is None else t.double().requires_grad_() for t in parameters)
    wanted = exact(kind, wide, doubles, n)
    leaves = [wide, *(t for t in doubles if t is not None)]
    found = iter(torch.autograd.grad(wanted, leaves, g.double()))
    assert_rows_near(y, wanted.detach(), bound)
    dwanted = next(found)
    if x.shape[-1] == 1:
        # all but nothing is left of two terms of about this size
        size = (wanted.detach() / x.double()).nan_to_num(0.0, 0.0, 0.0) * g.double()
        assert ((dx.double() - dwanted).abs() <= 1e-6 * size.abs() + 1e-5 * dwanted.abs()).all()
    else:
        assert_rows_near(dx, dwanted, bound)
    expected = tuple(None if t is None else next(found) for t in doubles)
    terms = g.double().abs() * (wanted.detach().abs() + 1)
    assert_sums_near(tuple(grads), expected, terms, parameters)
    return dx, tuple(grads)


BARE = ("ada", *(f"detach-{what}" for what in DETACH))


@pytest.mark.parametrize(
    ("case", "dtype", "parameter"),
    # the parameters' dtype is nothing to a norm without any
    [(c, *mix) for c in CASES for mix in MIXES if c not in BARE or mix[1] == F32],
    ids=str,
)
def test_all_sizes_of_rows_in_all_dtypes(
    case: str, dtype: torch.dtype, parameter: torch.dtype
) -> None:
    check(case, rows_of_all_sizes(13, dtype), parameter)


@pytest.mark.parametrize("case", CASES)
def test_one_feature(case: str) -> None:
    x = rows_of_all_sizes(1, F32)
    # a huge row is brought into range without its eps, which is all that a row of one feature has
    check(case, x[x.abs().flatten() < 2**30] if case.split("-")[0] in CENTRED else x, F32)


@pytest.mark.parametrize("case", ["layer", "rms-partial", "l1", "tanh"])
def test_a_block_without_padding(case: str) -> None:
    check(case, rows_of_all_sizes(64, F32), F32)


@pytest.fixture
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of more than 8 features count as too long for a program's registers."""
    monkeypatch.setattr(launch, "_FORWARD_BLOCK", 8)
    monkeypatch.setattr(launch, "_BACKWARD_BLOCK", 8)
    monkeypatch.setattr(launch, "_WIDE_BLOCK", 8)
    monkeypatch.setattr(launch, "_WIDE_TILE", (2, 8))


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize("case", [c for c in CASES if c not in ("detach-both", "l2-vector")])
def test_rows_longer_than_a_block(case: str) -> None:
    check(case, rows_of_all_sizes(13, F32, ordinary=1)[::3].contiguous(), F32)


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize("case", ["layer", "rms-partial", "l1"])
def test_mixed_dtypes_longer_than_a_block(case: str) -> None:
    check(case, rows_of_all_sizes(16, BF16, ordinary=1)[1::3].contiguous(), F32)


@pytest.mark.parametrize("case", ["layer", "rms-partial", "l2", "tanh", "ada"])
def test_many_programs_share_the_rows(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More tiles than programs and a last one that is not full; the same bits every time."""
    monkeypatch.setattr(launch, "backward_tile", lambda block: launch.Tile(2, 1, 2))
    monkeypatch.setattr(launch, "_most_programs", lambda device: 3)
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    dx, grads = check(case, x, F32)
    kind, parameters, n = make(case, 6, F32)
    g = torch.randn(x.shape, generator=torch.Generator().manual_seed(7)).to(DEVICE)
    _, stats = launch.BACKEND.forward(kind, x, *parameters, n)
    again = launch.BACKEND.backward(kind, g, x, *parameters, stats, n)
    for one, two in zip((dx, *grads), again, strict=True):
        assert one is two or (one is not None and two is not None and torch.equal(one, two))


@pytest.mark.parametrize("case", CASES)
def test_no_rows(case: str) -> None:
    kind, parameters, n = make(case, 6, F32)
    x = torch.empty(0, 6, device=DEVICE)
    y, stats = launch.BACKEND.forward(kind, x, *parameters, n)
    dx, *grads = launch.BACKEND.backward(kind, x, x, *parameters, stats, n)
    assert y.shape == dx.shape == (0, 6)
    for grad, parameter in zip(grads, parameters, strict=True):
        assert (grad is None) == (parameter is None)
        assert grad is None or (grad.shape == parameter.shape and not grad.any())


@pytest.mark.parametrize("d", [10, 63])
@pytest.mark.parametrize("value", [37.3, 1234.567, 333333.33, -1e-3])
def test_constant_rows_come_out_as_zeros(value: float, d: int) -> None:
    """The rounding of a mean must not be taken for a spread."""
    x = torch.full((2, d), value, device=DEVICE)
    for case in ("layer", "l1"):
        kind, _, n = make(case, d, F32)
        y, _ = launch.BACKEND.forward(kind, x, None, None, None, n)
        assert y.abs().max().item() <= 1e-3


@pytest.mark.parametrize("case", ["layer", "l1", "ada"])
def test_one_large_feature_costs_the_others_no_digits(case: str) -> None:
    """Wherever it stands: subtracting a feature ahead of the mean would."""
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(2))
    x[:, 0], x[1, :] = 1e5, x[1].flip(0)
    kind, parameters, n = make(case, 64, F32)
    y, _ = launch.BACKEND.forward(kind, x.to(DEVICE), *parameters, n)
    doubles: Any = tuple(None if t is None else t.double() for t in parameters)
    wanted = exact(kind, x.double().to(DEVICE), doubles, n)
    torch.testing.assert_close(y.double(), wanted, rtol=3e-6, atol=3e-7)


def test_prmsnorm_with_features_far_larger_than_its_statistic() -> None:
    small = torch.tensor([1.0, -2.0, 0.5, 1.0])
    scales = (10.0, 300.0, 1e6, 1e10, 1e18, 1e25, 1e37)
    large = 3e38 * torch.tensor([1.0, -1, 1, -0.7])
    x = torch.stack([torch.cat([scale * small, large]) for scale in scales]).to(DEVICE)
    _, (weight, bias, _), n = make("rms-partial", 8, F32)
    assert n.count == 4
    assert weight is not None
    g = torch.randn(x.shape, generator=torch.Generator().manual_seed(7)).to(DEVICE)
    y, stats = launch.BACKEND.forward("rms", x, weight, bias, None, n)
    dx, *_ = launch.BACKEND.backward("rms", g, x, weight, bias, None, stats, n)
    wide = x.double().requires_grad_()
    wanted = exact("rms", wide, (weight.double(), bias.double(), None), n)  # type: ignore[union-attr]
    (dwanted,) = torch.autograd.grad(wanted, wide, g.double())
    for part in (slice(0, 4), slice(4, 8)):
        assert_rows_near(y[:, part], wanted.detach()[:, part])
        assert_rows_near(dx[:, part], dwanted[:, part])


@pytest.mark.parametrize("upstream", [1e-12, 1e15])
@pytest.mark.parametrize("case", ["layer", "rms", "l2"])
def test_large_and_tiny_gradients(case: str, upstream: float) -> None:
    kind, parameters, n = make(case, 8, F32)
    x = rows_of_all_sizes(8, F32)
    g = upstream * torch.randn(x.shape, generator=torch.Generator().manual_seed(7)).to(DEVICE)
    _, stats = launch.BACKEND.forward(kind, x, *parameters, n)
    dx, *_ = launch.BACKEND.backward(kind, g, x, *parameters, stats, n)
    wide = x.double().requires_grad_()
    doubles: Any = tuple(None if t is None else t.double() for t in parameters)
    (wanted,) = torch.autograd.grad(exact(kind, wide, doubles, n), wide, g.double())
    small = wanted.abs().amax(-1) < 1e-36
    assert_rows_near(dx[~small], wanted[~small])
    assert (dx[small].abs() < 2e-36).all()


def mask_of(seeds: Tensor, d: int, p: float) -> Tensor:
    """What dropout multiplies by, seen through a sum with nothing."""
    ones = torch.ones(len(seeds), d, device=DEVICE)
    n = Scalars(1e-5, d)
    return launch.BACKEND.forward_add("rms", ones, 0 * ones, seeds, p, None, None, None, n)[1]


def check_fused(case: str, p: float | None, dtype: torch.dtype, d: int, with_total: bool) -> None:
    kind, parameters, n = make(case, d, F32)
    generator = torch.Generator().manual_seed(11)

    def normal() -> Tensor:
        return torch.randn(4, d, generator=generator).to(DEVICE, dtype)

    x, residual, g, g_total = normal(), normal(), normal(), normal() if with_total else None
    seeds = None if p is None else torch.randint(2**62, (4,), generator=generator).to(DEVICE)
    share = 0.0 if p is None else p
    y, total, stats = launch.BACKEND.forward_add(kind, x, residual, seeds, share, *parameters, n)
    dresidual, dx, grads = launch.BACKEND.backward_add(
        kind, g, g_total, total, seeds, share, *parameters, stats, n
    )
    factor = 1.0 if seeds is None else mask_of(seeds, d, share).double()
    exact_total = x.double() * factor + residual.double()
    assert_rows_near(total, exact_total, 1e-6)
    wide = total.double().requires_grad_()
    doubles = tuple(None if t is None else t.double().requires_grad_() for t in parameters)
    wanted = exact(kind, wide, doubles, n)
    leaves = [wide, *(t for t in doubles if t is not None)]
    found = iter(torch.autograd.grad(wanted, leaves, g.double()))
    assert_rows_near(y, wanted.detach())
    dwanted = next(found) + (0.0 if g_total is None else g_total.double())
    assert_rows_near(dresidual, dwanted)
    if seeds is None:
        assert dx is None
    else:
        assert dx is not None
        assert_rows_near(dx, dwanted * factor)
    expected = tuple(None if t is None else next(found) for t in doubles)
    terms = g.double().abs() * (wanted.detach().abs() + 1)
    assert_sums_near(tuple(grads), expected, terms, parameters)


@pytest.mark.parametrize(
    ("p", "dtype", "with_total"), [(None, F32, True), (0.3, F32, True), (0.5, BF16, False)]
)
@pytest.mark.parametrize("case", ["layer", "rms", "ada", "tanh"])
def test_residual_add_dropout_and_norm(
    case: str, p: float | None, dtype: torch.dtype, with_total: bool
) -> None:
    check_fused(case, p, dtype, 13, with_total)


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize("case", ["layer", "tanh"])
def test_fused_longer_than_a_block(case: str) -> None:
    check_fused(case, 0.3, F32, 13, True)


def test_the_mask_follows_from_the_seed_of_a_row() -> None:
    seeds = torch.tensor([5, 6, 5, 5 + 2**32, -7], device=DEVICE)
    mask = mask_of(seeds, 2048, 0.25)
    assert torch.equal(mask[0], mask[2])
    for one, two in ((0, 1), (0, 3), (1, 4)):
        # independent masks agree in 0.75^2 + 0.25^2 of the places
        assert 0.57 < (mask[one] == mask[two]).double().mean() < 0.68
    assert torch.allclose(mask.unique(), torch.tensor([0.0, 1 / 0.75], device=DEVICE))
    assert ((mask > 0).double().mean(-1) - 0.75).abs().max() < 0.05
    assert torch.equal(mask_of(seeds[:2], 64, 0.25), mask[:2, :64])
    assert (mask_of(seeds[:1], 64, 0.0) == 1).all()


def test_what_is_served() -> None:
    x = torch.empty(2, 3, device=DEVICE)
    assert launch.BACKEND.serves(x)
    assert launch.BACKEND.serves(x.half())
    assert not launch.BACKEND.serves(x.double())
    assert not launch.BACKEND.serves(x[:, :0])
    assert not launch.BACKEND.serves(torch.empty(1, launch.LONGEST + 1, device="meta"))
    with pytest.raises(AssertionError):
        launch.BACKEND.forward("rms", x.double(), None, None, None, Scalars(1e-5, 3))


# On a GPU: real tiles, real lengths, all programs at once.

LENGTHS = [100, 512, 768, 1024, 4096, 5001, 8192, 16384, 20000, 65536]


@ON_GPU
@pytest.mark.parametrize("case", CASES)
def test_real_lengths(case: str) -> None:
    for d in LENGTHS:
        check_length(case, d)


def check_length(case: str, d: int) -> None:
    count = max(3, min(6000, 2**23 // d))
    for dtype, parameter in MIXES:
        check(case, rows_of_all_sizes(d, dtype, ordinary=count), parameter, bound=1e-4)


@ON_GPU
@pytest.mark.parametrize("d", [512, 768, 4096, 20000])
def test_real_lengths_fused(d: int) -> None:
    for case in ("layer", "rms", "tanh"):
        check_fused(case, 0.1, BF16, d, True)
        check_fused(case, None, F32, d, False)


@ON_GPU
def test_the_same_bits_every_time() -> None:
    for d in (512, 1000, 20000):
        kind, parameters, n = make("layer", d, BF16)
        x, g = torch.randn(2, 4099, d, device=DEVICE).to(BF16)
        _, stats = launch.BACKEND.forward(kind, x, *parameters, n)

        def once(
            g: Tensor = g, x: Tensor = x, p: Parameters = parameters, s: Tensor = stats
        ) -> list[Tensor]:
            return [t for t in launch.BACKEND.backward("layer", g, x, *p, s, n) if t is not None]  # noqa: B023

        first = once()
        for _ in range(20):
            assert all(torch.equal(*both) for both in zip(first, once(), strict=True))


@ON_GPU
def test_offsets_beyond_32_bits() -> None:
    rows, d = 2**31 // 4096 + 9, 4096
    _, parameters, n = make("rms", d, BF16)
    x = torch.randn(rows, d, device=DEVICE, dtype=BF16)
    y, stats = launch.BACKEND.forward("rms", x, *parameters, n)
    dx, *_ = launch.BACKEND.backward("rms", x, x, *parameters, stats, n)
    doubles: Any = tuple(None if t is None else t.double() for t in parameters)
    tail = x[-9:].double().requires_grad_()
    wanted = exact("rms", tail, doubles, n)
    assert_rows_near(y[-9:], wanted.detach())
    assert_rows_near(dx[-9:], torch.autograd.grad(wanted, tail, x[-9:].double())[0])


@ON_GPU
def test_in_a_cuda_graph() -> None:
    kind, parameters, n = make("layer", 512, BF16)
    x = torch.randn(100, 512, device=DEVICE, dtype=BF16)

    def step() -> tuple[Tensor, Tensor]:
        y, stats = launch.BACKEND.forward(kind, x, *parameters, n)
        return y, launch.BACKEND.backward(kind, x, x, *parameters, stats, n)[0]

    # compiles, which can't be recorded
    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = step()
    x.normal_()
    graph.replay()
    assert all(torch.equal(*both) for both in zip(recorded, step(), strict=True))
