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
    row_sums,
    seen_largest,
    share_sum,
    whole_sum,
)
from normtrain.kernels.triton_tiles import (
    as_float32,
    load_gradients,
    load_input,
    load_parameter,
    load_stats,
    no_stats,
    store_input_gradient,
    store_output,
    store_partials,
    store_stats,
)


@triton.jit
def _tile_statistics(
    x: tl.tensor, columns: tl.tensor, scalars: tl.tuple, S: tl.constexpr, FULL: tl.constexpr
) -> tl.tuple:
    """Compute the statistics of whole rows."""
    mask = columns < S.n
    total = tl.zeros((x.shape[0],), tl.float32)
    factor = total + 1.0
    if centred(S) or S.kind == "crms":
        total = share_sum(x)
    if S.scaled:
        factor = row_factor(seen_largest(x, columns, S))
    total = whole_sum(total, factor)
    mean, rest = tl.zeros_like(total), tl.zeros_like(total)
    if centred(S):
        mean = total * (1.0 / S.n)
        c = off_mean(x, mask, factor, mean, FULL)
        rest = tl.sum(c, 1) * (1.0 / S.n)
        if S.kind == "l1":
            c = tl.abs(c - rest[:, None])
            square = tl.sum(c if FULL else tl.where(mask, c, 0.0), 1)
        else:
            square = tl.sum(c * c, 1)
    else:
        c = x * factor[:, None]
        if S.seen < S.n:
            c = tl.where(columns < S.seen, c, 0.0)
        square = tl.sum(c * c, 1)
    return row_scale(square, rest, total, scalars, S), factor, mean, rest


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
    S: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Normalize a tile of ``BLOCK_M`` whole rows per program."""
    scalars = as_float32((eps, a, b))
    drop = SEEDS, tl.cast(p, tl.float32), tl.cast(keep_scale, tl.float32)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_N)[None, :]
    at = row.to(tl.int64)[:, None] * S.n + columns
    mask = (row < rows)[:, None] & (columns < S.n)
    x = load_input(X, RESIDUAL, TOTAL, drop, row, columns, at, mask, rows)
    stats = no_stats(row)
    if S.kind != "tanh":
        stats = _tile_statistics(x, columns, scalars, S, S.n == BLOCK_N)
        store_stats(STATS, row, rows, stats, scalars[0], S)
    weight = load_parameter(WEIGHT, columns, S.n, S.scalar)
    bias = load_parameter(BIAS, columns, S.n, False)
    alpha = load_parameter(ALPHA, columns, S.n, True)
    store_output(Y, at, mask, x, stats, weight, bias, alpha, scalars, S)


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
    eps: tl.tensor,
    a: tl.tensor,
    b: tl.tensor,
    S: tl.constexpr,
    SUMS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """Compute dx of every `num_programs`-th tile, and partial gradients of the parameters."""
    scalars = as_float32((eps, a, b))
    drop = SEEDS, tl.cast(p, tl.float32), tl.cast(keep_scale, tl.float32)
    columns = tl.arange(0, BLOCK_N)[None, :]
    weight = load_parameter(WEIGHT, columns, S.n, S.scalar)
    alpha = load_parameter(ALPHA, columns, S.n, True)
    dw = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    db = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    ds = tl.zeros((BLOCK_M,), tl.float32)
    for tile in tl.range(
        tl.program_id(0), tl.cdiv(rows, BLOCK_M), tl.num_programs(0), num_stages=STAGES
    ):
        row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        at = row.to(tl.int64)[:, None] * S.n + columns
        mask = (row < rows)[:, None] & (columns < S.n)
        stats = load_stats(STATS, row, rows, S)
        x, g, h, u = load_gradients(
            X, GRAD, at, mask, columns < S.n, stats, weight, alpha, scalars, S, S.n == BLOCK_N
        )
        if S.kind == "tanh":
            d = u * alpha
            ds += tl.sum(u * x, 1)
        else:
            d = input_gradient(u, h, columns, stats, row_sums(u, h, stats, S), scalars, S)
            if S.scalar:
                ds += tl.sum(g * h, 1)
        if SUMS.dw:
            dw += g * h
        if SUMS.db:
            db += g
        store_input_gradient(d, GRAD_TOTAL, DX, DBRANCH, drop, row, columns, at, mask, rows)
    if SUMS.width > 0:
        own = PARTIALS + tl.program_id(0) * SUMS.width
        store_partials(own, tl.arange(0, BLOCK_N), dw, db, S.n, SUMS)
        if S.scalar or S.kind == "tanh":
            tl.store(own + SUMS.width - 1, tl.sum(ds, 0))


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
