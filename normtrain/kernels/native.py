"""The fused CPU kernels: the optional C++ extension `_native`.

``pip install`` builds the extension if a C++ compiler is available; in a checkout,
``python hatch_build.py`` does. It takes raw addresses: the checks that make them safe are here and
in `normtrain.kernels.dispatch`.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from normtrain.kernels.backend import DTYPES, Backend, Dropout, Parameters
from normtrain.kernels.table import KINDS, Scalars

_native: Any
try:
    _native = importlib.import_module("normtrain.kernels._native")
except ImportError as error:
    _native, _MISSING = None, str(error)

_CODES = {kind: row.code for kind, row in KINDS.items()}
_COLUMNS = {kind: len(row.saved.get("native", ())) for kind, row in KINDS.items()}
_SMALL = 1 << 15  # as SMALL in module.cpp: fewer elements run on the caller's thread
_ABSENT = (0, 0, 0)


def unavailable() -> str | None:
    """Return why the extension cannot be used, or None if it can."""
    if _native is not None:
        return None
    return f"the native extension is not built ({_MISSING}); 'python hatch_build.py' builds it"


def instruction_sets() -> list[str]:
    """Return the instruction sets this processor supports, best first; empty without extension."""
    return [] if _native is None else _native.isas()


def use_instruction_set(name: str) -> str:
    """Switch the process to one of `instruction_sets` and return the previous one."""
    return _native.use_isa(name)


def _instruction_set() -> str:
    name = _native.use_isa(_native.isas()[0])
    _native.use_isa(name)
    return name


def description() -> str:
    """Return the instruction set in use and the number of threads."""
    threads = torch.get_num_threads() if _native.openmp() else 1
    return f"{_instruction_set()}, {threads} thread{'s' * (threads > 1)}"


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def _threads(size: int) -> int:
    return 1 if size < _SMALL else torch.get_num_threads()


def _parameter(parameter: Tensor | None, grad: Tensor | None = None) -> tuple[int, int, int]:
    """Return the addresses of a parameter and its gradient, and their dtype's code."""
    if parameter is None:
        return _ABSENT
    return parameter.data_ptr(), _address(grad), DTYPES[parameter.dtype]


def _empty_like(t: Tensor | None) -> Tensor | None:
    return None if t is None else torch.empty_like(t)


def _dropped(dropout: Dropout) -> tuple[int, int, float]:
    """Return the seeds' address, the 32-bit threshold of dropped hashes, and 1 / (1 - p)."""
    seeds, p = dropout
    if seeds is None:
        return 0, 0, 1.0
    return seeds.data_ptr(), min(round(p * 2**32), 2**32 - 1), 1.0 / (1.0 - p)


def _output(
    kind: str,
    x: Tensor,
    parameters: Parameters,
    scalars: Scalars,
    stats: Tensor | None,
    *added: float,
) -> Tensor:
    (weight, bias, alpha), d, size = parameters, x.shape[-1], x.numel()
    y = torch.empty_like(x)
    _native.forward(
        _CODES[kind], DTYPES[x.dtype], size // d, d, x.data_ptr(), y.data_ptr(), 0, 0,
        _address(stats), *_parameter(weight), 0 if weight is None else weight.numel(),
        *_parameter(bias), *_parameter(alpha), *scalars, _threads(size), *added,
    )  # fmt: skip
    return y


def _gradients(
    kind: str,
    grad: Tensor,
    x: Tensor,
    parameters: Parameters,
    stats: Tensor,
    scalars: Scalars,
    *added: float,
) -> tuple[Tensor, Parameters]:
    (weight, bias, alpha), d, size = parameters, x.shape[-1], x.numel()
    dx = torch.empty_like(x)
    dw, db, da = _empty_like(weight), _empty_like(bias), _empty_like(alpha)
    _native.backward(
        _CODES[kind], DTYPES[x.dtype], size // d, d, x.data_ptr(), 0, grad.data_ptr(),
        dx.data_ptr(), stats.data_ptr(), *_parameter(weight, dw),
        0 if weight is None else weight.numel(), *_parameter(bias, db), *_parameter(alpha, da),
        *scalars, _threads(size), *added,
    )  # fmt: skip
    return dx, (dw, db, da)


class NativeBackend(Backend):
    """The C++ kernels."""

    name = "native"

    def description(self) -> str:
        return f"native ({_instruction_set()})"

    def serves(self, x: Tensor) -> bool:
        return x.is_cpu and x.dtype in DTYPES

    def output(self, kind: str, x: Tensor, parameters: Parameters, scalars: Scalars) -> Tensor:
        return _output(kind, x, parameters, scalars, None)

    def forward(
        self, kind: str, x: Tensor, parameters: Parameters, scalars: Scalars
    ) -> tuple[Tensor, Tensor]:
        shape = x.numel() // x.shape[-1], _COLUMNS[kind]
        # new_empty costs half as much as empty
        if x.dtype is torch.float32:
            stats = x.new_empty(shape)
        else:
            stats = torch.empty(shape, dtype=torch.float32)
        return _output(kind, x, parameters, scalars, stats), stats

    def backward(
        self,
        kind: str,
        grad: Tensor,
        x: Tensor,
        parameters: Parameters,
        stats: Tensor,
        scalars: Scalars,
    ) -> tuple[Tensor, Parameters]:
        return _gradients(kind, grad, x, parameters, stats, scalars)

    def forward_add(
        self,
        kind: str,
        x: Tensor,
        residual: Tensor,
        dropout: Dropout,
        parameters: Parameters,
        scalars: Scalars,
    ) -> tuple[Tensor, Tensor, Tensor]:
        total = torch.empty_like(x)
        stats = torch.empty((len(x), _COLUMNS[kind]), dtype=torch.float32)
        added = x.data_ptr(), residual.data_ptr(), 0, 0, *_dropped(dropout)
        return _output(kind, total, parameters, scalars, stats, *added), total, stats

    def backward_add(
        self,
        kind: str,
        grad: Tensor,
        grad_total: Tensor | None,
        total: Tensor,
        dropout: Dropout,
        parameters: Parameters,
        stats: Tensor,
        scalars: Scalars,
    ) -> tuple[Tensor, Tensor | None, Parameters]:
        dx = None if dropout.seeds is None else torch.empty_like(total)
        added = 0, 0, _address(grad_total), _address(dx), *_dropped(dropout)
        dresidual, grads = _gradients(kind, grad, total, parameters, stats, scalars, *added)
        return dresidual, dx, grads


BACKEND = NativeBackend()
