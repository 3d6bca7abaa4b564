"""What a norm must survive: precisions, copies, compilers, function transforms and the like."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, grad, jvp, vjp, vmap
from torch.utils.checkpoint import checkpoint
from variants import NAMES, SPECS, build, gradients, has_parameters, leaf, rows, sampled

from normtrain.norms import build_norm
from normtrain.norms.base import NormBase

pytestmark = pytest.mark.extended

DIM = 8
LOW = [torch.float32, torch.bfloat16, torch.float16]
WITH_PARAMETERS = [spec for spec in SPECS if has_parameters(spec)]


def assert_same(have: dict[str, Tensor], want: dict[str, Tensor], tolerance: float = 1e-11) -> None:
    assert set(have) == set(want)
    for key, value in want.items():
        torch.testing.assert_close(have[key], value, rtol=tolerance, atol=tolerance)


# -- dtypes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spec", "dtype"), sampled(SPECS, [*LOW, torch.float64], each=2))
def test_the_output_has_the_inputs_dtype(spec: str, dtype: torch.dtype) -> None:
    for parameters in (*LOW, torch.float64):
        norm, x = build(spec, DIM, parameters), rows(3, DIM).to(dtype)
        found = gradients(norm, x, torch.ones_like(x))
        with torch.no_grad():
            assert norm(x).dtype == dtype
        assert norm(x).dtype == dtype
        assert found.pop("x").dtype == dtype
        assert {g.dtype for g in found.values()} <= {parameters}


@pytest.mark.parametrize(("spec", "narrow"), sampled(SPECS, [torch.bfloat16, torch.float16]))
def test_autocast_changes_nothing(spec: str, narrow: torch.dtype) -> None:
    """Neither narrower arithmetic nor a wider output, be the backward under it or not."""
    norm, upstream = build(spec, DIM, torch.float32), torch.randn(3, DIM)
    for x in (torch.randn(3, DIM), torch.randn(3, DIM).to(narrow)):
        g = upstream.to(x.dtype)
        want = gradients(norm, x, g)
        own = leaf(x)
        leaves = [own, *norm.parameters()]
        with torch.autocast("cpu", dtype=narrow):
            y = norm(own)
            inside = torch.autograd.grad(y, leaves, g, retain_graph=True)
        assert y.dtype == x.dtype
        assert torch.equal(y, norm(x))
        for found in (inside, torch.autograd.grad(y, leaves, g)):
            assert all(torch.equal(a, b) for a, b in zip(found, want.values(), strict=True))


# -- copies -------------------------------------------------------------------------------------


def _stored(norm: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(norm.state_dict(), buffer)
    buffer.seek(0)
    loaded = build_norm(str(norm.spec), DIM, dtype=torch.float64)
    loaded.load_state_dict(torch.load(buffer, weights_only=True), strict=True)
    return loaded


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda norm: pickle.loads(pickle.dumps(norm)),
    "state_dict": _stored,
}


@pytest.mark.parametrize(("spec", "way"), sampled(SPECS, list(COPIES), each=2))
def test_copies(spec: str, way: str) -> None:
    norm, x, upstream = build(spec, DIM), rows(3, DIM), rows(3, DIM)
    twin = COPIES[way](norm)
    assert twin.spec == norm.spec
    assert repr(twin) == repr(norm)
    assert torch.equal(twin(x), norm(x))
    assert_same(gradients(twin, x, upstream), gradients(norm, x, upstream))
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    assert all((a != b).all() for a, b in zip(twin.parameters(), norm.parameters(), strict=True))


@pytest.mark.parametrize("spec", WITH_PARAMETERS)
def test_state_with_a_key_too_many_or_few_is_refused(spec: str) -> None:
    state = build_norm(spec, DIM).state_dict()
    with pytest.raises(RuntimeError, match="Unexpected"):
        build_norm(spec, DIM).load_state_dict({**state, "gain": torch.ones(1)})
    state.pop(next(iter(state)))
    with pytest.raises(RuntimeError, match="Missing"):
        build_norm(spec, DIM).load_state_dict(state)


@pytest.mark.parametrize("spec", SPECS)
def test_meta_device_and_reset(spec: str) -> None:
    norm = build_norm(spec, DIM, device="meta", dtype=torch.bfloat16)
    assert {p.device.type for p in norm.parameters()} <= {"meta"}
    assert {p.dtype for p in norm.parameters()} <= {torch.bfloat16}
    assert norm(torch.empty(2, DIM, device="meta")).shape == (2, DIM)
    real = norm.to_empty(device="cpu").float()
    with torch.no_grad():
        for parameter in real.parameters():
            parameter.fill_(torch.nan)
    cast(NormBase, real).reset_parameters()
    fresh = build_norm(spec, DIM)
    assert {k: v.tolist() for k, v in real.state_dict().items()} == {
        k: v.tolist() for k, v in fresh.state_dict().items()
    }
    x = torch.randn(2, DIM)
    assert torch.equal(real(x), fresh(x))


@pytest.mark.parametrize("spec", SPECS)
def test_the_default_device_and_dtype_count(spec: str) -> None:
    with torch.device("meta"):
        norm = build_norm(spec, DIM)
    assert {p.device.type for p in norm.parameters()} <= {"meta"}
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert {p.dtype for p in build_norm(spec, DIM).parameters()} <= {torch.float64}
    finally:
        torch.set_default_dtype(before)


# -- graphs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spec", "reentrant"), sampled(SPECS, [True, False]))
def test_checkpointing(spec: str, reentrant: bool) -> None:
    norm, x, g = build(spec, DIM), rows(3, DIM), rows(3, DIM)
    want = gradients(norm, x, g)
    own = leaf(x)
    norm.zero_grad()
    y = cast(Tensor, checkpoint(norm, own, use_reentrant=reentrant))
    y.backward(g)
    have = {"x": own.grad, **{k: p.grad for k, p in norm.named_parameters()}}
    assert_same(cast(dict[str, Tensor], have), want, 0.0)


@pytest.mark.parametrize(("spec", "mode"), sampled(SPECS, [torch.no_grad, torch.inference_mode]))
def test_without_gradients(spec: str, mode: Callable[[], Any]) -> None:
    norm, x = build(spec, DIM, torch.float32), torch.randn(3, DIM)
    before = x.clone()
    expected = norm(leaf(x))
    with mode():
        y = norm(x)
    assert not y.requires_grad
    torch.testing.assert_close(y, expected.detach())
    assert torch.equal(x, before)


@pytest.mark.parametrize("spec", SPECS)
def test_frozen_parameters_and_inputs(spec: str) -> None:
    norm, x, g = build(spec, DIM), rows(3, DIM), rows(3, DIM)
    want = gradients(norm, x, g)
    names = [name for name, _ in norm.named_parameters()]
    if names:  # the input takes no gradient
        norm(x).backward(g)
        assert_same({k: p.grad for k, p in norm.named_parameters()}, {k: want[k] for k in names})
    norm.zero_grad()
    norm.requires_grad_(False)
    own = leaf(x)
    norm(own).backward(g)
    torch.testing.assert_close(own.grad, want["x"], rtol=1e-12, atol=1e-12)
    assert all(p.grad is None for p in norm.parameters())
    assert not norm(x).requires_grad


# -- function transforms ------------------------------------------------------------------------


def _call(norm: nn.Module) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    return lambda parameters, x: functional_call(norm, parameters, (x,))


def _state(norm: nn.Module) -> dict[str, Tensor]:
    return {key: p.detach() for key, p in norm.named_parameters()}


@pytest.mark.parametrize(("spec", "dtype"), sampled(SPECS, [torch.float64, torch.float32]))
def test_gradients_of_each_sample(spec: str, dtype: torch.dtype) -> None:
    norm = build(spec, DIM, dtype)
    x, g = rows(4, 3, DIM).to(dtype), rows(4, 3, DIM).to(dtype)
    call = _call(norm)

    def loss(parameters: dict[str, Tensor], x: Tensor, g: Tensor) -> Tensor:
        return (call(parameters, x) * g).sum()

    by_parameter, by_x = vmap(grad(loss, argnums=(0, 1)), in_dims=(None, 0, 0))(_state(norm), x, g)
    near = 1e-11 if dtype == torch.float64 else 2e-4
    for i in range(4):
        want = gradients(norm, x[i], g[i])
        have = {"x": by_x[i], **{key: v[i] for key, v in by_parameter.items()}}
        assert_same(have, want, near)


@pytest.mark.parametrize(("spec", "axis"), sampled(SPECS, [0, 1, 2]))
def test_vmap_over_any_axis(spec: str, axis: int) -> None:
    norm, x = build(spec, DIM), rows(4, 3, DIM)
    moved = x.movedim(0, axis)
    torch.testing.assert_close(vmap(norm, in_dims=axis)(moved), norm(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("spec", SPECS)
def test_forward_and_reverse_derivatives_agree(spec: str) -> None:
    """The same linear map both ways, of what the norm holds constant too."""
    norm, x, v, g = build(spec, DIM), *(rows(3, DIM) for _ in range(3))
    parameters = _state(norm)
    directions = {key: torch.randn_like(p) for key, p in parameters.items()}
    y, pushed = jvp(_call(norm), (parameters, x), (directions, v))
    same, pull = vjp(_call(norm), parameters, x)
    by_parameter, by_x = pull(g)
    torch.testing.assert_close(y, norm(x))
    torch.testing.assert_close(same, norm(x))
    assert_same({"x": by_x, **by_parameter}, gradients(norm, x, g))
    total = (by_x * v).sum() + sum((by_parameter[k] * directions[k]).sum() for k in parameters)
    torch.testing.assert_close((pushed * g).sum(), total, rtol=1e-10, atol=1e-11)


# -- compilers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [s for s in SPECS if ":" in s and "bias" not in s])
def test_compiled_whole_and_equal(spec: str) -> None:
    torch._dynamo.reset()
    norm, x, g = build(spec, DIM), rows(3, DIM), rows(3, DIM)
    compiled = torch.compile(norm, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), norm(x))
    assert_same(_unprefixed(gradients(compiled, x, g)), gradients(norm, x, g))


def _unprefixed(found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix("_orig_mod."): value for key, value in found.items()}


@pytest.mark.parametrize("name", NAMES)
def test_compiled_with_a_traced_backward(name: str) -> None:
    """Also for batches of any size, without compiling again for each."""
    torch._dynamo.reset()
    norm = build(name, DIM)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(norm, backend=counter, fullgraph=True, dynamic=True)
    compilations = set()
    for batch in (3, 5, 6):
        x, g = rows(batch, DIM), rows(batch, DIM)
        assert_same(_unprefixed(gradients(compiled, x, g)), gradients(norm, x, g))
        compilations.add(counter.frame_count)
    assert len(compilations) == 1


@pytest.mark.slow
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("spec", ["layernorm", "rmsnorm:bias=true", "adanorm", "topknorm:k=3"])
def test_compiled_for_the_machine(spec: str, dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    norm, x = build(spec, 64, torch.float32), rows(16, 64).to(dtype)
    compiled = torch.compile(norm, fullgraph=True)
    near = max(1e-5, 2 * torch.finfo(dtype).eps)
    g = torch.randn(16, 64).to(dtype)
    assert_same(_unprefixed(gradients(compiled, x, g)), gradients(norm, x, g), 4 * near)
    torch.testing.assert_close(compiled(x), norm(x), rtol=near, atol=near)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_exported(name: str, strict: bool) -> None:
    norm, x = build(name, DIM, torch.float32), torch.randn(3, DIM)
    batch = torch.export.Dim("batch")
    program = torch.export.export(norm, (x,), dynamic_shapes=({0: batch},), strict=strict)
    for size in (3, 7):
        x = torch.randn(size, DIM)
        torch.testing.assert_close(program.module()(x), norm(x))


@pytest.mark.parametrize("spec", SPECS)
def test_fake_tensors(spec: str) -> None:
    """Shapes and dtypes without numbers, as planners of memory ask for them."""
    with FakeTensorMode():
        norm = build_norm(spec, DIM, dtype=torch.float32)
        x = torch.randn(3, 5, DIM, dtype=torch.bfloat16, requires_grad=True)
        y = norm(x)
        y.sum().backward()
        assert (y.shape, y.dtype) == (x.shape, torch.bfloat16)
        assert x.grad.shape == x.shape
        assert all(p.grad is not None and p.grad.shape == p.shape for p in norm.parameters())
