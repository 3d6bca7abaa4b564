"""Triton kernels for rows that fit into a program's registers; for longer ones `triton_wide`.

``X``, ``Y`` and the gradients are contiguous ``(rows, N)``; ``STATS`` is float32 ``(rows, C)`` with
the columns of `FusedNorm.saved`. Optional pointers are None. With ``RESIDUAL``, the input of the
norm is ``dropout(x) + residual``, rounded to the dtype of ``TOTAL``, where it is stored.

The backward runs on a fixed number of programs. Each sums the parameters' gradients of its rows in
registers and stores them as a row of ``PARTIALS``, float32 ``(programs, width)``: the gradients of
the weight, the bias and a scalar parameter, as far as they exist. `finalize` adds those rows in a
fixed order, so results are bitwise identical every time, without atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl

from normtrain.kernels.triton_math import (
    centred,
    input_gradient,
    off_mean,
    row_factor,
    row_scale,
    seen_largest,
    share_sum,
    whole_sum,
)
from normtrain.kernels.triton_tiles import (
    load_gradients,
    load_stats,
    parameter,
    row_input,
    row_sums,
    store_input_gradient,
    store_output,
    store_partials,
    store_stats,
)


@triton.jit
def _tile_statistics(
    x: tl.tensor,
    columns: tl.tensor,
    mask: tl.tensor,
    eps: tl.tensor,
    a: tl.tensor,
    KIND: tl.constexpr,
    N: tl.constexpr,
    SEEN: tl.constexpr,
    COUNT: tl.constexpr,
    RANGE: tl.constexpr,
    FULL: tl.constexpr,
) -> tl.tensor:
    """Compute scale, factor and the two parts of the mean of whole rows."""
    total = tl.zeros((x.shape[0],), tl.float32)
    factor = total + 1.0
    if centred(KIND) or KIND == "crms":
        total = share_sum(x)
    if RANGE:
        factor = row_factor(seen_largest(x, columns, SEEN, N))
    total = whole_sum(total, factor)
    mean, rest = tl.zeros_like(total), tl.zeros_like(total)
    if centred(KIND):
        mean = total * (1.0 / N)
        c = off_mean(x, mask, factor, mean, FULL)
        rest = tl.sum(c, 1) * (1.0 / N)
        if KIND == "l1":
            c = tl.abs(c - rest[:, None])
            square = tl.sum(c if FULL else tl.where(mask, c, 0.0), 1)
        else:
            square = tl.sum(c * c, 1)
    else:
        c = x * factor[:, None]
        if SEEN < N:
            c = tl.where(columns < SEEN, c, 0.0)
        square = tl.sum(c * c, 1)
    return row_scale(square, rest, total, eps, a, KIND, COUNT), factor, mean, rest


@triton.jit(do_not_specialize=["rows"])
def forward_rows(
    X: tl.tensor,
    RESIDUAL: tl.tensor,
    SEEDS: tl.tensor,
    TOTAL: tl.tensor,
    Y: tl.tensor,
    STATS: tl.tensor,
    WEIGHT: tl.tensor,
    BIAS: tl.tensor,
    ALPHA: tl.tensor,
    rows: tl.tensor,
    p: tl.tensor,
    keep_scale: tl.tensor,
    eps: tl.tensor,
    a: tl.tensor,
    b: tl.tensor,
    KIND: tl.constexpr,
    N: tl.constexpr,
    SEEN: tl.constexpr,
    COUNT: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANGE: tl.constexpr,
    SCALAR: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Normalize a tile of ``BLOCK_M`` whole rows per program."""
    # Python numbers may be passed as float64; the arithmetic is float32
    eps, a, b = tl.cast(eps, tl.float32), tl.cast(a, tl.float32), tl.cast(b, tl.float32)
    p, keep_scale = tl.cast(p, tl.float32), tl.cast(keep_scale, tl.float32)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_N)[None, :]
    at = row.to(tl.int64)[:, None] * N + columns
    mask = (row < rows)[:, None] & (columns < N)
    x = row_input(X, RESIDUAL, SEEDS, TOTAL, row, columns, at, mask, rows, p, keep_scale)
    scale, factor, mean, rest = load_stats(STATS, row, rows, KIND, 0, RANGE)
    alpha = parameter(ALPHA, columns, N, True)
    if KIND != "tanh":
        inside, full = columns < N, N == BLOCK_N
        scale, factor, mean, rest = _tile_statistics(
            x, columns, inside, eps, a, KIND, N, SEEN, COUNT, RANGE, full
        )
        store_stats(STATS, row, rows, scale, factor, mean, rest, eps, KIND, COLUMNS)
    weight, bias = parameter(WEIGHT, columns, N, SCALAR), parameter(BIAS, columns, N, False)
    store_output(Y, at, mask, x, factor, mean, rest, scale, alpha, weight, bias, a, b, KIND)


@triton.jit(do_not_specialize=["rows"])
def backward_rows(
    GRAD: tl.tensor,
    GRAD_TOTAL: tl.tensor,
    X: tl.tensor,
    SEEDS: tl.tensor,
    STATS: tl.tensor,
    WEIGHT: tl.tensor,
    ALPHA: tl.tensor,
    DX: tl.tensor,
    DBRANCH: tl.tensor,
    PARTIALS: tl.tensor,
    rows: tl.tensor,
    p: tl.tensor,
    keep_scale: tl.tensor,
    a: tl.tensor,
    b: tl.tensor,
    KIND: tl.constexpr,
    N: tl.constexpr,
    SEEN: tl.constexpr,
    COUNT: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANGE: tl.constexpr,
    PULL: tl.constexpr,
    SHIFT: tl.constexpr,
    SCALAR: tl.constexpr,
    HAS_DW: tl.constexpr,
    HAS_DB: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """Compute dx of every `num_programs`-th tile, and partial gradients of the parameters."""
    a, b = tl.cast(a, tl.float32), tl.cast(b, tl.float32)
    p, keep_scale = tl.cast(p, tl.float32), tl.cast(keep_scale, tl.float32)
    columns = tl.arange(0, BLOCK_N)[None, :]
    weight, alpha = parameter(WEIGHT, columns, N, SCALAR), parameter(ALPHA, columns, N, True)
    dw = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    db = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    ds = tl.zeros((BLOCK_M,), tl.float32)
    for tile in tl.range(
        tl.program_id(0), tl.cdiv(rows, BLOCK_M), tl.num_programs(0), num_stages=STAGES
    ):
        row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        at = row.to(tl.int64)[:, None] * N + columns
        mask = (row < rows)[:, None] & (columns < N)
        scale, factor, mean, rest = load_stats(STATS, row, rows, KIND, COLUMNS, RANGE)
        x, g, h, u = load_gradients(
            X, GRAD, at, mask, columns < N, scale, factor, mean, rest, alpha, weight, a, b,
            KIND, N == BLOCK_N,
        )  # fmt: skip
        if KIND == "tanh":
            d = u * alpha
            ds += tl.sum(u * x, 1)
        else:
            pull, shift, tilt = row_sums(u, h, mean, KIND, N, SEEN, COUNT, PULL, SHIFT)
            d = input_gradient(
                u, h, columns, factor, scale, pull, shift, tilt, a, KIND, N, SEEN, PULL, SHIFT
            )
            if SCALAR:
                ds += tl.sum(g * h, 1)
        if HAS_DW:
            dw += g * h
        if HAS_DB:
            db += g
        store_input_gradient(
            d, GRAD_TOTAL, SEEDS, DX, DBRANCH, row, columns, at, mask, rows, p, keep_scale
        )
    if WIDTH > 0:
        own = PARTIALS + tl.program_id(0) * WIDTH
        store_partials(own, tl.arange(0, BLOCK_N), dw, db, N, HAS_DW, HAS_DB)
        if SCALAR or KIND == "tanh":
            tl.store(own + WIDTH - 1, tl.sum(ds, 0))


@triton.jit(do_not_specialize=["programs"])
def finalize(
    PARTIALS: tl.tensor,
    DW: tl.tensor,
    DB: tl.tensor,
    DS: tl.tensor,
    programs: tl.tensor,
    N: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Sum the partial rows, and store each gradient in the dtype of its parameter."""
    column = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for start in range(0, programs, BLOCK_P):
        row = start + tl.arange(0, BLOCK_P)
        at = row[:, None] * WIDTH + column[None, :]
        mask = (row < programs)[:, None] & (column < WIDTH)[None, :]
        total += tl.load(PARTIALS + at, mask=mask, other=0.0)
    result = tl.sum(total, 0)
    first: tl.constexpr = 0 if DW is None else N
    if DW is not None:
        tl.store(DW + column, result.to(DW.dtype.element_ty), mask=column < N)
    if DB is not None:
        inside = (column >= first) & (column < first + N)
        tl.store(DB + column - first, result.to(DB.dtype.element_ty), mask=inside)
    if DS is not None:
        tl.store(DS + column * 0, result.to(DS.dtype.element_ty), mask=column == WIDTH - 1)
