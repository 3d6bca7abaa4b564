"""The hand-derived backwards against autograd, and when they run."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from normtrain import kernels
from normtrain.kernels import aten, formulas


def _leaf(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).requires_grad_()


def _leaves(*shapes: tuple[int, ...] | None) -> list[Tensor | None]:
    return [None if shape is None else _leaf(*shape) for shape in shapes]


def _gradients(
    y: Tensor, leaves: list[Tensor | None], upstream: Tensor, graph: bool = False
) -> list[Tensor]:
    inputs = [t for t in leaves if t is not None]
    return list(torch.autograd.grad(y, inputs, upstream, retain_graph=True, create_graph=graph))


@pytest.fixture(autouse=True)
def _by_torch() -> Iterator[None]:
    """These implementations run where the native kernels do not."""
    with kernels.use("aten"):
        yield


@pytest.mark.parametrize("first", [1, 3, 9])
@pytest.mark.parametrize("weight", [(9,), None])
@pytest.mark.parametrize("bias", [(9,), None])
def test_rms_backward(
    first: int, weight: tuple[int, ...] | None, bias: tuple[int, ...] | None
) -> None:
    leaves = _leaves((2, 4, 9), weight, bias)
    upstream = torch.randn(2, 4, 9, dtype=torch.float64)
    x, gain, offset = leaves
    stats = aten.rms_statistic(x, 1e-3, first)
    fast = aten.RMSNormFunction.apply(x, gain, offset, *stats, 1e-3, first)
    plain = formulas.rms_norm(x, gain, offset, 1e-3, first)
    torch.testing.assert_close(fast, plain)
    wanted = _gradients(plain, leaves, upstream)
    # with a graph of the gradient, the backward uses the formula
    for graph in (True, False):
        for got, want in zip(_gradients(fast, leaves, upstream, graph), wanted, strict=True):
            torch.testing.assert_close(got, want)
            assert got.requires_grad == graph or got.shape == (9,)


@pytest.mark.parametrize("frozen", [0, 1, 2])
@pytest.mark.parametrize("first", [3, 9])
def test_only_the_required_gradients_are_computed(frozen: int, first: int) -> None:
    leaves = x, weight, bias = _leaf(4, 9), _leaf(9), _leaf(9)
    leaves[frozen].requires_grad_(False)
    kernels.rms_norm(x, weight, bias, 1e-5, first=first).sum().backward()
    assert [t.grad is None for t in leaves] == [i == frozen for i in range(3)]


@pytest.mark.parametrize(("c", "k"), [(1.0, 0.1), (2.0, 0.4), (0.5, 0.0)])
def test_ada_backward(c: float, k: float) -> None:
    x, upstream = _leaf(2, 4, 9), torch.randn(2, 4, 9, dtype=torch.float64)
    stats = aten.ada_statistics(x, 1e-3, c)
    fast = aten.AdaNormFunction.apply(x, *stats, 1e-3, c, k)
    plain = formulas.ada_norm(x, 1e-3, c, k)
    torch.testing.assert_close(fast, plain)
    (wanted,) = _gradients(plain, [x], upstream)
    for graph in (True, False):
        torch.testing.assert_close(_gradients(fast, [x], upstream, graph)[0], wanted)


def test_a_weight_that_depends_on_the_input_is_differentiated_once() -> None:
    """Second gradients must not count the path through the weight twice."""

    def call(x: Tensor) -> Tensor:
        return kernels.rms_norm(x, x[0] * 2 + 1, None, 1e-3)

    x = _leaf(3, 4)
    assert torch.autograd.gradcheck(call, (x,))
    assert torch.autograd.gradgradcheck(call, (x,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_inputs_are_not_modified(dtype: torch.dtype) -> None:
    x = torch.randn(3, 8).to(dtype).requires_grad_()
    weight, upstream = torch.rand(8).requires_grad_(), torch.randn(3, 8).to(dtype)
    before = x.detach().clone(), weight.detach().clone(), upstream.clone()
    for y in (
        kernels.rms_norm(x, weight, None, 1e-5),
        kernels.rms_norm(x, weight, None, 1e-5, first=2),
        kernels.ada_norm(x, 1e-5, 2.0, 0.1),
        kernels.layer_norm(x, weight, None, 1e-5),
    ):
        y.backward(upstream)
    with torch.no_grad():
        kernels.rms_norm(x, weight, weight, 1e-5)
        kernels.ada_norm(x, 1e-5, 2.0, 0.1)
    assert torch.equal(x.detach(), before[0])
    assert torch.equal(weight.detach(), before[1])
    assert torch.equal(upstream, before[2])


def test_saved_tensors() -> None:
    """One activation, the input itself, and one or two numbers per row."""
    saved: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        saved.append(t)
        return t

    x, weight = torch.randn(16, 64, requires_grad=True), torch.ones(64, requires_grad=True)
    for call in (
        lambda: kernels.rms_norm(x, weight, None, 1e-5),
        lambda: kernels.rms_norm(x, weight, None, 1e-5, first=4),
        lambda: kernels.ada_norm(x, 1e-5, 1.0, 0.1),
    ):
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            call()
        large = [t for t in saved if t.numel() == x.numel()]
        assert [t.data_ptr() for t in large] == [x.data_ptr()]
        assert sum(t.numel() for t in saved if t.numel() != x.numel()) <= 64 + 2 * 16


def test_out_of_range_rows_use_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts calls, since the results do not show it."""
    taken: list[str] = []

    def count(name: str) -> None:
        formula = getattr(formulas, name)

        def counted(*args: object) -> Tensor:
            taken.append(name)
            return formula(*args)

        monkeypatch.setattr(formulas, name, counted)

    for name in ("layer_norm", "rms_norm", "ada_norm"):
        count(name)
    far = 1e7 + torch.tensor([[0.0, 1.0, 0.0, 3.0]])  # x * rstd - mean * rstd would be noise
    large, ordinary = torch.tensor([[1e12, 1.0, 0.0, 2.0]]), torch.randn(3, 4) * 1e3 + 1e4
    for x, want in ((ordinary, 0), (large, 1), (far, 1), (torch.zeros(0, 4), 0)):
        for name, call in (
            ("layer_norm", lambda x: kernels.layer_norm(x, None, None, 1e-5)),
            ("ada_norm", lambda x: kernels.ada_norm(x, 1e-5, 1.0, 0.1)),
            ("rms_norm", lambda x: kernels.rms_norm(x, None, None, 1e-5)),
        ):
            taken.clear()
            y = call(x)
            assert y.shape == x.shape
            # the formula of AdaNorm calls LayerNorm's
            expected = want if name != "rms_norm" or x is not far else 0
            assert taken.count(name) == expected, (name, x)
