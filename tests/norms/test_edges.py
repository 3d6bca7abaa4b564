"""Rows at the edges of a dtype, and inputs of odd shapes and strides.

No norm may return NaN or Inf, forward or backward, for a finite input whose exact result its
dtype can represent. The exact result is the same module's in float64, in which nothing here comes
near an edge. Tolerances are the rounding errors of float32 statistics, with room to spare.
"""

import copy
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from variants import NAMES, NO_EPS, SPECS, build, gradients, leaf, name_of, sampled, sharp

from normtrain.norms import build_norm, norm_info

pytestmark = pytest.mark.extended

LOW = [torch.float32, torch.bfloat16, torch.float16]
WIDTHS = [1, 2, 3, 7, 64]
_BITS = {torch.float32: (torch.int32, 23), torch.bfloat16: (torch.int16, 7)}
_BITS[torch.float16] = (torch.int16, 10)
UNIT = 2.0**-24  # a float32 rounding
# Rounding decides ties between their deviations: the gradient is only known to be of this size.
JUMPING = ("l1norm", "linfnorm", "topknorm")
RMS_LIKE = ("crmsnorm", "fixnorm", "prmsnorm", "rmsnorm", "scalenorm")


def from_bits(bits: Tensor, dtype: torch.dtype) -> Tensor:
    """The floats of these bit patterns; an infinity or NaN gives up its lowest exponent bit."""
    _, mantissa = _BITS[dtype]
    x = bits.view(dtype)
    return torch.where(x.isfinite(), x, (bits ^ (1 << mantissa)).view(dtype))


def extreme_rows(dtype: torch.dtype, dim: int, count: int = 40, seed: int = 0) -> Tensor:
    """``(7 * count, dim)`` finite rows: any bits, any scale, (nearly) constant, lone or mixed."""
    generator = torch.Generator().manual_seed(1000 * seed + dim)
    info = torch.finfo(dtype)
    integer, _ = _BITS[dtype]
    kind = torch.iinfo(integer)
    bits = torch.randint(kind.min, kind.max, (count, dim), dtype=integer, generator=generator)
    lowest, highest = math.log2(info.tiny * info.eps), math.log2(info.max)
    within = torch.rand(count, 1, dtype=torch.float64, generator=generator)
    exponent = lowest + (torch.arange(count)[:, None] + within) / count * (highest - lowest)
    scale = 2.0**exponent
    noise = torch.randn(count, dim, dtype=torch.float64, generator=generator)
    spike = torch.where(noise == noise.amax(-1, keepdim=True), scale, 1.0)
    special = torch.tensor([0.0, -0.0, info.max, -info.max, info.tiny, -info.tiny * info.eps, 1.0])
    mixed = special.double()[torch.randint(7, (count, dim), generator=generator)]
    nearly = scale * (1 + noise.round() * info.eps)
    alone = torch.where(torch.arange(dim) == dim - 1, scale, 0.0)
    wide = [scale * noise, scale.expand(-1, dim), nearly, spike * noise, alone, mixed]
    narrow = [t.clamp(info.min, info.max).to(dtype) for t in wide]
    return torch.cat((from_bits(bits, dtype), *narrow))


def statistic(norm: nn.Module, name: str, x: Tensor) -> tuple[Tensor, int]:
    """A lower bound of what the norm divides the rows by, and over how many features it is."""
    eps, inside = getattr(norm, "eps", 0.0), getattr(norm, "eps_mode", "") == "inside"
    k = x.shape[-1]
    if name in ("fixnorm", "scalenorm"):
        return x.norm(dim=-1, keepdim=True).clamp(min=eps), 1
    if name == "prmsnorm":
        k = norm.k  # type: ignore[assignment]
    if name in RMS_LIKE:
        size = x[..., :k].square().mean(-1, keepdim=True).sqrt()
        if name == "crmsnorm":
            total = x.square().sum(-1, keepdim=True) + x.sum(-1, keepdim=True).square()
            size, k = (total / (k + 1)).sqrt(), k + 1
    else:
        size = (x - x.mean(-1, keepdim=True)).abs().mean(-1, keepdim=True)
    return torch.hypot(size, torch.tensor(eps).double().sqrt()) if inside else size + eps, k


def tolerances(norm: nn.Module, spec: str, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """How far float32 statistics may put the output and the input's gradient, elementwise."""
    name, d = name_of(spec), x.shape[-1]
    gain = max([1.0, *(p.detach().abs().max().item() for p in norm.parameters())]) * 3
    if name in NO_EPS:
        return torch.full_like(x, 32 * UNIT * gain), 64 * UNIT * gain * g.abs() + 1e-9
    divisor, k = statistic(norm, name, x)
    rounding = 32 * d * UNIT
    if name in RMS_LIKE:
        y, u = x.abs() / divisor, g.abs().amax(-1, keepdim=True) * gain
        others = y + (y.sum(-1, keepdim=True) if name == "crmsnorm" else 0.0)
        if getattr(norm, "eps_mode", "") == "outside":
            # a root has a slope in the smallest rows too
            others = others.clamp(min=math.sqrt(k))
            largest = x[..., :k].abs().amax(-1, keepdim=True)  # denormals have few digits
            rounding = rounding + torch.where(largest == 0, 0.0, 1e-44 / largest)
        slope = (u + others * (u * y).sum(-1, keepdim=True) / k) / divisor
        # with a partial statistic outputs, or their sum, may leave float32: then no gradient either
        summed = (u * y + y).sum(-1, keepdim=True)
        slope = torch.where(summed > 1e38, math.inf, slope)
        return rounding * (y + 1) * gain, rounding * slope + 1e-30
    # the part of the digits that centring loses: all of them in rows that are nearly constant
    lost = (rounding * (1 + x.abs().amax(-1, keepdim=True) / divisor)).clamp(max=1).expand_as(x)
    slope = 4 * gain * g.abs().amax(-1, keepdim=True) / divisor
    if name in JUMPING:
        return lost * d * gain, (slope * d).expand_as(x)
    return lost * d * gain, lost * slope * (2 + math.sqrt(d))


def check(have: Tensor, want: Tensor, tolerance: Tensor, what: str, x: Tensor) -> None:
    """Finite where the float64 value is representable; and near it where a tolerance is useful."""
    info = torch.finfo(have.dtype)
    possible = want.abs() <= 0.4 * info.max  # the gain, 0.5 to 1.5 here, may be multiplied last
    possible &= tolerance < 0.1 * info.max
    refuse(possible & ~have.isfinite(), f"{what} not finite", x, have, want)
    near = tolerance + 2 * info.eps * want.abs() + 2 * info.tiny * info.eps
    useful = possible & (tolerance < 1e-2 * want.abs().amax(-1, keepdim=True))
    refuse(useful & ((have.double() - want).abs() > near), f"{what} wrong", x, have, want)


def refuse(bad: Tensor, what: str, x: Tensor, have: Tensor, want: Tensor) -> None:
    """Fail with the first bad row in full."""
    if bad.any():
        row = int(bad.any(-1).nonzero()[0])
        found = f"{have[row].tolist()} instead of {want[row].tolist()}"
        pytest.fail(f"{what} for {x.dtype} row {x[row].tolist()}: {found}", pytrace=False)


def results(norm: nn.Module, x: Tensor, g: Tensor, path: str) -> dict[str, Tensor]:
    """Output (``y``) and gradients, from autograd or (``func``) from the plain formulas."""
    if path == "autograd":
        return {"y": norm(leaf(x)).detach(), **gradients(norm, x, g)}
    parameters = {key: p.detach() for key, p in norm.named_parameters()}

    def call(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(norm, parameters, (x,))

    y, pull = torch.func.vjp(call, parameters, x)
    by_parameter, by_x = pull(g)
    return {"y": y, "x": by_x, **by_parameter}


def compare(norm: nn.Module, spec: str, x: Tensor, g: Tensor, path: str) -> None:
    """The norm on these rows against itself in float64."""
    found = results(norm, x, g, path)
    wide = results(copy.deepcopy(norm).double(), x.double(), g.double(), "autograd")
    y_near, x_near = tolerances(norm, spec, x.double(), g.double())
    check(found["y"], wide["y"], y_near, "output", x)
    check(found["x"], wide["x"], x_near, "gradient", x)
    if name_of(spec) != "prmsnorm" or len(x) == 1:  # whose sums over rows may overflow halfway
        for key, parameter in norm.named_parameters():
            possible = wide[key].abs() <= 0.99 * torch.finfo(parameter.dtype).max
            assert found[key].isfinite()[possible].all(), (key, x.tolist() if len(x) == 1 else "")
    with torch.no_grad():
        check(norm(x), wide["y"], y_near, "output without gradients", x)


TINY_EPS = [
    f"{spec}{',' if ':' in spec else ':'}eps=1e-12"
    for spec in SPECS
    if name_of(spec) not in NO_EPS and "bias" not in spec
]


@pytest.mark.parametrize(
    ("spec", "dtype", "path"), sampled(SPECS + TINY_EPS, LOW, ["autograd", "func"], each=2)
)
def test_extreme_rows(spec: str, dtype: torch.dtype, path: str) -> None:
    for dim in WIDTHS:
        norm, x = build(spec, dim, torch.float32), extreme_rows(dtype, dim)
        largest = 5 if dtype == torch.float16 else 20
        sizes = 2.0 ** torch.randint(-largest, largest, (len(x), 1))
        compare(norm, spec, x, (torch.randn(x.shape) * sizes).to(dtype), path)


FAST = ["adanorm", "layernorm", "layernorm-simple", "prmsnorm", "prmsnorm:p=0.5", "rmsnorm"]


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("spec", FAST)
def test_extreme_rows_among_their_like(spec: str, dtype: torch.dtype) -> None:
    """One row out of range sends its batch the plain way; its neighbours may not count on that."""
    for dim in WIDTHS:
        norm = build(spec, dim, torch.float32)
        for part in extreme_rows(dtype, dim).split(10):  # of one kind, the scale rising
            compare(norm, spec, part, torch.randn(part.shape).to(dtype), "autograd")


@pytest.mark.parametrize("spec", [s for s in SPECS if name_of(s) not in NO_EPS])
def test_float64_rows_near_its_limit(spec: str) -> None:
    """Like ordinary rows where eps does not count; the gradient is smaller in proportion."""
    x, g = torch.randn(2, 5, 7, dtype=torch.float64)
    small = sharp(spec, 7)
    norm = copy.deepcopy(small)
    norm.eps = 1e-5
    want, have = results(small, x, g, "autograd"), results(norm, x * 2.0**1015, g, "autograd")
    have["x"] *= 2.0**1015
    for key, value in want.items():
        torch.testing.assert_close(have[key], value, rtol=1e-9, atol=1e-11)


@st.composite
def any_row(draw: st.DrawFn, dtype: torch.dtype) -> Tensor:
    """One row of any finite bit patterns: denormals, zeros of both signs and maxima with them."""
    dim = draw(st.sampled_from(WIDTHS))
    integer, _ = _BITS[dtype]
    raw = draw(st.binary(min_size=dim * integer.itemsize, max_size=dim * integer.itemsize))
    return from_bits(torch.frombuffer(bytearray(raw), dtype=integer), dtype).reshape(1, dim)


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("name", NAMES)
def test_any_bits(name: str, dtype: torch.dtype) -> None:
    @settings(max_examples=12, deadline=None)
    @given(x=any_row(dtype), path=st.sampled_from(["autograd", "func"]))
    def run(x: Tensor, path: str) -> None:
        norm = build(name, x.shape[-1], dtype)
        compare(norm, name, x, torch.ones_like(x), path)

    run()


def outcome(spec: str, norm: nn.Module, dim: int) -> Tensor:
    """What a row without any deviation gives: the bias, or derf of its shift."""
    named = dict(norm.named_parameters())
    bias = named.get("bias", torch.zeros(dim))
    if name_of(spec) == "derf":
        return named["weight"] * torch.erf(named["shift"]) + bias
    return bias


@pytest.mark.parametrize(("spec", "dim"), sampled(SPECS, [1, 2, 7]))
def test_rows_of_zeros_give_the_bias(spec: str, dim: int) -> None:
    for dtype, zero in itertools.product([*LOW, torch.float64], (0.0, -0.0)):
        norm = build(spec, dim, dtype).to(torch.promote_types(dtype, torch.float32))
        x = torch.full((2, dim), zero, dtype=dtype)
        assert torch.equal(norm(x), outcome(spec, norm, dim).to(dtype).expand(2, dim))
        found = gradients(norm, x, torch.full_like(x, 1e-3))
        assert all(g.isfinite().all() for g in found.values())


@pytest.mark.parametrize(
    ("spec", "dim", "value"),
    sampled(
        [s for s in SPECS if "shift" in norm_info(name_of(s)).invariances],
        [1, 2, 7],
        [3.0, 1e4, -1e4, 1e-4, -3e38],
        each=4,
    ),
)
def test_constant_rows_give_the_bias(spec: str, dim: int, value: float) -> None:
    norm, x = build(spec, dim, torch.float32), torch.full((2, dim), value)
    torch.testing.assert_close(norm(x), outcome(spec, norm, dim).expand(2, dim), rtol=0, atol=1e-4)
    assert all(g.isfinite().all() for g in gradients(norm, x, torch.ones_like(x)).values())


@pytest.mark.parametrize(("spec", "dim", "scale"), sampled(SPECS, [1, 3, 17], [1e4, 1e-4], each=2))
def test_scales_and_odd_sizes(spec: str, dim: int, scale: float) -> None:
    norm, x, g = build(spec, dim, torch.float32), torch.randn(9, dim) * scale, torch.randn(9, dim)
    compare(norm, spec, x, g, "autograd")


LAYOUTS = {
    "transposed": lambda t: t.movedim(0, 1),
    "reversed axes": lambda t: t.permute(2, 1, 0),
    "every other feature": lambda t: t.repeat_interleave(2, dim=-1)[..., ::2],
    "every other row": lambda t: t.repeat_interleave(2, dim=0)[1::2],
    "a part of wider rows": lambda t: torch.cat((t, t), dim=-1)[..., 6:12],
    "expanded rows": lambda t: t[:1, :1].expand_as(t),
    "expanded features": lambda t: t[..., :1].expand_as(t),
    "off by one in memory": lambda t: torch.cat((t.new_zeros(1), t.flatten()))[1:].view(t.shape),
    "one row": lambda t: t[0, 0],
    "five axes": lambda t: t.reshape(2, 3, 6, 1, 6).transpose(0, 2),
    "channels last": lambda t: t.reshape(1, 6, 6, 6).to(memory_format=torch.channels_last),
    "broadcast batch": lambda t: t[:, None].expand(6, 4, 6, 6),
}


@pytest.mark.parametrize(("spec", "layout"), sampled(SPECS, list(LAYOUTS), each=3))
def test_layouts(spec: str, layout: str) -> None:
    for dtype, near in ((torch.float64, 1e-9), (torch.float32, 2e-4), (torch.bfloat16, 2e-2)):
        norm = build(spec, 6, dtype)
        x, g = (LAYOUTS[layout](torch.randn(6, 6, 6).to(dtype)) for _ in range(2))
        assert x.shape[-1] == 6
        before = x.clone(), g.clone()
        dense = x.clone(memory_format=torch.contiguous_format)
        found = results(norm, dense, g.contiguous(), "autograd")
        own = x.detach().requires_grad_()  # not a copy: the strides stay
        y = norm(own)
        have = torch.autograd.grad(y, [own, *norm.parameters()], g)
        for value, want in zip((y, *have), found.values(), strict=True):
            # constant rows under a constant gradient leave a difference of near equals
            largest = max(1.0, want.abs().max().item())
            torch.testing.assert_close(value, want, rtol=near, atol=near * largest)
        with torch.no_grad():
            torch.testing.assert_close(norm(x), y, rtol=near, atol=near)
        assert torch.equal(x, before[0])
        assert torch.equal(g, before[1])


@pytest.mark.parametrize(("spec", "shape"), sampled(SPECS, [(0, 6), (2, 0, 6), (0, 3, 1, 2, 6)]))
def test_empty_batches(spec: str, shape: tuple[int, ...]) -> None:
    norm = build(spec, 6, torch.float32)
    for dtype in LOW:
        x = torch.zeros(shape, dtype=dtype)
        for path in ("autograd", "func"):
            found = results(norm, x, x, path)
            assert found.pop("y").shape == shape
            assert found.pop("x").shape == shape
            for key, parameter in norm.named_parameters():
                assert torch.equal(found[key], torch.zeros_like(parameter))
        with torch.no_grad():
            assert (norm(x).shape, norm(x).dtype) == (shape, dtype)


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec != "none"])
def test_wrong_widths_are_refused(spec: str) -> None:
    """A size of 1 or a multiple would otherwise broadcast or normalise something else."""
    for shape in ((), (3, 1), (3, 5), (7,), (6, 3), (3, 12), (6, 0)):
        with pytest.raises(ValueError, match=r"\(\.\.\., 6\)"):
            build_norm(spec, 6)(torch.randn(shape))
