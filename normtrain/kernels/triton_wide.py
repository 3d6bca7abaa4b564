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
    seen_largest,
    share_sum,
    whole_sum,
)
from normtrain.kernels.triton_tiles import (
    load_gradients,
    load_stats,
    load_wide,
    parameter,
    row_input,
    row_sums,
    store_input_gradient,
    store_output,
    store_partials,
    store_stats,
)


@triton.jit
def _second_sums(
    X: tl.tensor,
    row: tl.tensor,
    factor: tl.tensor,
    mean: tl.tensor,
    rest: tl.tensor,
    KIND: tl.constexpr,
    N: tl.constexpr,
    SEEN: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tl.tensor:
    """Sum the deviations of a row and their squares (for l1 magnitudes about `rest`)."""
    plain, square = tl.zeros_like(mean), tl.zeros_like(mean)
    for start in range(0, SEEN, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)[None, :]
        inside = columns < SEEN
        x = load_wide(X, row.to(tl.int64)[:, None] * N + columns, inside)
        c = off_mean(x, inside, factor, mean, False)
        plain += tl.sum(c, 1)
        if KIND == "l1":
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
    eps: tl.tensor,
    a: tl.tensor,
    KIND: tl.constexpr,
    N: tl.constexpr,
    SEEN: tl.constexpr,
    COUNT: tl.constexpr,
    RANGE: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tl.tensor:
    """Compute scale, factor and the mean of a row from its largest magnitude and its sum."""
    factor = tl.zeros_like(total) + 1.0
    if RANGE:
        factor = row_factor(largest)
    total = whole_sum(total, factor)
    mean, rest = tl.zeros_like(total), tl.zeros_like(total)
    if centred(KIND):
        mean = total * (1.0 / N)
    plain, square = _second_sums(X, row, factor, mean, rest, KIND, N, SEEN, BLOCK_N)
    if centred(KIND):
        rest = plain * (1.0 / N)
    if KIND == "l1":
        plain, square = _second_sums(X, row, factor, mean, rest, KIND, N, SEEN, BLOCK_N)
    return row_scale(square, rest, total, eps, a, KIND, COUNT), factor, mean, rest


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
    KIND: tl.constexpr,
    N: tl.constexpr,
    SEEN: tl.constexpr,
    COUNT: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANGE: tl.constexpr,
    SCALAR: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Normalize one row per program."""
    eps, a, b = tl.cast(eps, tl.float32), tl.cast(a, tl.float32), tl.cast(b, tl.float32)
    p, keep_scale = tl.cast(p, tl.float32), tl.cast(keep_scale, tl.float32)
    row = tl.program_id(0) + tl.arange(0, 1)
    base = row.to(tl.int64)[:, None] * N
    largest, total = tl.zeros((1,), tl.float32), tl.zeros((1,), tl.float32)
    if KIND != "tanh" or RESIDUAL is not None:
        for start in range(0, N, BLOCK_N):
            columns = start + tl.arange(0, BLOCK_N)[None, :]
            at, mask = base + columns, columns < N
            x = row_input(X, RESIDUAL, SEEDS, TOTAL, row, columns, at, mask, rows, p, keep_scale)
            largest = tl.maximum(largest, seen_largest(x, columns, SEEN, N))
            total += share_sum(x)
    source = X
    if RESIDUAL is not None:
        # the sum just stored is read again, possibly by other threads
        tl.debug_barrier()
        source = TOTAL
    scale, factor, mean, rest = load_stats(STATS, row, rows, KIND, 0, RANGE)
    alpha = parameter(ALPHA, row, N, True)
    if KIND != "tanh":
        scale, factor, mean, rest = _wide_statistics(
            source, row, largest, total, eps, a, KIND, N, SEEN, COUNT, RANGE, BLOCK_N
        )
        store_stats(STATS, row, rows, scale, factor, mean, rest, eps, KIND, COLUMNS)
    for start in range(0, N, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)[None, :]
        at, mask = base + columns, columns < N
        x = load_wide(source, at, mask)
        weight, bias = parameter(WEIGHT, columns, N, SCALAR), parameter(BIAS, columns, N, False)
        store_output(Y, at, mask, x, factor, mean, rest, scale, alpha, weight, bias, a, b, KIND)


@triton.jit
def _wide_row_sums(
    GRAD: tl.tensor,
    X: tl.tensor,
    WEIGHT: tl.tensor,
    row: tl.tensor,
    scale: tl.tensor,
    factor: tl.tensor,
    mean: tl.tensor,
    rest: tl.tensor,
    alpha: tl.tensor,
    a: tl.tensor,
    b: tl.tensor,
    KIND: tl.constexpr,
    N: tl.constexpr,
    SEEN: tl.constexpr,
    COUNT: tl.constexpr,
    PULL: tl.constexpr,
    SHIFT: tl.constexpr,
    SCALAR: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tl.tensor:
    """Compute pull, shift and tilt of a row, and its term of a scalar parameter's gradient."""
    zero = tl.zeros_like(scale)
    pull, shift, tilt, ds = zero, zero, zero, zero
    for start in range(0, N, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)[None, :]
        mask = columns < N
        at = row.to(tl.int64)[:, None] * N + columns
        x, g, h, u = load_gradients(
            X, GRAD, at, mask, mask, scale, factor, mean, rest, alpha,
            parameter(WEIGHT, columns, N, SCALAR), a, b, KIND, False,
        )  # fmt: skip
        if KIND == "tanh":
            ds += tl.sum(u * x, 1)
        else:
            more = row_sums(u, h, mean, KIND, N, SEEN, COUNT, PULL, SHIFT)
            pull, shift, tilt = pull + more[0], shift + more[1], tilt + more[2]
            if SCALAR:
                ds += tl.sum(g * h, 1)
    return pull, shift, tilt, ds


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
    WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Compute dx of every `num_programs`-th row, and the partial gradient of a scalar parameter."""
    a, b = tl.cast(a, tl.float32), tl.cast(b, tl.float32)
    p, keep_scale = tl.cast(p, tl.float32), tl.cast(keep_scale, tl.float32)
    ds = tl.zeros((1,), tl.float32)
    for index in range(tl.program_id(0), rows, tl.num_programs(0)):
        row = index + tl.arange(0, 1)
        alpha = parameter(ALPHA, row, N, True)
        scale, factor, mean, rest = load_stats(STATS, row, rows, KIND, COLUMNS, RANGE)
        pull, shift, tilt = scale, scale, scale
        if KIND != "tanh" or WIDTH > 0:
            pull, shift, tilt, more = _wide_row_sums(
                GRAD, X, WEIGHT, row, scale, factor, mean, rest, alpha, a, b,
                KIND, N, SEEN, COUNT, PULL, SHIFT, SCALAR, BLOCK_N,
            )  # fmt: skip
            ds += more
        for start in range(0, N, BLOCK_N):
            columns = start + tl.arange(0, BLOCK_N)[None, :]
            mask = columns < N
            at = row.to(tl.int64)[:, None] * N + columns
            _, _, h, u = load_gradients(
                X, GRAD, at, mask, mask, scale, factor, mean, rest, alpha,
                parameter(WEIGHT, columns, N, SCALAR), a, b, KIND, True,
            )  # fmt: skip
            if KIND == "tanh":
                d = u * alpha
            else:
                d = input_gradient(
                    u, h, columns, factor, scale, pull, shift, tilt, a, KIND, N, SEEN, PULL, SHIFT
                )
            store_input_gradient(
                d, GRAD_TOTAL, SEEDS, DX, DBRANCH, row, columns, at, mask, rows, p, keep_scale
            )
    if SCALAR or KIND == "tanh":
        tl.store(PARTIALS + tl.program_id(0) * WIDTH + WIDTH - 1, tl.sum(ds, 0))


@triton.jit(do_not_specialize=["rows"])
def parameters_wide(
    GRAD: tl.tensor,
    X: tl.tensor,
    STATS: tl.tensor,
    ALPHA: tl.tensor,
    PARTIALS: tl.tensor,
    rows: tl.tensor,
    KIND: tl.constexpr,
    N: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANGE: tl.constexpr,
    HAS_DW: tl.constexpr,
    HAS_DB: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Sum dw and db of a block of columns over every `num_programs(1)`-th tile of rows."""
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = column[None, :]
    alpha = parameter(ALPHA, columns, N, True)
    dw = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    db = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for tile in range(tl.program_id(1), tl.cdiv(rows, BLOCK_M), tl.num_programs(1)):
        row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        at = row.to(tl.int64)[:, None] * N + columns
        mask = (row < rows)[:, None] & (columns < N)
        g = load_wide(GRAD, at, mask)
        if HAS_DW:
            scale, factor, mean, rest = load_stats(STATS, row, rows, KIND, COLUMNS, RANGE)
            x = load_wide(X, at, mask)
            dw += g * normalized(x, factor, mean, rest, scale, alpha, KIND)
        if HAS_DB:
            db += g
    own = PARTIALS + tl.program_id(1) * WIDTH
    store_partials(own, column, dw, db, N, HAS_DW, HAS_DB)
