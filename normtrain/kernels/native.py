"""The CPU's fused kernels: the optional extension `_native`, as the contract of `rows` wants it.

The extension is built by ``pip install`` where a C++ compiler is at hand, and in a checkout by
``python hatch_build.py``. It takes addresses; the checks that make them safe are here and in
`normtrain.kernels.dispatch`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normtrain.kernels.rows import KINDS, Numbers

_native: Any
try:
    from normtrain.kernels import _native  # type: ignore[attr-defined,no-redef]
except ImportError as error:
    _native, _MISSING = None, str(error)

CODES = {kind: code for code, kind in enumerate(KINDS)}
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
COLUMNS = {"layer": 4, "detach": 4, "rms": 2, "ada": 4, "crms": 3, "l2": 3, "l1": 4, "tanh": 0}
"""How many float32 numbers are kept of a row for the backward."""

_SMALL = 1 << 15  # as in module.cpp: fewer elements run on the caller's thread
_ABSENT = (0, 0, 0)
_WIDE = torch.float32


def unavailable() -> str | None:
    """Why these kernels can't run here; None where they can."""
    if _native is not None:
        return None
    return f"the native extension is not built ({_MISSING}); 'python hatch_build.py' builds it"


def instruction_sets() -> list[str]:
    """Those that this processor has, the best one first; none without the extension."""
    return [] if _native is None else _native.isas()


def use_instruction_set(name: str) -> str:
    """Use one of `instruction_sets`, in the whole process; returns the one used before."""
    return _native.use_isa(name)


def instruction_set() -> str:
    """The one in use."""
    name = _native.use_isa(_native.isas()[0])
    _native.use_isa(name)
    return name


def description() -> str:
    """The instruction set in use, and how many threads."""
    threads = torch.get_num_threads() if _native.openmp() else 1
    return f"{instruction_set()}, {threads} thread{'s' * (threads > 1)}"


def serves(x: Tensor) -> bool:
    """Whether these kernels take ``x``, ``(..., d)``, by its device and dtype."""
    return _native is not None and x.is_cpu and x.dtype in DTYPES


def columns(kind: str) -> int:
    """How many float32 numbers a row the backward of `kind` is handed in ``stats``."""
    return COLUMNS[kind]


def _given(parameter: Tensor | None) -> tuple[int, int, int]:
    """Where a parameter is, that there is no gradient, and its dtype's code."""
    if parameter is None:
        return _ABSENT
    return parameter.data_ptr(), 0, DTYPES[parameter.dtype]


def _with_grad(parameter: Tensor | None, grad: Tensor | None) -> tuple[int, int, int]:
    """Where a parameter and its gradient are, and their dtype's code."""
    if parameter is None or grad is None:
        return _ABSENT
    return parameter.data_ptr(), grad.data_ptr(), DTYPES[parameter.dtype]


def result(
    kind: str,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    alpha: Tensor | None,
    numbers: Numbers,
    stats: Tensor | None = None,
) -> Tensor:
    """The y of `forward`; statistics for a backward are kept only where there is room for them."""
    d, size = x.shape[-1], x.numel()
    y = torch.empty_like(x)
    _native.forward(
        CODES[kind], DTYPES[x.dtype], size // d, d, x.data_ptr(), y.data_ptr(), 0, 0,
        0 if stats is None else stats.data_ptr(),
        *_given(weight), 0 if weight is None else weight.numel(), *_given(bias), *_given(alpha),
        *numbers, 1 if size < _SMALL else torch.get_num_threads(),
    )  # fmt: skip
    return y


def forward(
    kind: str,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    alpha: Tensor | None,
    numbers: Numbers,
) -> tuple[Tensor, Tensor]:
    """See `normtrain.kernels.rows`; here ``x`` may also be ``(..., d)``, contiguous."""
    shape = x.numel() // x.shape[-1], COLUMNS[kind]
    # the former costs half as much as the latter
    stats = x.new_empty(shape) if x.dtype is _WIDE else torch.empty(shape, dtype=_WIDE)
    return result(kind, x, weight, bias, alpha, numbers, stats), stats


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
    """See `normtrain.kernels.rows`; here ``x`` may also be ``(..., d)``, contiguous."""
    d, size = x.shape[-1], x.numel()
    dx = torch.empty_like(x)
    dw = None if weight is None else torch.empty_like(weight)
    db = None if bias is None else torch.empty_like(bias)
    da = None if alpha is None else torch.empty_like(alpha)
    _native.backward(
        CODES[kind], DTYPES[x.dtype], size // d, d, x.data_ptr(), 0, grad.data_ptr(), dx.data_ptr(),
        stats.data_ptr(), *_with_grad(weight, dw), 0 if weight is None else weight.numel(),
        *_with_grad(bias, db), *_with_grad(alpha, da),
        *numbers, 1 if size < _SMALL else torch.get_num_threads(),
    )  # fmt: skip
    return dx, dw, db, da


def _dropping(seeds: Tensor | None, p: float) -> tuple[int, int, float]:
    """Where the seeds are, the 32-bit number below which a hash drops, the scale of the others."""
    if seeds is None:
        return 0, 0, 1.0
    return seeds.data_ptr(), min(round(p * 2**32), 2**32 - 1), 1.0 / (1.0 - p)


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
    d, size = x.shape[-1], x.numel()
    y, total = torch.empty_like(x), torch.empty_like(x)
    stats = torch.empty((size // d, COLUMNS[kind]), dtype=torch.float32)
    _native.forward(
        CODES[kind], DTYPES[x.dtype], size // d, d, total.data_ptr(), y.data_ptr(), 0, 0,
        stats.data_ptr(), *_given(weight), 0 if weight is None else weight.numel(), *_given(bias),
        *_given(alpha), *numbers, 1 if size < _SMALL else torch.get_num_threads(),
        x.data_ptr(), residual.data_ptr(), 0, 0, *_dropping(seeds, p),
    )  # fmt: skip
    return y, total, stats


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
    d, size = total.shape[-1], total.numel()
    dresidual = torch.empty_like(total)
    dx = None if seeds is None else torch.empty_like(total)
    dw, db, da = (None if t is None else torch.empty_like(t) for t in (weight, bias, alpha))
    _native.backward(
        CODES[kind], DTYPES[total.dtype], size // d, d, total.data_ptr(), 0, grad.data_ptr(),
        dresidual.data_ptr(), stats.data_ptr(), *_with_grad(weight, dw),
        0 if weight is None else weight.numel(), *_with_grad(bias, db), *_with_grad(alpha, da),
        *numbers, 1 if size < _SMALL else torch.get_num_threads(),
        0, 0, 0 if grad_total is None else grad_total.data_ptr(),
        0 if dx is None else dx.data_ptr(), *_dropping(seeds, p),
    )  # fmt: skip
    return dresidual, dx, dw, db, da
