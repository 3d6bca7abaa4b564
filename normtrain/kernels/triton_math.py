"""Arithmetic of a tile of rows, shared by the Triton kernels.

Tiles are float32 ``(rows, columns)``; values of a row are ``(rows,)``. First of all a row is
multiplied by `factor`, a power of two that is 1 unless the row is huge; ``h`` is the normalized
row. Centred kinds keep the mean in two parts, whose sum is more precise than float32: otherwise the
rounding error of the mean of a constant row would look like a deviation.

Arguments of one purpose are passed as tuples: ``S`` is a `Shape`; ``stats`` is ``(scale, factor,
mean, rest)``, the statistics of each row; ``scalars`` is ``(eps, a, b)`` of
`normtrain.kernels.table.Scalars`; ``drop`` is ``(seeds, p, 1 / (1 - p))``.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

# Bits of float32: the exponent, that of 1, and that of 2^30 (`formulas.Limits.big`).
_EXPONENT = tl.constexpr(0x7F800000)
_ONE = tl.constexpr(127 << 23)
_BIG = tl.constexpr(157 << 23)
# Rows not yet in range are multiplied by this before summing: 2^17 terms cannot overflow.
_SHARE = tl.constexpr(2.0**-20)
_ROUNDS = tl.constexpr(7)


class Shape(NamedTuple):
    """What a kernel is compiled for.

    Attributes:
        kind: key of `normtrain.kernels.table.KINDS`.
        n: number of features.
        seen: number of leading features in the statistic.
        count: divisor of the sum in the statistic.
        saved: number of float32 statistics saved per row.
        scaled: whether huge rows are scaled into range.
        scalar: whether the weight is one number.
        pull: whether the statistic has a gradient.
        shift: whether the mean has a gradient.
    """

    kind: str
    n: int
    seen: int
    count: int  # type: ignore[assignment]
    saved: int
    scaled: bool
    scalar: bool
    pull: bool
    shift: bool


class Sums(NamedTuple):
    """The sums over rows that a backward stores: of the weight, of the bias, and in all."""

    dw: bool
    db: bool
    width: int


@triton.jit
def centred(S: tl.constexpr) -> tl.tensor:
    """Return whether the kind subtracts a mean."""
    return S.kind == "layer" or S.kind == "detach" or S.kind == "ada" or S.kind == "l1"


@triton.jit
def row_factor(largest: tl.tensor) -> tl.tensor:
    """Return the power of two that scales a row of this largest magnitude to at most 2^31."""
    excess = (largest.to(tl.int32, bitcast=True) & _EXPONENT) - _BIG
    return tl.where(excess > 0, _ONE - excess, _ONE).to(tl.float32, bitcast=True)


@triton.jit
def seen_largest(x: tl.tensor, columns: tl.tensor, S: tl.constexpr) -> tl.tensor:
    """Return the largest magnitude in each row among the features in the statistic."""
    size = tl.abs(x)
    if S.seen < S.n:
        size = tl.where(columns < S.seen, size, 0.0)
    return tl.max(size, 1)


@triton.jit
def share_sum(x: tl.tensor) -> tl.tensor:
    """Return row sums that cannot overflow, for `whole_sum`."""
    return tl.sum(x * _SHARE, 1)


@triton.jit
def whole_sum(total: tl.tensor, factor: tl.tensor) -> tl.tensor:
    """Return the sum of ``x * factor`` from the `share_sum` of x."""
    return (total * factor) * (1.0 / _SHARE)


@triton.jit
def off_mean(
    x: tl.tensor, mask: tl.tensor, factor: tl.tensor, mean: tl.tensor, FULL: tl.constexpr
) -> tl.tensor:
    """Return ``x * factor - mean`` with zeros in the padding."""
    off = x * factor[:, None] - mean[:, None]
    if not FULL:
        off = tl.where(mask, off, 0.0)
    return off


@triton.jit
def row_scale(
    square: tl.tensor, rest: tl.tensor, dropped: tl.tensor, scalars: tl.tuple, S: tl.constexpr
) -> tl.tensor:
    """Return each row's scale from the sum of its squares (magnitudes for l1).

    Args:
        square: sum of squares ``(rows,)``, of the deviations from the first part of the mean for
            the kinds with a variance.
        rest: the second part of the mean.
        dropped: the sum of the row, for crms.
        scalars: eps and a are read.
        S: the shape.
    """
    eps, a, _ = scalars
    if S.kind == "crms":
        square = square + dropped * dropped
    mean = tl.div_rn(square, tl.full((1,), S.count, tl.float32))
    if S.kind == "l1":
        divisor = a * mean + eps
    elif S.kind == "l2":
        divisor = tl.maximum(tl.sqrt_rn(mean), eps)
    elif centred(S):
        divisor = tl.sqrt_rn(tl.maximum(mean - rest * rest, 0.0) + eps)
    else:
        divisor = tl.sqrt_rn(mean + eps)
    return tl.div_rn(tl.full((1,), 1.0, tl.float32), divisor)


@triton.jit
def tanh(z: tl.tensor) -> tl.tensor:
    """Return tanh with a relative error of 3e-7: a polynomial near 0, else the exponential."""
    square = z * z
    p = square * -0.006555037499453542 + 0.021280073042452764
    p = p * square - 0.0539046844480002
    p = p * square + 0.1333309003288227
    p = p * square - 0.33333331833233254
    size = tl.abs(z)
    # beyond 20 it is 1 in float32, and the exponential would overflow
    far = 1.0 - 2.0 / (tl.exp(2.0 * tl.minimum(size, 20.0)) + 1.0)
    return tl.where(size < 0.55, z + z * square * p, tl.where(z < 0, -far, far))


@triton.jit
def normalized(x: tl.tensor, stats: tl.tuple, alpha: tl.tensor, S: tl.constexpr) -> tl.tensor:
    """Return h: the row, centred if the kind is, times its scale; or tanh(alpha * x)."""
    scale, factor, mean, rest = stats
    if S.kind == "tanh":
        h = tanh(alpha * x)
    elif centred(S):
        h = ((x * factor[:, None] - mean[:, None]) - rest[:, None]) * scale[:, None]
    else:
        h = (x * factor[:, None]) * scale[:, None]
    return h


@triton.jit
def output(
    h: tl.tensor, weight: tl.tensor, bias: tl.tensor, scalars: tl.tuple, S: tl.constexpr
) -> tl.tensor:
    """Return y from h; weight and bias are tiles or None."""
    y = h
    if S.kind == "ada":
        y = (scalars[1] * (1.0 - scalars[2] * h)) * h
    if weight is not None:
        y = y * weight
    if bias is not None:
        y = y + bias
    return y


@triton.jit
def inner_gradient(
    g: tl.tensor, h: tl.tensor, weight: tl.tensor, scalars: tl.tuple, S: tl.constexpr
) -> tl.tensor:
    """Return u, the gradient of h (AdaNorm's factor is a constant)."""
    u = g
    if S.kind == "ada":
        u = u * (scalars[1] * (1.0 - scalars[2] * h))
    if weight is not None:
        u = u * weight
    return u


@triton.jit
def _sign(h: tl.tensor) -> tl.tensor:
    return tl.where(h > 0, 1.0, tl.where(h < 0, -1.0, 0.0))


@triton.jit
def _weighted_sum(u: tl.tensor, h: tl.tensor, S: tl.constexpr) -> tl.tensor:
    """Return the row sums of u * h divided by the count."""
    # features outside the statistic may be so large that their sum overflows
    share, whole = (1.0 / S.count, 1.0) if S.seen < S.n else (1.0, 1.0 / S.count)
    return tl.sum(u * (h * share), 1) * whole


@triton.jit
def row_sums(u: tl.tensor, h: tl.tensor, stats: tl.tuple, S: tl.constexpr) -> tl.tuple:
    """Return pull, shift and tilt of each row, which `input_gradient` needs.

    Pull is the sum of u * h over the count, shift the sum of u, and tilt the sum of h (of its sign
    for l1).
    """
    zero = tl.zeros_like(stats[2])
    pull = _weighted_sum(u, h, S) if S.pull else zero
    if S.kind == "l2":
        pull = pull * stats[2]
    shift = tl.sum(u, 1) if S.shift else zero
    tilt = zero
    if S.kind == "crms":
        tilt = tl.sum(h, 1)
    elif S.kind == "l1":
        tilt = tl.sum(_sign(h), 1)
    return pull, shift, tilt


@triton.jit
def input_gradient(
    u: tl.tensor,
    h: tl.tensor,
    columns: tl.tensor,
    stats: tl.tuple,
    sums: tl.tuple,
    scalars: tl.tuple,
    S: tl.constexpr,
) -> tl.tensor:
    """Return dx from u, h and the `row_sums`."""
    pull, shift, tilt = sums
    d = u
    if S.pull:
        if S.kind == "l1":
            carrier, pull = _sign(h), pull * scalars[1]
        elif S.kind == "crms":
            carrier = h + tilt[:, None]
        elif S.seen < S.n:
            carrier = tl.where(columns < S.seen, h, 0.0)
        else:
            carrier = h
        d = d - carrier * pull[:, None]
    if S.shift:
        mean = shift * (1.0 / S.n)
        if S.kind == "l1":
            mean = mean - pull * tilt * (1.0 / S.n)
        d = d - mean[:, None]
    return (d * stats[0][:, None]) * stats[1][:, None]


@triton.jit
def dropped_out(
    x: tl.tensor, columns: tl.tensor, seeds: tl.tensor, p: tl.tensor, keep_scale: tl.tensor
) -> tl.tensor:
    """Return ``x * keep_scale`` with probability 1 - p, else 0, by row seed and column."""
    low = (seeds & 0xFFFFFFFF).to(tl.uint32)[:, None]
    high = ((seeds >> 32) & 0xFFFFFFFF).to(tl.uint32)[:, None]
    counter = columns.to(tl.uint32) + tl.zeros_like(low)
    zero = tl.zeros_like(counter)
    bits, _, _, _ = tl.philox_impl(counter, zero, zero, zero, low + zero, high + zero, _ROUNDS)
    return tl.where(tl.uint_to_uniform_float(bits) >= p, x * keep_scale, 0.0)
