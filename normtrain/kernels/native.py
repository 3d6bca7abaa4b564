"""The CPU's fused kernels: the optional extension `_native`, as the contract of `rows` wants it.

The extension is built by ``pip install`` where a C++ compiler is at hand, and in a checkout by
``python hatch_build.py``. It takes addresses; the checks that make them safe are here and in
`normtrain.kernels.dispatch`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

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


class Dropout(NamedTuple):
    """What a dropout does, so that the backward drops the same elements.

    Attributes:
        p: share of the elements that become 0, from 0 to below 1.
        seed: 63 bits, from torch's generator.
    """

    p: float
    seed: int

    @property
    def numbers(self) -> tuple[int, int, float]:
        """Seed, the 32-bit threshold below which an element is dropped, and the others' scale."""
        return self.seed, min(round(self.p * 2**32), 2**32 - 1), 1.0 / (1.0 - self.p)


def unavailable() -> str | None:
    """Why these kernels can't run here; None where they can."""
    if _native is not None:
        return None
    return f"the native extension is not built ({_MISSING}); 'python hatch_build.py' builds it"


def description() -> str:
    """The instruction set in use, and whether there are threads."""
    threads = torch.get_num_threads() if _native.openmp() else 1
    return f"{_native.isas()[0]}, {threads} thread{'s' * (threads > 1)}"


def takes(x: Tensor, *parameters: Tensor | None) -> bool:
    """Whether all is on the CPU and of dtypes that the kernels know."""
    if _native is None or not x.is_cpu or x.dtype not in DTYPES:
        return False
    return all(p is None or (p.is_cpu and p.dtype in DTYPES) for p in parameters)


def _given(parameter: Tensor | None, grad: Tensor | None = None) -> tuple[int, int, int]:
    """Address, the gradient's address, dtype."""
    if parameter is None:
        return _ABSENT
    at = 0 if grad is None else grad.data_ptr()
    return parameter.data_ptr(), at, DTYPES[parameter.dtype]


def forward(
    kind: str,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    alpha: Tensor | None,
    numbers: Numbers,
) -> tuple[Tensor, Tensor]:
    """See `normtrain.kernels.rows`; here ``x`` may also be ``(..., d)``, contiguous."""
    d, size = x.shape[-1], x.numel()
    rows = size // d
    y = torch.empty_like(x)
    stats = torch.empty((rows, COLUMNS[kind]), dtype=torch.float32)
    _native.forward(
        CODES[kind], DTYPES[x.dtype], rows, d, x.data_ptr(), y.data_ptr(), 0, 0, stats.data_ptr(),
        *_given(weight), 0 if weight is None else weight.numel(), *_given(bias), *_given(alpha),
        *numbers, 1 if size < _SMALL else torch.get_num_threads(),
    )  # fmt: skip
    return y, stats


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
    dw, db, da = (None if p is None else torch.empty_like(p) for p in (weight, bias, alpha))
    _native.backward(
        CODES[kind], DTYPES[x.dtype], size // d, d, x.data_ptr(), 0, grad.data_ptr(), dx.data_ptr(),
        stats.data_ptr(), *_given(weight, dw), 0 if weight is None else weight.numel(),
        *_given(bias, db), *_given(alpha, da),
        *numbers, 1 if size < _SMALL else torch.get_num_threads(),
    )  # fmt: skip
    return dx, dw, db, da


def forward_sum(
    kind: str,
    branch: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    numbers: Numbers,
    dropout: Dropout,
) -> tuple[Tensor, Tensor, Tensor]:
    """``residual + dropout(branch)`` rounded to their dtype, its norm, and the norm's stats.

    Args:
        kind: any of `KINDS` but tanh.
        branch: ``(..., d)``, contiguous, as is
        residual: of the same dtype and shape.
        weight: as for `forward`.
        bias: as for `forward`.
        numbers: as for `forward`.
        dropout: share and seed.
    """
    d, size = branch.shape[-1], branch.numel()
    total, y = torch.empty_like(branch), torch.empty_like(branch)
    stats = torch.empty((size // d, COLUMNS[kind]), dtype=torch.float32)
    _native.forward(
        CODES[kind], DTYPES[branch.dtype], size // d, d, total.data_ptr(), y.data_ptr(), 0, 0,
        stats.data_ptr(), *_given(weight), 0 if weight is None else weight.numel(), *_given(bias),
        *_ABSENT, *numbers, 1 if size < _SMALL else torch.get_num_threads(),
        branch.data_ptr(), residual.data_ptr(), 0, 0, *dropout.numbers,
    )  # fmt: skip
    return total, y, stats


def backward_sum(
    kind: str,
    grad: Tensor,
    more: Tensor | None,
    total: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    stats: Tensor,
    numbers: Numbers,
    dropout: Dropout,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of branch, residual, weight and bias, from that of the norm and of the sum.

    Args:
        kind: as in the forward.
        grad: of the norm's output ``(..., d)``.
        more: of the sum itself, or None for zeros.
        total: the sum.
        weight: as in the forward.
        bias: as in the forward.
        stats: from the forward.
        numbers: as in the forward.
        dropout: as in the forward.
    """
    d, size = total.shape[-1], total.numel()
    dbranch, dresidual = torch.empty_like(total), torch.empty_like(total)
    dw, db = (None if p is None else torch.empty_like(p) for p in (weight, bias))
    _native.backward(
        CODES[kind], DTYPES[total.dtype], size // d, d, total.data_ptr(), 0, grad.data_ptr(),
        dresidual.data_ptr(), stats.data_ptr(), *_given(weight, dw),
        0 if weight is None else weight.numel(), *_given(bias, db), *_ABSENT,
        *numbers, 1 if size < _SMALL else torch.get_num_threads(),
        0, 0, 0 if more is None else more.data_ptr(), dbranch.data_ptr(), *dropout.numbers,
    )  # fmt: skip
    return dbranch, dresidual, dw, db
