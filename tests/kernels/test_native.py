"""The native kernels: accuracy, bitwise identical results, torch's transforms, availability.

`test_table.py` compares every kind with float64.
"""

import os
import subprocess
import sys

import pytest
import torch
from fused_cases import BF16, CASES, F16, F32, make
from torch import Tensor

from normtrain import kernels
from normtrain.errors import UserError
from normtrain.kernels import choice, native
from normtrain.kernels.active import dispatched_operations
from normtrain.kernels.table import KINDS
from normtrain.norms import build_norm

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason="no native extension")
RMS = KINDS["rms"].code


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
        pairs = (y.double(), want), (leaf.grad.double(), wide.grad)
        first, second = (((own - true).norm() / true.norm()).item() for own, true in pairs)
        return first, second

    reference = errors(lambda t: torch.nn.functional.layer_norm(t, (768,)))
    norm = build_norm(name, 768)
    if name == "scalenorm":
        norm.requires_grad_(False)
    twin = build_norm(name, 768, dtype=torch.float64)
    with kernels.use("native"):
        ours = errors(lambda t: twin(t) if t.dtype == torch.float64 else norm(t))
    for own, other in zip(ours, reference, strict=True):
        # AdaNorm's factor and the signs of L1 add roundings that LayerNorm does not have
        assert own <= (1.4 if name in ("adanorm", "l1norm") else 1.1) * other


@pytest.mark.extended
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("instruction_set", native.instruction_sets())
def test_bitwise_identical_with_any_number_of_threads(
    instruction_set: str, case: str, dtype: torch.dtype
) -> None:
    kind, parameters, scalars = make(case, 520, F32, "cpu")
    x, grad = torch.randn(2, 301, 520).to(dtype)
    found: list[list[Tensor | None]] = []
    before, threads_before = native.use_instruction_set(instruction_set), torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 2, 1):
            torch.set_num_threads(threads)
            y, stats = native.BACKEND.forward(kind, x, parameters, scalars)
            dx, grads = native.BACKEND.backward(kind, grad, x, parameters, stats, scalars)
            found.append([y, dx, *grads])
    finally:
        torch.set_num_threads(threads_before)
        native.use_instruction_set(before)
    for other in found[1:]:
        for first, again in zip(found[0], other, strict=True):
            assert first is again or torch.equal(first, again)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["layernorm", "rmsnorm", "prmsnorm", "crmsnorm", "dyt", "l1norm"])
def test_inputs_that_are_not_contiguous(name: str) -> None:
    norm = build_norm(name, 6)
    base = torch.randn(6, 4, 5)
    for x in (base.permute(1, 2, 0), torch.randn(4, 5, 12)[..., ::2], torch.randn(6)):
        leaf, copy = x.detach().clone().requires_grad_(), x.detach().clone().requires_grad_()
        grad = torch.randn(6, *x.shape[:-1]).movedim(0, -1)
        with kernels.use("native"):
            norm(leaf).backward(grad)
        with kernels.use("plain"):
            norm(copy).backward(grad)
        torch.testing.assert_close(leaf.grad, copy.grad, rtol=1e-4, atol=1e-5)


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


def test_forcing_a_backend() -> None:
    norm, x = build_norm("rmsnorm", 8), torch.randn(2, 8)
    plain = build_norm("layernorm", 8)
    for name, want in (("native", True), ("plain", False), ("aten", False), ("auto", True)):
        with kernels.use(name):
            assert ("normtrain::rows_forward" in dispatched_operations(lambda: norm(x))) == want
            # PyTorch's kernel by default: bitwise identical to torch.nn.LayerNorm
            names = dispatched_operations(lambda: plain(x))
            assert ("native_layer_norm" in names) == (name in ("aten", "auto"))
            # the formulas where no kernel can run
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


@pytest.mark.extended
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


@pytest.mark.extended
def test_compile_makes_one_graph_of_formulas() -> None:
    torch._dynamo.reset()
    norm, x = build_norm("rmsnorm", 8), torch.randn(3, 8)
    with kernels.use("native"):
        explained = torch._dynamo.explain(norm)(x)
        assert explained.graph_count == 1
        assert explained.graph_break_count == 0
        assert not any("normtrain" in str(node.target) for node in explained.graphs[0].graph.nodes)


@pytest.mark.extended
def test_registered_operations() -> None:
    x, w = torch.randn(4, 8), torch.rand(8)
    forward = torch.ops.normtrain.rows_forward.default
    given = (RMS, x, w, None, None, 1e-5, 8, 0.0, 0.0)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(forward, given, test_utils=checks)
    _, stats = forward(*given)
    back = (RMS, torch.randn(4, 8), x, w, None, None, stats, 1e-5, 8, 0.0, 0.0)
    torch.library.opcheck(torch.ops.normtrain.rows_backward.default, back, test_utils=checks)
