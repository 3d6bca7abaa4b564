"""Bounded weight normalization: only directions train."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from normtrain.errors import UserError
from normtrain.norms.weight import bounded_weight_norm, remove_bounded_weight_norm

F64 = torch.float64
LAYERS: dict[str, tuple[Callable[[], nn.Module], int | None, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(5, 4, dtype=F64), 0, (3, 5)),
    "linear-inputs": (lambda: nn.Linear(5, 4, dtype=F64), -1, (3, 5)),
    "linear-whole": (lambda: nn.Linear(5, 4, dtype=F64), None, (3, 5)),
    "conv1d": (lambda: nn.Conv1d(3, 4, 2, dtype=F64), 0, (2, 3, 6)),
    "conv2d": (lambda: nn.Conv2d(3, 4, 2, dtype=F64), 0, (2, 3, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(3, 4, 2, dtype=F64), 0, (1, 3, 3, 3, 3)),
    "grouped": (lambda: nn.Conv2d(4, 8, 2, groups=4, dtype=F64), 0, (2, 4, 5, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(3, 4, 2, dtype=F64), 1, (2, 3, 4, 4)),
}


def rows(w: Tensor, dim: int | None) -> Tensor:
    """Channels as rows."""
    return w.reshape(1, -1) if dim is None else w.movedim(dim, 0).flatten(1)


def weight_of(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def direction_of(module: nn.Module) -> nn.Parameter:
    (direction,) = [p for n, p in module.named_parameters() if n.endswith("original")]
    return direction


@pytest.mark.parametrize("name", LAYERS)
def test_every_channel_has_the_norm_and_the_whole_keeps_its_own(name: str) -> None:
    make, dim, shape = LAYERS[name]
    module = make()
    before = weight_of(module).detach().clone()
    assert bounded_weight_norm(module, dim=dim) is module
    after = weight_of(module)
    old, new = rows(before, dim), rows(after, dim)
    rho = (before.square().sum() / len(old)).sqrt()
    torch.testing.assert_close(new, old / old.square().sum(1, keepdim=True).sqrt() * rho)
    torch.testing.assert_close(after.square().sum(), before.square().sum())
    if dim is None:
        torch.testing.assert_close(after, before)
    x = torch.randn(shape, dtype=F64)
    plain = make()
    plain.load_state_dict({"weight": after.detach(), "bias": module.bias})
    torch.testing.assert_close(module(x), plain(x))


@pytest.mark.parametrize("name", LAYERS)
def test_gradient_is_orthogonal_and_norms_stay(name: str) -> None:
    make, dim, shape = LAYERS[name]
    module = bounded_weight_norm(make(), dim=dim)
    norms = rows(weight_of(module), dim).norm(dim=1).detach()
    first = weight_of(module).detach().clone()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        module(torch.randn(shape, dtype=F64)).square().sum().backward()
        direction = direction_of(module)
        v, g = rows(direction.detach(), dim), rows(direction.grad, dim)
        assert g.norm() > 1e-3
        assert ((v * g).sum(1).abs() < 1e-12 * v.norm(dim=1) * g.norm(dim=1) + 1e-14).all()
        optimizer.step()
    torch.testing.assert_close(rows(weight_of(module), dim).norm(dim=1), norms)
    assert not torch.allclose(weight_of(module), first, rtol=0.01)


def test_gradient_against_the_formula() -> None:
    module = bounded_weight_norm(nn.Linear(3, 2, bias=False, dtype=F64))
    x, upstream = torch.randn(4, 3, dtype=F64), torch.randn(4, 2, dtype=F64)
    module(x).backward(upstream)
    v = direction_of(module)
    rho = (v.detach().square().sum() / 2).sqrt()
    leaf = v.detach().clone().requires_grad_()
    (x @ (rho * leaf / (leaf * leaf).sum(1, keepdim=True) ** 0.5).T).backward(upstream)
    torch.testing.assert_close(v.grad, leaf.grad)

    def call(v: Tensor) -> Tensor:
        name = "parametrizations.weight.original"
        return torch.func.functional_call(module, {name: v}, (x,))

    assert torch.autograd.gradcheck(call, (leaf,))
    assert torch.autograd.gradgradcheck(call, (leaf,))


@pytest.mark.parametrize(
    ("dtype", "power"),
    [(torch.float16, 15), *((d, p) for d in (torch.float32, torch.bfloat16) for p in (-100, 125))]
    + [(F64, -900), (F64, 1000)],
)
def test_directions_of_any_length(dtype: torch.dtype, power: int) -> None:
    module = nn.Linear(8, 3, bias=False, dtype=dtype)
    nn.init.uniform_(module.weight, 0.1, 1.0)
    bounded_weight_norm(module)
    before = weight_of(module).detach().clone()
    direction = direction_of(module)
    with torch.no_grad():
        direction.copy_(direction.double() * 2.0**power)  # keeps all digits
    assert direction.isfinite().all()
    weight = weight_of(module)
    assert weight.dtype == dtype
    near = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(weight, before, rtol=near, atol=0)
    weight.sum().mul(2.0 ** min(0, power)).backward()
    assert direction.grad.isfinite().all()


def test_a_direction_that_became_zero_gives_zeros() -> None:
    module = bounded_weight_norm(nn.Linear(3, 2, bias=False, dtype=F64))
    direction = direction_of(module)
    with torch.no_grad():
        direction[1] = 0
    module(torch.ones(1, 3, dtype=F64)).sum().backward()
    assert torch.equal(weight_of(module)[1], torch.zeros(3, dtype=F64))
    rho = module.parametrizations.weight[0].rho
    torch.testing.assert_close(direction.grad[1], rho.expand(3))


def test_embedding_with_a_padding_row() -> None:
    table = nn.Embedding(6, 4, padding_idx=2, dtype=F64)
    before = weight_of(table).detach().clone()
    bounded_weight_norm(table)
    norms = weight_of(table).norm(dim=1)
    expected = (before.square().sum() / 5).sqrt().expand(6).clone()
    expected[2] = 0
    torch.testing.assert_close(norms, expected)
    table(torch.tensor([2, 1, 1])).square().sum().backward()
    torch.optim.SGD(table.parameters(), lr=0.1).step()
    torch.testing.assert_close(weight_of(table).norm(dim=1), expected)


def test_assigning_sets_the_direction_and_keeps_the_norm() -> None:
    module = bounded_weight_norm(nn.Linear(3, 2, dtype=F64))
    rho = module.parametrizations.weight[0].rho.clone()
    kept = weight_of(module).detach().clone()
    module.weight = kept
    torch.testing.assert_close(weight_of(module), kept)
    new = torch.randn(2, 3, dtype=F64) * 9
    module.weight = new
    torch.testing.assert_close(weight_of(module), new / new.norm(dim=1, keepdim=True) * rho)


def test_copies_and_state_survive() -> None:
    module = bounded_weight_norm(nn.Linear(5, 3))
    x = torch.randn(2, 5)
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    fresh = bounded_weight_norm(nn.Linear(5, 3))
    assert not torch.equal(fresh(x), module(x))
    fresh.load_state_dict(torch.load(buffer, weights_only=True), strict=True)
    assert torch.equal(fresh(x), module(x))
    twin = copy.deepcopy(module)
    assert torch.equal(twin(x), module(x))
    with torch.no_grad():
        direction_of(twin).copy_(torch.randn(3, 5))
    assert not torch.equal(twin(x), module(x))


def test_removing_leaves_the_weight_as_it_is() -> None:
    module = nn.Linear(5, 3)
    parameter = module.weight
    bounded_weight_norm(module)
    x = torch.randn(2, 5)
    y, weight = module(x), weight_of(module).detach().clone()
    assert remove_bounded_weight_norm(module) is module
    assert type(module) is nn.Linear
    assert module.weight is parameter  # an optimizer goes on with it
    assert isinstance(module.weight, nn.Parameter)
    assert torch.equal(module.weight, weight)
    assert torch.equal(module(x), y)
    assert set(module.state_dict()) == {"weight", "bias"}
    frozen = nn.Linear(5, 3)
    frozen.weight.requires_grad_(False)
    remove_bounded_weight_norm(bounded_weight_norm(frozen))
    assert not frozen.weight.requires_grad
    bounded_weight_norm(module)  # and again


def test_another_parameter_and_compile() -> None:
    torch._dynamo.reset()
    attention = nn.MultiheadAttention(8, 2)
    bounded_weight_norm(attention, "in_proj_weight")
    norms = attention.in_proj_weight.norm(dim=1)
    torch.testing.assert_close(norms, norms[:1].expand(24))
    module = bounded_weight_norm(nn.Linear(5, 3))
    x = torch.randn(2, 5)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), module(x))


def test_meta_device() -> None:
    with torch.device("meta"):
        module = bounded_weight_norm(nn.Linear(5, 3))
    real = bounded_weight_norm(nn.Linear(5, 3))
    module = module.to_empty(device="cpu")
    module.load_state_dict(real.state_dict())
    x = torch.randn(2, 5)
    assert torch.equal(module(x), real(x))


def zeroed(channels: slice) -> nn.Linear:
    module = nn.Linear(3, 4)
    with torch.no_grad():
        module.weight[channels] = 0
    return module


def infinite() -> nn.Linear:
    module = nn.Linear(3, 4)
    with torch.no_grad():
        module.weight[1, 1] = torch.inf
    return module


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda: nn.Linear(3, 4), {"name": "wight"}, "Linear has no parameter 'wight'"),
        (lambda: nn.Linear(3, 4, bias=False), {"name": "bias"}, "no parameter 'bias'"),
        (lambda: nn.LazyLinear(4), {}, "no parameter 'weight', or it is not initialized"),
        (lambda: nn.Linear(3, 4), {"name": "bias"}, "1 values per channel"),
        (lambda: nn.Conv2d(4, 4, 1, groups=4), {}, "1 values per channel"),
        (lambda: nn.Linear(3, 4), {"dim": 2}, "-2 to 1, got 2"),
        (lambda: nn.Linear(3, 4), {"dim": "0"}, "an axis"),
        (lambda: zeroed(slice(2, 3)), {}, "zero in channel 2 of axis 0"),
        (lambda: zeroed(slice(None)), {"dim": None}, "zero in all of it"),
        (lambda: zeroed(slice(None)), {"dim": 1}, "zero in channel 0 of axis 1"),
        (infinite, {}, "non-finite"),
        (lambda: bounded_weight_norm(nn.Linear(3, 4)), {}, "already parametrized"),
        (lambda: parametrizations.weight_norm(nn.Linear(3, 4)), {}, "already parametrized"),
    ],
)
def test_mistakes(make: Callable[[], nn.Module], options: dict[str, Any], message: str) -> None:
    module = make()
    state = copy.deepcopy(module.state_dict()) if "Lazy" not in type(module).__name__ else None
    with pytest.raises(UserError, match=message):
        bounded_weight_norm(module, **options)
    if state is not None:
        torch.testing.assert_close(module.state_dict(), state, equal_nan=True)


class Doubled(nn.Module):
    """Some other parametrization."""

    def forward(self, w: Tensor) -> Tensor:
        return w * 2


def test_wrong_removals() -> None:
    for module in (nn.Linear(3, 4), parametrizations.weight_norm(nn.Linear(3, 4))):
        with pytest.raises(UserError, match="no bounded weight norm"):
            remove_bounded_weight_norm(module)
    both = bounded_weight_norm(nn.Linear(3, 4))
    parametrize.register_parametrization(both, "weight", Doubled())
    with pytest.raises(UserError, match="other parametrizations"):
        remove_bounded_weight_norm(both)


def test_removing_from_a_copy_leaves_the_original_alone() -> None:
    """torch gives copies of a parametrized module one class, which removing changes."""
    module = bounded_weight_norm(nn.Linear(6, 4))
    twin = copy.deepcopy(module)
    x = torch.randn(2, 6)
    expected = module(x)
    remove_bounded_weight_norm(twin)
    torch.testing.assert_close(twin(x), expected)
    assert torch.equal(module(x), expected)
    assert type(twin) is nn.Linear
    assert torch.equal(copy.deepcopy(module)(x), expected)
    remove_bounded_weight_norm(module)
    assert type(module) is nn.Linear
