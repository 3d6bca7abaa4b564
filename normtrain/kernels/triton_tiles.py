"""Loading and storing a tile of rows, shared by `triton_rows` and `triton_wide`.

Pointers are described in `triton_rows`, tuples of arguments in `triton_math`. ``at`` are the
offsets of a tile's elements, and ``mask`` says which of them exist.
"""

from __future__ import annotations

import triton
import triton.language as tl

from normtrain.kernels.triton_math import centred, dropped_out, inner_gradient, normalized, output


@triton.jit
def as_float32(scalars: tl.tuple) -> tl.tuple:
    """Return three numbers as float32: Python's may be passed as float64."""
    one, two, three = scalars
    return tl.cast(one, tl.float32), tl.cast(two, tl.float32), tl.cast(three, tl.float32)


@triton.jit
def load_wide(POINTER: tl.tensor, at: tl.tensor, mask: tl.tensor) -> tl.tensor:
    """Load as float32, with zeros where masked."""
    return tl.load(POINTER + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def load_parameter(
    POINTER: tl.tensor, columns: tl.tensor, N: tl.constexpr, SCALAR: tl.constexpr
) -> tl.tensor:
    """Load a parameter as a float32 tile ``(1, columns)`` or a scalar; None if there is none."""
    if POINTER is None:
        value = None
    elif SCALAR:
        value = tl.load(POINTER).to(tl.float32)
    else:
        value = tl.load(POINTER + columns, mask=columns < N, other=0.0).to(tl.float32)
    return value


@triton.jit
def load_input(
    X: tl.tensor,
    RESIDUAL: tl.tensor,
    TOTAL: tl.tensor,
    drop: tl.tuple,
    row: tl.tensor,
    columns: tl.tensor,
    at: tl.tensor,
    mask: tl.tensor,
    rows: tl.tensor,
) -> tl.tensor:
    """Load the tile to normalize; with a residual, compute and store the sum."""
    x = load_wide(X, at, mask)
    if RESIDUAL is not None:
        if drop[0] is not None:
            seeds = tl.load(drop[0] + row, mask=row < rows, other=0)
            x = dropped_out(x, columns, seeds, drop[1], drop[2])
        total = (x + load_wide(RESIDUAL, at, mask)).to(TOTAL.dtype.element_ty)
        tl.store(TOTAL + at, total, mask=mask)
        x = total.to(tl.float32)
    return x


@triton.jit
def store_stats(
    STATS: tl.tensor,
    row: tl.tensor,
    rows: tl.tensor,
    stats: tl.tuple,
    eps: tl.tensor,
    S: tl.constexpr,
) -> None:
    """Save the statistics of each row for the backward."""
    scale, factor, mean, rest = stats
    at, mask = STATS + row.to(tl.int64) * S.saved, row < rows
    tl.store(at, scale, mask=mask)
    tl.store(at + 1, factor, mask=mask)
    if centred(S):
        tl.store(at + 2, mean, mask=mask)
        tl.store(at + 3, rest, mask=mask)
    if S.kind == "l2":
        # as in `row_scale`: for a length of eps or less, the scale is 1 / eps
        tl.store(at + 2, tl.where(scale < tl.div_rn(1.0, eps), 1.0, 0.0), mask=mask)


@triton.jit
def no_stats(row: tl.tensor) -> tl.tuple:
    """Return the statistics of a kind that has none."""
    zero = tl.zeros_like(row.to(tl.float32))
    return zero, zero + 1.0, zero, zero


@triton.jit
def load_stats(STATS: tl.tensor, row: tl.tensor, rows: tl.tensor, S: tl.constexpr) -> tl.tuple:
    """Load scale, factor and the two parts of the mean (for l2 its flag), ``(rows,)`` each."""
    scale, factor, mean, rest = no_stats(row)
    if S.saved > 0:
        at, mask = STATS + row.to(tl.int64) * S.saved, row < rows
        scale = tl.load(at, mask=mask, other=0.0)
        if S.scaled:
            factor = tl.load(at + 1, mask=mask, other=1.0)
        if S.saved > 2:
            mean = tl.load(at + 2, mask=mask, other=0.0)
        if S.saved > 3:
            rest = tl.load(at + 3, mask=mask, other=0.0)
    return scale, factor, mean, rest


@triton.jit
def store_output(
    Y: tl.tensor,
    at: tl.tensor,
    mask: tl.tensor,
    x: tl.tensor,
    stats: tl.tuple,
    weight: tl.tensor,
    bias: tl.tensor,
    alpha: tl.tensor,
    scalars: tl.tuple,
    S: tl.constexpr,
) -> None:
    """Compute and store y of a tile."""
    y = output(normalized(x, stats, alpha, S), weight, bias, scalars, S)
    tl.store(Y + at, y.to(Y.dtype.element_ty), mask=mask)


@triton.jit
def load_gradients(
    X: tl.tensor,
    GRAD: tl.tensor,
    at: tl.tensor,
    mask: tl.tensor,
    inside: tl.tensor,
    stats: tl.tuple,
    weight: tl.tensor,
    alpha: tl.tensor,
    scalars: tl.tuple,
    S: tl.constexpr,
    FULL: tl.constexpr,
) -> tl.tuple:
    """Load x and g, the gradient of y; compute h and u, the gradient of h (of alpha * x for tanh).

    ``inside`` masks the padding of h, unless FULL.
    """
    x, g = load_wide(X, at, mask), load_wide(GRAD, at, mask)
    h = normalized(x, stats, alpha, S)
    if not FULL:
        h = tl.where(inside, h, 0.0)
    u = inner_gradient(g, h, weight, scalars, S)
    if S.kind == "tanh":
        u = u * (1.0 - h * h)
    return x, g, h, u


@triton.jit
def store_input_gradient(
    d: tl.tensor,
    GRAD_TOTAL: tl.tensor,
    DX: tl.tensor,
    DBRANCH: tl.tensor,
    drop: tl.tuple,
    row: tl.tensor,
    columns: tl.tensor,
    at: tl.tensor,
    mask: tl.tensor,
    rows: tl.tensor,
) -> None:
    """Store dx; with a residual, add the gradient of the sum and store that of the branch too."""
    if GRAD_TOTAL is not None:
        d = d + load_wide(GRAD_TOTAL, at, mask)
    tl.store(DX + at, d.to(DX.dtype.element_ty), mask=mask)
    if DBRANCH is not None:
        seeds = tl.load(drop[0] + row, mask=row < rows, other=0)
        branch = dropped_out(d, columns, seeds, drop[1], drop[2])
        tl.store(DBRANCH + at, branch.to(DBRANCH.dtype.element_ty), mask=mask)


@triton.jit
def store_partials(
    own: tl.tensor,
    column: tl.tensor,
    dw: tl.tensor,
    db: tl.tensor,
    N: tl.constexpr,
    SUMS: tl.constexpr,
) -> None:
    """Store a program's sums for the gradients of weight and bias in its row ``own``."""
    if SUMS.dw:
        tl.store(own + column, tl.sum(dw, 0), mask=column < N)
    if SUMS.db:
        offset: tl.constexpr = N if SUMS.dw else 0
        tl.store(own + offset + column, tl.sum(db, 0), mask=column < N)
