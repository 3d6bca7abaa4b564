"""The fused GPU kernels: launching those of `triton_rows` and, for long rows, `triton_wide`.

The kernels scale rows into range themselves, so the host reads no value and makes no extra pass.
Tile sizes depend on the length of a row only: nothing is autotuned at the first call, and the
gradients of the parameters depend on the device only by its number of multiprocessors.

Importing this module imports Triton, and initializes no device.
"""

from __future__ import annotations

import contextlib
import functools
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from normtrain.kernels.backend import DTYPES, Backend, Dropout, Parameters
from normtrain.kernels.table import KINDS, Scalars
from normtrain.kernels.triton_math import Shape, Sums
from normtrain.kernels.triton_rows import backward_rows, finalize, forward_rows
from normtrain.kernels.triton_wide import backward_wide, forward_wide, parameters_wide

LONGEST = 2**17
"""The largest number of features; sums stay in range up to here."""

# the longest rows, padded to a power of two, that fit into the registers of one program
_FORWARD_BLOCK, _BACKWARD_BLOCK = 16384, 8192
_WIDE_BLOCK = 4096
_WIDE_TILE = (8, 512)
_NO_DROPOUT = Dropout(None, 0.0)


def interpreted() -> bool:
    """Return whether the kernels run in Triton's interpreter (``TRITON_INTERPRET=1``)."""
    return not isinstance(forward_rows, triton.JITFunction)


class Tile(NamedTuple):
    """Launch sizes: rows per tile, warps, and stages of the pipeline."""

    rows: int
    warps: int
    stages: int = 1


def forward_tile(block: int) -> Tile:
    """Return the forward's tile for rows padded to `block`: 32 features per thread."""
    rows = max(1, min(16, 1024 // block))
    return Tile(rows, max(1, min(16, rows * block // 1024)))


def backward_tile(block: int) -> Tile:
    """Return the backward's tile: 8 features per thread, since it needs seven tiles at once."""
    rows = max(1, min(64, 2048 // block))
    return Tile(rows, max(1, min(16, rows * block // 256)), 2)


@functools.lru_cache(maxsize=1024)
def _shape(kind: str, d: int, count: int, dtype: torch.dtype, scalar: bool) -> Shape:
    return Shape(
        kind=kind,
        n=d,
        seen=count if kind == "rms" else d,
        count={"rms": count, "crms": d + 1, "l2": 1}.get(kind, d),
        saved=BACKEND.columns(kind),
        scaled=dtype != torch.float16,  # no float16 needs scaling
        scalar=scalar,
        pull=kind != "detach" or count == 1,
        shift=kind in ("layer", "ada", "l1") or (kind == "detach" and count == 2),
    )


@functools.cache
def _most_programs(device: torch.device) -> int:
    """Return the number of programs: two per multiprocessor; a few in the interpreter."""
    if device.type == "cpu":
        return 4
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count


def _on(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Select the tensor's device, since Triton launches on the current one."""
    if x.is_cuda and x.device.index != torch.cuda.current_device():
        return torch.cuda.device(x.device)
    return contextlib.nullcontext()


def _check(kind: str, x: Tensor, *others: Tensor | None) -> None:
    assert "triton" in KINDS[kind].saved
    assert BACKEND.serves(x)
    for t in (x, *others):
        assert t is None or (t.is_contiguous() and t.device == x.device)


def _is_scalar(kind: str, weight: Tensor | None) -> bool:
    return kind == "l2" and weight is not None and weight.numel() == 1


def _plain_numbers(rows: int, p: float, scalars: Scalars) -> tuple[float, ...]:
    """Return rows, p, 1 / (1 - p), eps, a and b as the kernels take them."""
    return rows, float(p), 1.0 / (1.0 - p), *map(float, (scalars.eps, scalars.a, scalars.b))


def _forward(
    kind: str,
    x: Tensor,
    residual: Tensor | None,
    dropout: Dropout,
    parameters: Parameters,
    scalars: Scalars,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (y, total, stats) of rows, after adding a residual if there is one."""
    seeds, p = dropout
    _check(kind, x, residual, seeds, *parameters)
    d = x.shape[-1]
    rows = x.numel() // d
    y, total = torch.empty_like(x), x if residual is None else torch.empty_like(x)
    stats = torch.empty(rows, BACKEND.columns(kind), dtype=torch.float32, device=x.device)
    if rows == 0:
        return y, total, stats
    shape = _shape(kind, d, scalars.count, x.dtype, _is_scalar(kind, parameters[0]))
    block = triton.next_power_of_2(d)
    given = (x, residual, seeds, total, y, stats, *parameters, *_plain_numbers(rows, p, scalars))
    with _on(x):
        if block <= _FORWARD_BLOCK:
            tile = forward_tile(block)
            forward_rows[(triton.cdiv(rows, tile.rows),)](
                *given, S=shape, BLOCK_M=tile.rows, BLOCK_N=block, num_warps=tile.warps
            )
        else:
            forward_wide[(rows,)](*given, S=shape, BLOCK_N=_WIDE_BLOCK, num_warps=8)
    return y, total, stats


class _Partials(NamedTuple):
    """The gradients of the parameters, and the float32 partial sums that they are added from."""

    dw: Tensor | None
    db: Tensor | None
    dalpha: Tensor | None
    rows: Tensor | None
    width: int


def _make_partials(x: Tensor, parameters: Parameters, programs: int) -> _Partials:
    make = torch.empty_like if programs else torch.zeros_like
    dw, db, dalpha = (None if t is None else make(t) for t in parameters)
    width = sum(g.numel() for g in (dw, db, dalpha) if g is not None)
    rows = x.new_empty(programs, width, dtype=torch.float32) if width and programs else None
    return _Partials(dw, db, dalpha, rows, width)


def _backward(
    kind: str,
    grad: Tensor,
    grad_total: Tensor | None,
    total: Tensor,
    dropout: Dropout,
    parameters: Parameters,
    stats: Tensor,
    scalars: Scalars,
) -> tuple[Tensor, Tensor | None, Parameters]:
    (weight, _, alpha), (seeds, p) = parameters, dropout
    _check(kind, total, grad, grad_total, seeds, *parameters, stats)
    d = total.shape[-1]
    rows, block = total.numel() // d, triton.next_power_of_2(d)
    short, tile = block <= _BACKWARD_BLOCK, backward_tile(block)
    programs = min(triton.cdiv(rows, tile.rows if short else 1), _most_programs(total.device))
    dx, dbranch = torch.empty_like(total), None if seeds is None else torch.empty_like(total)
    made, scalar = _make_partials(total, parameters, programs), _is_scalar(kind, weight)
    if rows == 0:
        return dx, dbranch, made[:3]
    sums = Sums(made.dw is not None and not scalar, made.db is not None, made.width)
    shape = _shape(kind, d, scalars.count, total.dtype, scalar)
    tensors = (grad, grad_total, total, seeds, stats, weight, alpha, dx, dbranch, made.rows)
    given = (*tensors, *_plain_numbers(rows, p, scalars))
    with _on(total):
        if short:
            backward_rows[(programs,)](
                *given, S=shape, SUMS=sums,
                BLOCK_M=tile.rows, BLOCK_N=block, STAGES=tile.stages, num_warps=tile.warps,
            )  # fmt: skip
        else:
            backward_wide[(programs,)](*given, S=shape, SUMS=sums, BLOCK_N=_WIDE_BLOCK, num_warps=8)
            if made.rows is not None and (sums.dw or sums.db):
                block_m, block_n = _WIDE_TILE
                parameters_wide[(triton.cdiv(d, block_n), programs)](
                    grad, total, stats, alpha, made.rows, rows,
                    S=shape, SUMS=sums, BLOCK_M=block_m, BLOCK_N=block_n, num_warps=8,
                )  # fmt: skip
        _finalize(made, d, scalar)
    return dx, dbranch, made[:3]


def _finalize(made: _Partials, d: int, scalar: bool) -> None:
    """Add the partial sums up into the gradients."""
    if made.rows is None:
        return
    vector, single = (None, made.dw) if scalar else (made.dw, made.dalpha)
    block = 32
    finalize[(triton.cdiv(made.width, block),)](
        made.rows, vector, made.db, single, made.rows.shape[0],
        N=d, WIDTH=made.width, BLOCK_P=64, BLOCK_C=block, num_warps=4,
    )  # fmt: skip


class TritonBackend(Backend):
    """The Triton kernels."""

    name = "triton"

    def serves(self, x: Tensor) -> bool:
        return (x.is_cuda or interpreted()) and x.dtype in DTYPES and 1 <= x.shape[-1] <= LONGEST

    def forward(
        self, kind: str, x: Tensor, parameters: Parameters, scalars: Scalars
    ) -> tuple[Tensor, Tensor]:
        return _forward(kind, x, None, _NO_DROPOUT, parameters, scalars)[::2]

    def backward(
        self,
        kind: str,
        grad: Tensor,
        x: Tensor,
        parameters: Parameters,
        stats: Tensor,
        scalars: Scalars,
    ) -> tuple[Tensor, Parameters]:
        return _backward(kind, grad, None, x, _NO_DROPOUT, parameters, stats, scalars)[::2]

    forward_add = staticmethod(_forward)
    backward_add = staticmethod(_backward)


BACKEND = TritonBackend()
