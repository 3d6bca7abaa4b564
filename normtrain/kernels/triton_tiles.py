"""Loading, saving and storing a tile of rows, shared by `triton_rows` and `triton_wide`.

Pointers are described in `triton_rows`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from normtrain.kernels.triton_math import (
    carrier_sum,
    centred,
    dropped_out,
    inner_gradient,
    normalized,
    output,
    weighted_sum,
)


@triton.jit
def load_wide(POINTER: tl.tensor, at: tl.tensor, mask: tl.tensor) -> tl.tensor:
    """Load as float32, with zeros where masked."""
    return tl.load(POINTER + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def parameter(
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
def row_input(
    X: tl.tensor,
    RESIDUAL: tl.tensor,
    SEEDS: tl.tensor,
    TOTAL: tl.tensor,
    row: tl.tensor,
    columns: tl.tensor,
    at: tl.tensor,
    mask: tl.tensor,
    rows: tl.tensor,
    p: tl.tensor,
    keep_scale: tl.tensor,
) -> tl.tensor:
    """Load the tile to normalize; with a residual, compute and store the sum."""
    x = load_wide(X, at, mask)
    if RESIDUAL is not None:
        if SEEDS is not None:
            seeds = tl.load(SEEDS + row, mask=row < rows, other=0)
            x = dropped_out(x, columns, seeds, p, keep_scale)
        total = (x + load_wide(RESIDUAL, at, mask)).to(TOTAL.dtype.element_ty)
        tl.store(TOTAL + at, total, mask=mask)
        x = total.to(tl.float32)
    return x


@triton.jit
def store_stats(
    STATS: tl.tensor,
    row: tl.tensor,
    rows: tl.tensor,
    scale: tl.tensor,
    factor: tl.tensor,
    mean: tl.tensor,
    rest: tl.tensor,
    eps: tl.tensor,
    KIND: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Save the statistics of each row for the backward."""
    at, mask = STATS + row.to(tl.int64) * COLUMNS, row < rows
    tl.store(at, scale, mask=mask)
    tl.store(at + 1, factor, mask=mask)
    if centred(KIND):
        tl.store(at + 2, mean, mask=mask)
        tl.store(at + 3, rest, mask=mask)
    if KIND == "l2":
        # as in `row_scale`: for a length of eps or less, the scale is 1 / eps
        tl.store(at + 2, tl.where(scale < tl.div_rn(1.0, eps), 1.0, 0.0), mask=mask)


@triton.jit
def load_stats(
    STATS: tl.tensor,
    row: tl.tensor,
    rows: tl.tensor,
    KIND: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANGE: tl.constexpr,
) -> tl.tensor:
    """Load scale, factor and the two parts of the mean (for l2 its flag), ``(rows,)`` each."""
    scale = tl.zeros_like(row.to(tl.float32))
    factor, mean, rest = scale + 1.0, scale, scale
    if COLUMNS > 0:
        at, mask = STATS + row.to(tl.int64) * COLUMNS, row < rows
        scale = tl.load(at, mask=mask, other=0.0)
        if RANGE:
            factor = tl.load(at + 1, mask=mask, other=1.0)
        if COLUMNS > 2:
            mean = tl.load(at + 2, mask=mask, other=0.0)
        if COLUMNS > 3:
            rest = tl.load(at + 3, mask=mask, other=0.0)
    return scale, factor, mean, rest


@triton.jit
def store_output(
    Y: tl.tensor,
    at: tl.tensor,
    mask: tl.tensor,
    x: tl.tensor,
    factor: tl.tensor,
    mean: tl.tensor,
    rest: tl.tensor,
    scale: tl.tensor,
    alpha: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    a: tl.tensor,
    b: tl.tensor,
    KIND: tl.constexpr,
) -> None:
    """Compute and store y of a tile."""
    h = normalized(x, factor, mean, rest, scale, alpha, KIND)
    y = output(h, weight, bias, a, b, KIND)
    tl.store(Y + at, y.to(Y.dtype.element_ty), mask=mask)


@triton.jit
def load_gradients(
    X: tl.tensor,
    GRAD: tl.tensor,
    at: tl.tensor,
    mask: tl.tensor,
    inside: tl.tensor,
    scale: tl.tensor,
    factor: tl.tensor,
    mean: tl.tensor,
    rest: tl.tensor,
    alpha: tl.tensor,
    weight: tl.tensor,
    a: tl.tensor,
    b: tl.tensor,
    KIND: tl.constexpr,
    FULL: tl.constexpr,
) -> tl.tensor:
    """Load x and g, the gradient of y; compute h and u, the gradient of h (of alpha * x for tanh).

    ``inside`` masks the padding of h, unless FULL.
    """
    x, g = load_wide(X, at, mask), load_wide(GRAD, at, mask)
    h = normalized(x, factor, mean, rest, scale, alpha, KIND)
    if not FULL:
        h = tl.where(inside, h, 0.0)
    u = inner_gradient(g, h, weight, a, b, KIND)
    if KIND == "tanh":
        u = u * (1.0 - h * h)
    return x, g, h, u


@triton.jit
def store_input_gradient(
    d: tl.tensor,
    GRAD_TOTAL: tl.tensor,
    SEEDS: tl.tensor,
    DX: tl.tensor,
    DBRANCH: tl.tensor,
    row: tl.tensor,
    columns: tl.tensor,
    at: tl.tensor,
    mask: tl.tensor,
    rows: tl.tensor,
    p: tl.tensor,
    keep_scale: tl.tensor,
) -> None:
    """Store dx; with a residual, add the gradient of the sum and store that of the branch too."""
    if GRAD_TOTAL is not None:
        d = d + load_wide(GRAD_TOTAL, at, mask)
    tl.store(DX + at, d.to(DX.dtype.element_ty), mask=mask)
    if DBRANCH is not None:
        seeds = tl.load(SEEDS + row, mask=row < rows, other=0)
        branch = dropped_out(d, columns, seeds, p, keep_scale)
        tl.store(DBRANCH + at, branch.to(DBRANCH.dtype.element_ty), mask=mask)


@triton.jit
def row_sums(
    u: tl.tensor,
    h: tl.tensor,
    flag: tl.tensor,
    KIND: tl.constexpr,
    N: tl.constexpr,
    SEEN: tl.constexpr,
    COUNT: tl.constexpr,
    PULL: tl.constexpr,
    SHIFT: tl.constexpr,
) -> tl.tensor:
    """Compute pull, shift and tilt of `input_gradient` for a tile."""
    zero = tl.zeros_like(flag)
    pull = weighted_sum(u, h, COUNT, SEEN < N) if PULL else zero
    if KIND == "l2":
        pull = pull * flag
    shift = tl.sum(u, 1) if SHIFT else zero
    tilt = carrier_sum(h, KIND) if KIND == "crms" or KIND == "l1" else zero
    return pull, shift, tilt


@triton.jit
def store_partials(
    own: tl.tensor,
    column: tl.tensor,
    dw: tl.tensor,
    db: tl.tensor,
    N: tl.constexpr,
    HAS_DW: tl.constexpr,
    HAS_DB: tl.constexpr,
) -> None:
    """Store a program's sums for the gradients of weight and bias in its row ``own``."""
    if HAS_DW:
        tl.store(own + column, tl.sum(dw, 0), mask=column < N)
    if HAS_DB:
        offset: tl.constexpr = N if HAS_DW else 0
        tl.store(own + offset + column, tl.sum(db, 0), mask=column < N)
