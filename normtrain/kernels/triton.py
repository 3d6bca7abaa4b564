"""The norms of `normtrain.kernels.rows` on a GPU, and residual add + dropout + norm in one.

The kernels are `triton_rows` and, for long rows, `triton_wide`. They bring rows into range
themselves, so that the caller looks at no value and makes no pass ahead of them. Tile sizes follow
from the length of a row alone: nothing is tried out at the first call, and the gradients of the
parameters depend on the device only by its number of multiprocessors.

Importing this module imports Triton, and touches no device.
"""

from __future__ import annotations

import contextlib
import functools
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from normtrain.kernels.rows import KINDS, Numbers
from normtrain.kernels.triton_rows import backward_rows, finalize, forward_rows
from normtrain.kernels.triton_wide import backward_wide, forward_wide, parameters_wide

LONGEST = 2**17
"""The most features a row may have; sums are shown to stay in range up to here."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# the longest rows, padded to a power of two, that one program holds in its registers
_FORWARD_BLOCK, _BACKWARD_BLOCK = 16384, 8192
_WIDE_BLOCK = 4096
_WIDE_TILE = (8, 512)

_Grads = tuple[Tensor | None, Tensor | None, Tensor | None]


def interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter (``TRITON_INTERPRET=1``): on any device."""
    return not isinstance(forward_rows, triton.JITFunction)


def serves(x: Tensor) -> bool:
    """Whether these kernels take ``x``, ``(..., d)``, by its device, dtype and d."""
    return (
        (x.is_cuda or interpreted()) and x.dtype in DTYPES and 1 <= x.shape[-1] <= LONGEST
    )  # fmt: skip


def columns(kind: str) -> int:
    """How many float32 numbers a row the backward of `kind` is handed in ``stats``."""
    if kind == "tanh":
        return 0
    return {"rms": 2, "crms": 2, "l2": 3}.get(kind, 4)


class Tile(NamedTuple):
    """How a kernel is cut: rows a program takes at once, its warps, and its pipeline's stages."""

    rows: int
    warps: int
    stages: int = 1


def forward_tile(block: int) -> Tile:
    """The forward's tile for rows padded to `block`: 32 features a thread, a warp or more a row."""
    rows = max(1, min(16, 1024 // block))
    return Tile(rows, max(1, min(16, rows * block // 1024)))


def backward_tile(block: int) -> Tile:
    """The backward's: 8 features a thread, since it holds five such tiles and loads two more."""
    rows = max(1, min(64, 2048 // block))
    return Tile(rows, max(1, min(16, rows * block // 256)), 2)


class _Shape(NamedTuple):
    """The constants of a call that its kernels are compiled for."""

    KIND: str
    N: int
    SEEN: int
    COUNT: int
    COLUMNS: int
    RANGE: bool
    SCALAR: bool


@functools.lru_cache(maxsize=1024)
def _constants(
    kind: str, d: int, count: int, dtype: torch.dtype, scalar: bool
) -> dict[str, str | int | bool]:
    seen = count if kind == "rms" else d
    divisor = {"rms": count, "crms": d + 1, "l2": 1}.get(kind, d)
    # no float16 is large enough to matter
    wide_range = dtype != torch.float16
    return _Shape(kind, d, seen, divisor, columns(kind), wide_range, scalar)._asdict()


@functools.lru_cache(maxsize=1024)
def _gradient_constants(kind: str, count: int) -> dict[str, bool]:
    """Which of the statistic (PULL) and the mean (SHIFT) are differentiated."""
    pull = kind != "detach" or count == 1
    shift = kind in ("layer", "ada", "l1") or (kind == "detach" and count == 2)
    return {"PULL": pull, "SHIFT": shift}


@functools.cache
def _most_programs(device: torch.device) -> int:
    """Two a multiprocessor; in the interpreter a few."""
    if device.type == "cpu":
        return 4
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count


def _on(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the tensor's."""
    if x.is_cuda and x.device.index != torch.cuda.current_device():
        return torch.cuda.device(x.device)
    return contextlib.nullcontext()


def _check(kind: str, x: Tensor, *others: Tensor | None) -> None:
    assert kind in KINDS
    assert x.ndim == 2
    assert serves(x)
    for t in (x, *others):
        assert t is None or (t.is_contiguous() and t.device == x.device)


def _is_scalar(kind: str, weight: Tensor | None) -> bool:
    return kind == "l2" and weight is not None and weight.numel() == 1


def forward(
    kind: str,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    alpha: Tensor | None,
    numbers: Numbers,
) -> tuple[Tensor, Tensor]:
    """``(y, stats)`` as `normtrain.kernels.rows` defines them.

    Args:
        kind: one of `normtrain.kernels.rows.KINDS`.
        x: ``(rows, d)``, contiguous, of one of `DTYPES`.
        weight: ``(d,)``, for l2 also ``(1,)``, or None.
        bias: ``(d,)`` or None.
        alpha: ``(1,)`` for tanh, else None.
        numbers: what else the kind reads.
    """
    return _forward(kind, x, None, None, 0.0, weight, bias, alpha, numbers)[::2]


def forward_add(
    kind: str,
    x: Tensor,
    residual: Tensor,
    seeds: Tensor | None,
    p: float,
    weight: Tensor | None,
    bias: Tensor | None,
    alpha: Tensor | None,
    numbers: Numbers,
) -> tuple[Tensor, Tensor, Tensor]:
    """Norm of ``residual + dropout(x)``, and that sum, in one pass.

    Args:
        kind: one of `normtrain.kernels.rows.KINDS`.
        x: the branch, ``(rows, d)``, contiguous.
        residual: the stream, like x in shape and dtype.
        seeds: ``(rows,)`` int64, a random one for each row; None for no dropout.
        p: the share of features that dropout sets to 0, in [0, 1).
        weight: as for `forward`.
        bias: as for `forward`.
        alpha: as for `forward`.
        numbers: as for `forward`.

    Returns:
        y, the sum (rounded to its dtype before it is normalized), and stats.
    """
    assert residual.shape == x.shape
    assert residual.dtype == x.dtype
    assert 0.0 <= p < 1.0
    return _forward(kind, x, residual, seeds, p, weight, bias, alpha, numbers)


def _forward(
    kind: str,
    x: Tensor,
    residual: Tensor | None,
    seeds: Tensor | None,
    p: float,
    weight: Tensor | None,
    bias: Tensor | None,
    alpha: Tensor | None,
    numbers: Numbers,
) -> tuple[Tensor, Tensor, Tensor]:
    _check(kind, x, residual, seeds, weight, bias, alpha)
    rows, d = x.shape
    y, total = torch.empty_like(x), x if residual is None else torch.empty_like(x)
    stats = torch.empty(rows, columns(kind), dtype=torch.float32, device=x.device)
    if rows == 0:
        return y, total, stats
    scalar = _is_scalar(kind, weight)
    constants = _constants(kind, d, numbers.count, x.dtype, scalar)
    block = triton.next_power_of_2(d)
    tensors = (x, residual, seeds, total, y, stats, weight, bias, alpha)
    plain = (rows, float(p), 1.0 / (1.0 - p), *map(float, (numbers.eps, numbers.a, numbers.b)))
    with _on(x):
        if block <= _FORWARD_BLOCK:
            tile = forward_tile(block)
            forward_rows[(triton.cdiv(rows, tile.rows),)](
                *tensors, *plain, **constants,
                BLOCK_M=tile.rows, BLOCK_N=block, num_warps=tile.warps,
            )  # fmt: skip
        else:
            forward_wide[(rows,)](*tensors, *plain, **constants, BLOCK_N=_WIDE_BLOCK, num_warps=8)
    return y, total, stats


def backward(
    kind: str,
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    alpha: Tensor | None,
    stats: Tensor,
    numbers: Numbers,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """``(dx, dweight, dbias, dalpha)`` as `normtrain.kernels.rows` defines them.

    Args:
        kind: one of `normtrain.kernels.rows.KINDS`.
        grad: the gradient of y, contiguous, like x in shape and dtype.
        x: what `forward` got.
        weight: what `forward` got.
        bias: what `forward` got; only its dtype and whether it is there matter.
        alpha: what `forward` got.
        stats: what `forward` gave.
        numbers: what `forward` got.
    """
    dx, _, grads = _backward(
        kind, grad, None, x, None, 0.0, (weight, bias, alpha), stats, numbers
    )  # fmt: skip
    return dx, *grads


def backward_add(
    kind: str,
    grad: Tensor,
    grad_total: Tensor | None,
    total: Tensor,
    seeds: Tensor | None,
    p: float,
    weight: Tensor | None,
    bias: Tensor | None,
    alpha: Tensor | None,
    stats: Tensor,
    numbers: Numbers,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """``(dresidual, dx, dweight, dbias, dalpha)`` of `forward_add`.

    Args:
        kind: one of `normtrain.kernels.rows.KINDS`.
        grad: the gradient of y.
        grad_total: the gradient of the sum, or None where nothing else uses it.
        total: the sum that `forward_add` gave.
        seeds: what `forward_add` got, and so on for the others.
        p: see there.
        weight: see there.
        bias: see there.
        alpha: see there.
        stats: what `forward_add` gave.
        numbers: see there.

    Returns:
        The gradients; dx is None where there is no dropout, since it equals dresidual then.
    """
    dresidual, dx, grads = _backward(
        kind, grad, grad_total, total, seeds, p, (weight, bias, alpha), stats, numbers
    )
    return dresidual, dx, *grads


class _Partials(NamedTuple):
    """The gradients of the parameters, and the float32 rows whose sums they are."""

    dw: Tensor | None
    db: Tensor | None
    dalpha: Tensor | None
    rows: Tensor | None
    width: int


def _partials(x: Tensor, parameters: _Grads, programs: int) -> _Partials:
    make = torch.empty_like if programs else torch.zeros_like
    dw, db, dalpha = (None if t is None else make(t) for t in parameters)
    width = sum(g.numel() for g in (dw, db, dalpha) if g is not None)
    rows = x.new_empty(programs, width, dtype=torch.float32) if width and programs else None
    return _Partials(dw, db, dalpha, rows, width)


def _backward(
    kind: str,
    grad: Tensor,
    grad_total: Tensor | None,
    x: Tensor,
    seeds: Tensor | None,
    p: float,
    parameters: tuple[Tensor | None, Tensor | None, Tensor | None],
    stats: Tensor,
    numbers: Numbers,
) -> tuple[Tensor, Tensor | None, _Grads]:
    weight, _, alpha = parameters
    _check(kind, x, grad, grad_total, seeds, *parameters, stats)
    rows, d = x.shape
    block = triton.next_power_of_2(d)
    narrow, tile = block <= _BACKWARD_BLOCK, backward_tile(block)
    tiles = triton.cdiv(rows, tile.rows if narrow else 1)
    programs = min(tiles, _most_programs(x.device))
    dx, dbranch = torch.empty_like(x), None if seeds is None else torch.empty_like(x)
    made = _partials(x, parameters, programs)
    scalar = _is_scalar(kind, weight)
    if rows > 0:
        constants = _constants(kind, d, numbers.count, x.dtype, scalar)
        changes = _gradient_constants(kind, numbers.count)
        which = {"HAS_DW": made.dw is not None and not scalar, "HAS_DB": made.db is not None}
        tensors = (grad, grad_total, x, seeds, stats, weight, alpha, dx, dbranch, made.rows)
        plain = (rows, float(p), 1.0 / (1.0 - p), float(numbers.a), float(numbers.b))
        with _on(x):
            if narrow:
                backward_rows[(programs,)](
                    *tensors, *plain, **constants, **changes, **which, WIDTH=made.width,
                    BLOCK_M=tile.rows, BLOCK_N=block, STAGES=tile.stages, num_warps=tile.warps,
                )  # fmt: skip
            else:
                backward_wide[(programs,)](
                    *tensors, *plain, **constants, **changes, WIDTH=made.width,
                    BLOCK_N=_WIDE_BLOCK, num_warps=8,
                )  # fmt: skip
                _wide_parameters(grad, x, alpha, stats, made, constants, which)
            _finalize(made, d, scalar)
    return dx, dbranch, (made.dw, made.db, made.dalpha)


def _wide_parameters(
    grad: Tensor,
    x: Tensor,
    alpha: Tensor | None,
    stats: Tensor,
    made: _Partials,
    constants: dict[str, str | int | bool],
    which: dict[str, bool],
) -> None:
    if made.rows is None or not any(which.values()):
        return
    constants = {k: v for k, v in constants.items() if k in ("KIND", "N", "COLUMNS", "RANGE")}
    rows, d = x.shape
    block_m, block_n = _WIDE_TILE
    parameters_wide[(triton.cdiv(d, block_n), made.rows.shape[0])](
        grad, x, stats, alpha, made.rows, rows, **constants, **which, WIDTH=made.width,
        BLOCK_M=block_m, BLOCK_N=block_n, num_warps=8,
    )  # fmt: skip


def _finalize(made: _Partials, d: int, scalar: bool) -> None:
    """Add the partial rows up into the gradients."""
    if made.rows is None:
        return
    vector, single = (None, made.dw) if scalar else (made.dw, made.dalpha)
    block = 32
    finalize[(triton.cdiv(made.width, block),)](
        made.rows, vector, made.db, single, made.rows.shape[0],
        N=d, WIDTH=made.width, BLOCK_P=64, BLOCK_C=block, num_warps=4,
    )  # fmt: skip
