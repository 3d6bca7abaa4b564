"""The native kernels against formulas in float64, and their promises: bits, threads, absence."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from normtrain import kernels
from normtrain.errors import UserError
from normtrain.kernels import choice, native
from normtrain.kernels.active import dispatched_operations
from normtrain.kernels.table import KINDS, Scalars
from normtrain.norms import build_norm

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason="no native extension")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [((1, 1), 1.0), ((3, 7), 1.0), ((8, 64), 1e-4), ((5, 129), 1e4), ((70, 1000), 1.0)]
SHAPES += [((0, 5), 1.0)]
CASES = [(kind, Scalars(1e-5)) for kind in ("layer", "crms", "l2", "tanh")]
CASES += [("detach", Scalars(1e-5, count)) for count in range(3)]
CASES += [("rms", Scalars(1e-5, -1)), ("rms", Scalars(1e-5, 3))]
CASES += [("ada", Scalars(1e-5, 0, 1.5, 0.1)), ("l1", Scalars(1e-5, 0, math.sqrt(math.pi / 2)))]


@pytest.fixture(autouse=True, params=native.instruction_sets())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set that this processor has."""
    before = native.use_instruction_set(request.param)
    yield request.param
    native.use_instruction_set(before)


def oracle(
    kind: str, x: Tensor, w: Tensor | None, b: Tensor | None, alpha: Tensor | None, n: Scalars
) -> Tensor:
    """The formulas of the papers, in the dtype of x (float64)."""
    d = x.shape[-1]
    mean = x.mean(-1, keepdim=True)
    if kind == "detach" and n.count != 2:
        mean = mean.detach()
    centred = x - mean
    sigma = (centred.square().mean(-1, keepdim=True) + n.eps).sqrt()
    if kind == "detach" and n.count != 1:
        sigma = sigma.detach()
    if kind in ("layer", "detach"):
        y = centred / sigma
    elif kind == "ada":
        y = centred / sigma
        y = n.a * (1 - n.b * y.detach()) * y
    elif kind == "rms":
        y = x / (x[..., : n.count].square().mean(-1, keepdim=True) + n.eps).sqrt()
    elif kind == "crms":
        whole = torch.cat([x, -x.sum(-1, keepdim=True)], -1)
        y = x / (whole.square().sum(-1, keepdim=True) / (d + 1) + n.eps).sqrt()
    elif kind == "l2":
        y = x / x.square().sum(-1, keepdim=True).sqrt().clamp_min(n.eps)
    elif kind == "l1":
        y = centred / (n.a * centred.abs().mean(-1, keepdim=True) + n.eps)
    else:
        assert alpha is not None
        y = torch.tanh(alpha * x)
    y = y if w is None else y * w
    return y if b is None else y + b


def inputs(
    kind: str, shape: tuple[int, int], dtype: torch.dtype, of_parameters: torch.dtype, scale: float
) -> list[Tensor | None]:
    """x, weight, bias and alpha as the kind takes them."""
    torch.manual_seed(2)
    d = shape[-1]
    x = (torch.randn(shape) * scale + 0.3 * scale).to(dtype)
    w = b = alpha = None
    if kind not in ("detach", "ada"):
        w = (torch.rand(1 if kind == "l2" else d) + 0.5).to(of_parameters)
        b = None if kind == "l2" else torch.randn(d).to(of_parameters)
    if kind == "tanh":
        alpha = torch.tensor([0.7 / scale]).to(of_parameters)
    return [x, w, b, alpha]


def near(got: Tensor, want: Tensor, size: Tensor, units: float) -> None:
    """Within so many units in the last place of the size."""
    assert got.isfinite().all()
    eps = torch.finfo(got.dtype).eps
    # and the smallest step that the dtype has
    allowed = units * eps * size + torch.finfo(got.dtype).smallest_normal * eps
    assert ((got.double() - want).abs() <= allowed).all(), (got, want)


@pytest.mark.parametrize("of_parameters", [None, torch.float32], ids=["same", "float32"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("kind", "numbers"), CASES, ids=str)
def test_forward_and_backward_against_float64(
    kind: str, numbers: Scalars, dtype: torch.dtype, of_parameters: torch.dtype | None
) -> None:
    for shape, scale in SHAPES:
        if kind == "tanh" and dtype == torch.float16 and scale != 1:
            continue  # alpha, or its gradient, leaves float16
        tensors = inputs(kind, shape, dtype, of_parameters or dtype, scale)
        n = numbers
        if kind == "rms":
            n = n._replace(count=shape[-1] if n.count < 0 else min(n.count, shape[-1]))
        x, w, b, alpha = tensors
        assert x is not None
        grad = torch.randn(shape).to(dtype)
        y, stats = native.BACKEND.forward(kind, x, w, b, alpha, n)
        got = native.BACKEND.backward(kind, grad, x, w, b, alpha, stats, n)
        assert y.shape == got[0].shape == x.shape
        if x.numel() == 0:
            assert all(g is None or not g.any() for g in got[1:])
            continue
        leaves = [None if t is None else t.double().requires_grad_() for t in tensors]
        assert leaves[0] is not None
        want_y = oracle(kind, leaves[0], *leaves[1:], n)
        given = [t for t in leaves if t is not None]
        want = iter(torch.autograd.grad(want_y, given, grad.double()))
        want_y = want_y.detach()
        near(y, want_y, want_y.abs().amax(-1, keepdim=True) + 1, 6)
        # a row's gradient is a difference of terms of this size
        pull = grad.double().abs().amax() * want_y.abs().amax().clamp_min(1)
        near(got[0], next(want), 4 * pull * steepest(kind, x.double(), alpha, n.eps), 8)
        for g, t, leaf in zip(got[1:], tensors[1:], leaves[1:], strict=True):
            assert (g is None) == (t is None)
            if g is not None and t is not None:
                assert g.dtype == t.dtype
                near(g, next(want), pull * x.numel() * (scale if leaf is leaves[3] else 1), 2)


def steepest(kind: str, x: Tensor, alpha: Tensor | None, eps: float) -> Tensor:
    """The largest scale that any kind gives a row ``(rows, d)``; alpha for tanh."""
    if kind == "tanh":
        assert alpha is not None
        return alpha.double()
    centred = x - x.mean(-1, keepdim=True)
    by_variance = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    by_distance = 1 / (centred.abs().mean(-1, keepdim=True) + eps)
    by_length = 1 / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(eps)
    return torch.maximum(torch.maximum(by_variance, by_distance), by_length)


@pytest.mark.parametrize("name", ["layernorm", "rmsnorm", "adanorm", "l1norm", "scalenorm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_less_accurate_than_layer_norm_of_torch(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(4)
    x, grad = torch.randn(256, 768).to(dtype), torch.randn(256, 768).to(dtype)

    def errors(call: object, *parameters: Tensor) -> tuple[float, float]:
        leaf, wide = x.clone().requires_grad_(), x.double().requires_grad_()
        y, want = call(leaf), call(wide)  # type: ignore[operator]
        y.backward(grad)
        want.backward(grad.double())
        assert leaf.grad is not None
        assert wide.grad is not None
        pairs = (y.double(), want), (leaf.grad.double(), wide.grad)
        first, second = (((own - true).norm() / true.norm()).item() for own, true in pairs)
        return first, second

    theirs = errors(lambda t: torch.nn.functional.layer_norm(t, (768,)))
    norm = build_norm(name, 768)
    if name == "scalenorm":
        norm.requires_grad_(False)
    twin = build_norm(name, 768, dtype=torch.float64)
    with kernels.use("native"):
        ours = errors(lambda t: twin(t) if t.dtype == torch.float64 else norm(t))
    for own, their in zip(ours, theirs, strict=True):
        # AdaNorm's factor and L1's signs are roundings that LayerNorm does not have
        assert own <= (1.4 if name in ("adanorm", "l1norm") else 1.1) * their


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("kind", "numbers"), CASES, ids=str)
def test_the_same_bits_again_and_with_any_number_of_threads(
    kind: str, numbers: Scalars, dtype: torch.dtype
) -> None:
    x, w, b, alpha = inputs(kind, (301, 520), dtype, torch.float32, 1.0)
    assert x is not None
    n = numbers._replace(count=500) if kind == "rms" else numbers
    grad = torch.randn(301, 520).to(dtype)
    found: list[list[Tensor | None]] = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 2, 1):
            torch.set_num_threads(threads)
            y, stats = native.BACKEND.forward(kind, x, w, b, alpha, n)
            found.append([y, *native.BACKEND.backward(kind, grad, x, w, b, alpha, stats, n)])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for first, again in zip(found[0], other, strict=True):
            assert (first is None and again is None) or torch.equal(first, again)  # type: ignore[arg-type]


def test_every_kind_is_tested() -> None:
    assert {kind for kind, _ in CASES} == set(KINDS)


@pytest.mark.parametrize("name", ["layernorm", "rmsnorm", "prmsnorm", "crmsnorm", "dyt", "l1norm"])
def test_inputs_that_are_not_contiguous(name: str) -> None:
    norm = build_norm(name, 6)
    base = torch.randn(6, 4, 5)
    for x in (base.permute(1, 2, 0), torch.randn(4, 5, 12)[..., ::2], torch.randn(6)):
        leaf, twin = x.detach().clone().requires_grad_(), x.detach().clone().requires_grad_()
        grad = torch.randn(6, *x.shape[:-1]).movedim(0, -1)
        with kernels.use("native"):
            norm(leaf).backward(grad)
        with kernels.use("plain"):
            norm(twin).backward(grad)
        assert leaf.grad is not None
        torch.testing.assert_close(leaf.grad, twin.grad, rtol=1e-4, atol=1e-5)


def test_second_gradients_are_the_formulas() -> None:
    for name in ("layernorm", "rmsnorm", "prmsnorm:p=0.5", "adanorm", "crmsnorm", "dyt"):
        norm, found = build_norm(name, 6), []
        x = torch.randn(3, 6)
        for backend in ("native", "plain"):
            leaf = x.clone().requires_grad_()
            with kernels.use(backend):
                (first,) = torch.autograd.grad(norm(leaf).square().sum(), leaf, create_graph=True)
                found.append(torch.autograd.grad(first.square().sum(), leaf)[0])
        torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("kind", "numbers"), CASES, ids=str)
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_residual_dropout_and_norm_in_one(
    kind: str, numbers: Scalars, p: float, dtype: torch.dtype
) -> None:
    """Against the sum made by torch with the mask that the sum shows."""
    branch, w, b, alpha = inputs(kind, (37, 50), dtype, torch.float32, 1.0)
    assert branch is not None
    n = numbers._replace(count=50) if kind == "rms" else numbers
    residual, grad, more = (torch.randn(37, 50).to(dtype) for _ in range(3))
    seeds = torch.randint(2**62, (37,)) if p else None
    y, total, stats = native.BACKEND.forward_add(kind, branch, residual, seeds, p, w, b, alpha, n)
    clean = native.BACKEND.forward_add(
        kind, branch, torch.zeros_like(branch), seeds, p, w, b, alpha, n
    )[1]
    mask = (clean != 0).float() / (1 - p)
    if p:
        assert abs((mask == 0).float().mean().item() - p) < 0.05
        assert not torch.equal(mask[0], mask[1])
    else:
        assert mask.all()
    want_total = (residual.float() + branch.float() * mask).to(dtype)
    assert torch.equal(total, want_total)
    assert torch.equal(y, native.BACKEND.forward(kind, total, w, b, alpha, n)[0])
    dx, dw, db, da = native.BACKEND.backward(kind, grad, total, w, b, alpha, stats, n)
    for extra in (None, more):
        got = native.BACKEND.backward_add(kind, grad, extra, total, seeds, p, w, b, alpha, stats, n)
        want = dx.float() if extra is None else dx.float() + extra.float()
        tolerance = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(got[0].float(), want, rtol=tolerance, atol=tolerance)
        if p:
            assert got[1] is not None
            torch.testing.assert_close(got[1].float(), want * mask, rtol=tolerance, atol=tolerance)
        else:
            assert got[1] is None
        for one, other in zip(got[2], (dw, db, da), strict=True):
            assert (one is None and other is None) or torch.equal(one, other)  # type: ignore[arg-type]


def test_forcing_a_backend() -> None:
    norm, x = build_norm("rmsnorm", 8), torch.randn(2, 8)
    plain = build_norm("layernorm", 8)
    for name, want in (("native", True), ("plain", False), ("aten", False), ("auto", True)):
        with kernels.use(name):
            assert ("normtrain::rows_forward" in dispatched_operations(lambda: norm(x))) == want
            # the bits of torch.nn.LayerNorm, unless the native kernels are asked for
            names = dispatched_operations(lambda: plain(x))
            assert ("native_layer_norm" in names) == (name in ("aten", "auto"))
            # the formulas for what the kernels can't do
            assert norm(x.double()).dtype == torch.float64
            assert build_norm("rmsnorm", 8, device="meta")(x.to("meta")).is_meta
    with pytest.raises(UserError, match="got 'cuda'"), kernels.use("cuda"):  # fmt: skip
        pass


def test_the_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 8)
    for value, want in (
        ("native", "normtrain::rows_forward"),
        ("", "normtrain::rows_forward"),
        ("plain", "mean"),
        ("aten", "linalg_vector_norm"),
    ):
        monkeypatch.setenv(choice.VARIABLE, value)
        monkeypatch.setattr(choice, "_current", None)
        assert want in dispatched_operations(lambda: kernels.rms_norm(x, None, None, 1e-5))
    monkeypatch.setenv(choice.VARIABLE, "fast")
    monkeypatch.setattr(choice, "_current", None)
    with pytest.raises(UserError, match="NORMTRAIN_KERNELS must be one of"):
        kernels.rms_norm(x, None, None, 1e-5)


def test_without_the_extension() -> None:
    """Norms run by PyTorch's operations; asking for the native ones is an error that says why."""
    code = (
        "import sys; sys.modules['normtrain.kernels._native'] = None\n"
        "import torch; from normtrain import build_norm, kernels\n"
        "x = torch.randn(2, 8)\n"
        "print(kernels.described(), build_norm('rmsnorm', 8)(x).shape)\n"
        "from normtrain.errors import UserError\n"
        "try:\n    kernels.use('native').__enter__()\nexcept UserError as error: print(error)\n"
    )
    environment = os.environ | {choice.VARIABLE: "", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    first, second = done.stdout.splitlines()
    assert first == "auto: aten torch.Size([2, 8])"
    assert second.startswith(
        "kernels=native is not supported here: the native extension is not built"
    )


def test_compile_makes_one_graph_of_formulas() -> None:
    torch._dynamo.reset()
    norm, x = build_norm("rmsnorm", 8), torch.randn(3, 8)
    with kernels.use("native"):
        explained = torch._dynamo.explain(norm)(x)
        assert explained.graph_count == 1
        assert explained.graph_break_count == 0
        assert not any("normtrain" in str(node.target) for node in explained.graphs[0].graph.nodes)


def test_registered_operations() -> None:
    x, w = torch.randn(4, 8), torch.rand(8)
    forward = torch.ops.normtrain.rows_forward.default
    given = (KINDS["rms"].code, x, w, None, None, 1e-5, 8, 0.0, 0.0)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(forward, given, test_utils=checks)
    _, stats = forward(*given)
    back = (KINDS["rms"].code, torch.randn(4, 8), x, w, None, None, stats, 1e-5, 8, 0.0, 0.0)
    torch.library.opcheck(torch.ops.normtrain.rows_backward.default, back, test_utils=checks)
