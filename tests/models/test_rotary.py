"""Rotary positions: the complex-number formula, relative positions, and what dtypes do to them."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import causal_of
from torch import Tensor

from normtrain.models.attention import Attention
from normtrain.models.rotary import Rotary, rotate
from normtrain.norms import build_norm


def rotated(x: Tensor, positions: list[int], base: float) -> Tensor:
    """Each pair as a complex number, times e^(i t base^(-2j/d)); plain loops."""
    half = x.size(-1) // 2
    y = x.clone()
    for row, t in enumerate(positions):
        for j in range(half):
            number = torch.complex(x[..., row, j], x[..., row, half + j])
            angle = torch.tensor(t * base ** (-2 * j / x.size(-1)), dtype=torch.float64)
            number = number * torch.polar(torch.ones((), dtype=torch.float64), angle)
            y[..., row, j], y[..., row, half + j] = number.real, number.imag
    return y


@pytest.mark.parametrize(("head_dim", "base"), [(2, 10000.0), (6, 100.0), (16, 10000.0)])
@pytest.mark.parametrize("start", [0, 7])
def test_equals_the_complex_formula(head_dim: int, base: float, start: int) -> None:
    rotary = Rotary(20, head_dim, base).double()
    x = torch.randn(2, 3, 9, head_dim, dtype=torch.float64)
    expected = rotated(x, list(range(start, start + 9)), base)
    torch.testing.assert_close(rotate(x, rotary(9, start)), expected, rtol=1e-12, atol=1e-12)
    single = Rotary(20, head_dim, base)(9, start)
    assert single.dtype == torch.float32
    assert rotate(x.float(), single).dtype == torch.float32
    torch.testing.assert_close(rotate(x.float(), single), expected.float())


@settings(deadline=None, max_examples=40)
@given(
    first=st.integers(0, 400),
    second=st.integers(0, 400),
    shift=st.integers(0, 600),
    pairs=st.integers(1, 6),
    base=st.floats(2, 1e6),
    seed=st.integers(0, 9),
)
def test_products_depend_on_the_distance_alone(
    first: int, second: int, shift: int, pairs: int, base: float, seed: int
) -> None:
    rotary = Rotary(1001, 2 * pairs, base).double()
    draw = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, 1, 2 * pairs, generator=draw, dtype=torch.float64)

    def product(a: int, b: int) -> Tensor:
        return (rotate(q, rotary(1, a)) * rotate(k, rotary(1, b))).sum()

    moved = product(first + shift, second + shift)
    torch.testing.assert_close(moved, product(first, second), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(rotate(q, rotary(1, first)).norm(), q.norm())


def test_half_precision_is_rotated_in_float32() -> None:
    rotary = Rotary(4096, 64)
    x = torch.randn(1, 1, 96, 64).bfloat16()
    far = rotary(96, 4000)
    found = rotate(x, far)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, rotate(x.float(), far).bfloat16())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(2, 3, 7, 10), (1, 1, 7, 2), (0, 3, 7, 6)])
def test_training_rotates_as_evaluation_does(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    rotation = Rotary(40, shape[-1]).to(wide)(7, 9)
    x = torch.randn(shape).to(dtype).transpose(1, 2).contiguous().transpose(1, 2)  # as heads lie
    found = rotate(x.requires_grad_(), rotation)
    torch.testing.assert_close(found, rotate(x.detach(), rotation))
    sent = torch.randn(shape).to(dtype)
    (gradient,) = torch.autograd.grad(found, x, sent)
    cos, sin = rotation
    back = rotate(sent, torch.stack([cos, -sin]))  # the transpose of a turn
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient, back)


def test_gradients_are_exact_and_differentiable() -> None:
    rotation = Rotary(9, 6).double()(4, 3)
    x = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: rotate(x, rotation), x)
    assert torch.autograd.gradgradcheck(lambda x: rotate(x, rotation).pow(3), x)


def test_a_models_dtype_never_rounds_the_angles() -> None:
    rotary = Rotary(300, 8)
    exact = copy.deepcopy(rotary).double()(300)
    assert exact.dtype == torch.float64
    for moved in (rotary.bfloat16(), rotary.half(), rotary.double().bfloat16(), rotary.to("cpu")):
        assert torch.equal(moved(300), exact.float())
    # A table that was first rounded to float32 would be off by 1e-8.
    torch.testing.assert_close(
        rotary.double()(300)[0, :, 1], torch.arange(300).double().mul(0.1).cos(), rtol=0, atol=1e-12
    )
    made = Rotary(300, 8).to("meta").to_empty(device="cpu")
    assert torch.equal(made(300), exact.float())


def test_no_table_is_kept_in_a_checkpoint() -> None:
    model = causal_of(positions="rotary")
    assert not any("positions" in name for name in model.state_dict())
    assert not any("positions" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
def test_norms_see_queries_and_keys_before_they_rotate(norm: str) -> None:
    torch.manual_seed(0)
    norms = {name: build_norm(norm, 8) for name in ("q_norm", "k_norm")}
    attention = Attention(16, 2, **norms).double()
    for module in norms.values():
        torch.nn.init.uniform_(module.weight, 0.5, 2.0)
    x, rotation = torch.randn(1, 5, 16, dtype=torch.float64), Rotary(5, 8).double()(5)
    q, k, v = (
        part.unflatten(-1, (2, 8)).transpose(1, 2)
        for part in attention.query_key_value(x).chunk(3, -1)
    )
    q, k = (
        rotated(norms[name](part), list(range(5)), 10000.0)
        for name, part in (("q_norm", q), ("k_norm", k))
    )
    scores = (q @ k.mT / 8**0.5).masked_fill(~torch.ones(5, 5).tril().bool(), -torch.inf)
    expected = attention.output((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x, causal=True, rotation=rotation), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 12, "heads": 4}, r"model.d_model / model.heads \(3\) must be even"),
        ({"rotary_base": 0.0}, "rotary_base"),
        ({"rotary_base": float("nan")}, "rotary_base"),
        ({"rotary_base": 500.0, "positions": "learned"}, "no effect with model.positions learned"),
    ],
)
def test_wrong_rotary_options_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        causal_of(**changes)
