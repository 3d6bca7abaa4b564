"""Triton kernels for rows too long for a program's registers, which are read in blocks.

Pointers and arguments are those of `triton_rows`. A row is read again for every sum that depends on
an earlier one, mostly from the cache. The parameters' gradients have a separate kernel here, since
their sums over rows would not fit into registers either.
"""

from __future__ import annotations

import triton
import triton.language as tl

from normtrain.kernels.triton_math import (
    centred,
    input_gradient,
    normalized,
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
    load_wide,
    no_stats,
    store_input_gradient,
    store_output,
    store_partials,
    store_stats,
)


@triton.jit
def _second_sums(
    X: tl.tensor, row: tl.tensor, stats: tl.tuple, S: tl.constexpr, BLOCK_N: tl.constexpr
) -> tl.tuple:
    """Sum the deviations of a row and their squares (for l1 magnitudes about the second mean)."""
    _, factor, mean, rest = stats
    plain, square = tl.zeros_like(mean), tl.zeros_like(mean)
    for start in range(0, S.seen, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)[None, :]
        inside = columns < S.seen
        x = load_wide(X, row.to(tl.int64)[:, None] * S.n + columns, inside)
        c = off_mean(x, inside, factor, mean, False)
        plain += tl.sum(c, 1)
        if S.kind == "l1":
            square += tl.sum(tl.where(inside, tl.abs(c - rest[:, None]), 0.0), 1)
        else:
            square += tl.sum(c * c, 1)
    return plain, square


@triton.jit
def _wide_statistics(
    X: tl.tensor,
    row: tl.tensor,
    largest: tl.tensor,
    total: tl.tensor,
    scalars: tl.tuple,
    S: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tl.tuple:
    """Compute the statistics of a row from its largest magnitude and its sum."""
    scale, factor, mean, rest = no_stats(row)
    if S.scaled:
        factor = row_factor(largest)
    total = whole_sum(total, factor)
    if centred(S):
        mean = total * (1.0 / S.n)
    plain, square = _second_sums(X, row, (scale, factor, mean, rest), S, BLOCK_N)
    if centred(S):
        rest = plain * (1.0 / S.n)
    if S.kind == "l1":
        plain, square = _second_sums(X, row, (scale, factor, mean, rest), S, BLOCK_N)
    return row_scale(square, rest, total, scalars, S), factor, mean, rest


@triton.jit(do_not_specialize=["rows"])
def forward_wide(
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
    BLOCK_N: tl.constexpr,
) -> None:
    """Normalize one row per program."""
    scalars = as_float32((eps, a, b))
    drop = SEEDS, tl.cast(p, tl.float32), tl.cast(keep_scale, tl.float32)
    row = tl.program_id(0) + tl.arange(0, 1)
    base = row.to(tl.int64)[:, None] * S.n
    largest, total = tl.zeros((1,), tl.float32), tl.zeros((1,), tl.float32)
    if S.kind != "tanh" or RESIDUAL is not None:
        for start in range(0, S.n, BLOCK_N):
            columns = start + tl.arange(0, BLOCK_N)[None, :]
            at, mask = base + columns, columns < S.n
            x = load_input(X, RESIDUAL, TOTAL, drop, row, columns, at, mask, rows)
            largest = tl.maximum(largest, seen_largest(x, columns, S))
            total += share_sum(x)
    source = X
    if RESIDUAL is not None:
        # the sum just stored is read again, possibly by other threads
        tl.debug_barrier()
        source = TOTAL
    stats = no_stats(row)
    if S.kind != "tanh":
        stats = _wide_statistics(source, row, largest, total, scalars, S, BLOCK_N)
        store_stats(STATS, row, rows, stats, scalars[0], S)
    alpha = load_parameter(ALPHA, row, S.n, True)
    for start in range(0, S.n, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)[None, :]
        at, mask = base + columns, columns < S.n
        weight = load_parameter(WEIGHT, columns, S.n, S.scalar)
        bias = load_parameter(BIAS, columns, S.n, False)
        x = load_wide(source, at, mask)
        store_output(Y, at, mask, x, stats, weight, bias, alpha, scalars, S)


@triton.jit
def _wide_row_sums(
    GRAD: tl.tensor,
    X: tl.tensor,
    WEIGHT: tl.tensor,
    row: tl.tensor,
    stats: tl.tuple,
    alpha: tl.tensor,
    scalars: tl.tuple,
    S: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tl.tuple:
    """Compute the `row_sums` of a row, and its term of a scalar parameter's gradient."""
    zero = tl.zeros_like(stats[0])
    pull, shift, tilt, ds = zero, zero, zero, zero
    for start in range(0, S.n, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)[None, :]
        mask = columns < S.n
        at = row.to(tl.int64)[:, None] * S.n + columns
        weight = load_parameter(WEIGHT, columns, S.n, S.scalar)
        x, g, h, u = load_gradients(
            X, GRAD, at, mask, mask, stats, weight, alpha, scalars, S, False
        )
        if S.kind == "tanh":
            ds += tl.sum(u * x, 1)
        else:
            more = row_sums(u, h, stats, S)
            pull, shift, tilt = pull + more[0], shift + more[1], tilt + more[2]
            if S.scalar:
                ds += tl.sum(g * h, 1)
    return (pull, shift, tilt), ds


@triton.jit(do_not_specialize=["rows"])
def backward_wide(
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
    BLOCK_N: tl.constexpr,
) -> None:
    """Compute dx of every `num_programs`-th row, and the partial gradient of a scalar parameter."""
    scalars = as_float32((eps, a, b))
    drop = SEEDS, tl.cast(p, tl.float32), tl.cast(keep_scale, tl.float32)
    ds = tl.zeros((1,), tl.float32)
    for index in range(tl.program_id(0), rows, tl.num_programs(0)):
        row = index + tl.arange(0, 1)
        alpha = load_parameter(ALPHA, row, S.n, True)
        stats = load_stats(STATS, row, rows, S)
        sums = stats[0], stats[0], stats[0]
        if S.kind != "tanh" or SUMS.width > 0:
            sums, more = _wide_row_sums(GRAD, X, WEIGHT, row, stats, alpha, scalars, S, BLOCK_N)
            ds += more
        for start in range(0, S.n, BLOCK_N):
            columns = start + tl.arange(0, BLOCK_N)[None, :]
            mask = columns < S.n
            at = row.to(tl.int64)[:, None] * S.n + columns
            weight = load_parameter(WEIGHT, columns, S.n, S.scalar)
            _, _, h, u = load_gradients(
                X, GRAD, at, mask, mask, stats, weight, alpha, scalars, S, True
            )
            if S.kind == "tanh":
                d = u * alpha
            else:
                d = input_gradient(u, h, columns, stats, sums, scalars, S)
            store_input_gradient(d, GRAD_TOTAL, DX, DBRANCH, drop, row, columns, at, mask, rows)
    if S.scalar or S.kind == "tanh":
        tl.store(PARTIALS + tl.program_id(0) * SUMS.width + SUMS.width - 1, tl.sum(ds, 0))


@triton.jit(do_not_specialize=["rows"])
def parameters_wide(
    GRAD: tl.tensor,
    X: tl.tensor,
    STATS: tl.tensor,
    ALPHA: tl.tensor,
    PARTIALS: tl.tensor,
    rows: tl.tensor,
    S: tl.constexpr,
    SUMS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Sum dw and db of a block of columns over every `num_programs(1)`-th tile of rows."""
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = column[None, :]
    alpha = load_parameter(ALPHA, columns, S.n, True)
    dw = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    db = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for tile in range(tl.program_id(1), tl.cdiv(rows, BLOCK_M), tl.num_programs(1)):
        row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        at = row.to(tl.int64)[:, None] * S.n + columns
        mask = (row < rows)[:, None] & (columns < S.n)
        g = load_wide(GRAD, at, mask)
        if SUMS.dw:
            stats = load_stats(STATS, row, rows, S)
            dw += g * normalized(load_wide(X, at, mask), stats, alpha, S)
        if SUMS.db:
            db += g
    own = PARTIALS + tl.program_id(1) * SUMS.width
    store_partials(own, column, dw, db, S.n, SUMS)
