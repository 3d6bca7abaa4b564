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

from normtrain.kernels.backend import DTYPES, Backend, Gradients
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


def _size(t: Tensor | None) -> int:
    return 0 if t is None else t.numel()


def _threads(size: int) -> int:
    return 1 if size < _SMALL else torch.get_num_threads()


def _parameter(parameter: Tensor | None) -> tuple[int, int, int]:
    """Return a parameter's address, no gradient, and its dtype's code."""
    if parameter is None:
        return _ABSENT
    return parameter.data_ptr(), 0, DTYPES[parameter.dtype]


def _with_grad(parameter: Tensor | None, grad: Tensor | None) -> tuple[int, int, int]:
    """Return the addresses of a parameter and its gradient, and their dtype's code."""
    if parameter is None or grad is None:
        return _ABSENT
    return parameter.data_ptr(), grad.data_ptr(), DTYPES[parameter.dtype]


def _empty_like(t: Tensor | None) -> Tensor | None:
    return None if t is None else torch.empty_like(t)


def _dropout(seeds: Tensor | None, p: float) -> tuple[int, int, float]:
    """Return the seeds' address, the 32-bit threshold of dropped hashes, and 1 / (1 - p)."""
    if seeds is None:
        return 0, 0, 1.0
    return seeds.data_ptr(), min(round(p * 2**32), 2**32 - 1), 1.0 / (1.0 - p)


class NativeBackend(Backend):
    """The C++ kernels."""

    name = "native"

    def description(self) -> str:
        return f"native ({_instruction_set()})"

    def serves(self, x: Tensor) -> bool:
        return x.is_cpu and x.dtype in DTYPES

    def output(
        self,
        kind: str,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        alpha: Tensor | None,
        scalars: Scalars,
        stats: Tensor | None = None,
    ) -> Tensor:
        d, size = x.shape[-1], x.numel()
        y = torch.empty_like(x)
        _native.forward(
            _CODES[kind], DTYPES[x.dtype], size // d, d, x.data_ptr(), y.data_ptr(), 0, 0,
            _address(stats), *_parameter(weight), _size(weight), *_parameter(bias),
            *_parameter(alpha), *scalars, _threads(size),
        )  # fmt: skip
        return y

    def forward(
        self,
        kind: str,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        alpha: Tensor | None,
        scalars: Scalars,
    ) -> tuple[Tensor, Tensor]:
        shape = x.numel() // x.shape[-1], _COLUMNS[kind]
        # new_empty costs half as much as empty
        if x.dtype is torch.float32:
            stats = x.new_empty(shape)
        else:
            stats = torch.empty(shape, dtype=torch.float32)
        return self.output(kind, x, weight, bias, alpha, scalars, stats), stats

    def backward(
        self,
        kind: str,
        grad: Tensor,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        alpha: Tensor | None,
        stats: Tensor,
        scalars: Scalars,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        d, size = x.shape[-1], x.numel()
        dx = torch.empty_like(x)
        dw, db, da = _empty_like(weight), _empty_like(bias), _empty_like(alpha)
        _native.backward(
            _CODES[kind], DTYPES[x.dtype], size // d, d, x.data_ptr(), 0, grad.data_ptr(),
            dx.data_ptr(), stats.data_ptr(), *_with_grad(weight, dw), _size(weight),
            *_with_grad(bias, db), *_with_grad(alpha, da), *scalars, _threads(size),
        )  # fmt: skip
        return dx, dw, db, da

    def forward_add(
        self,
        kind: str,
        x: Tensor,
        residual: Tensor,
        seeds: Tensor | None,
        p: float,
        weight: Tensor | None,
        bias: Tensor | None,
        alpha: Tensor | None,
        scalars: Scalars,
    ) -> tuple[Tensor, Tensor, Tensor]:
        d, size = x.shape[-1], x.numel()
        y, total = torch.empty_like(x), torch.empty_like(x)
        stats = torch.empty((size // d, _COLUMNS[kind]), dtype=torch.float32)
        _native.forward(
            _CODES[kind], DTYPES[x.dtype], size // d, d, total.data_ptr(), y.data_ptr(), 0, 0,
            stats.data_ptr(), *_parameter(weight), _size(weight), *_parameter(bias),
            *_parameter(alpha), *scalars, _threads(size),
            x.data_ptr(), residual.data_ptr(), 0, 0, *_dropout(seeds, p),
        )  # fmt: skip
        return y, total, stats

    def backward_add(
        self,
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
        scalars: Scalars,
    ) -> tuple[Tensor, Tensor | None, Gradients]:
        d, size = total.shape[-1], total.numel()
        dresidual, dx = torch.empty_like(total), None if seeds is None else torch.empty_like(total)
        dw, db, da = _empty_like(weight), _empty_like(bias), _empty_like(alpha)
        _native.backward(
            _CODES[kind], DTYPES[total.dtype], size // d, d, total.data_ptr(), 0, grad.data_ptr(),
            dresidual.data_ptr(), stats.data_ptr(), *_with_grad(weight, dw), _size(weight),
            *_with_grad(bias, db), *_with_grad(alpha, da), *scalars, _threads(size),
            0, 0, _address(grad_total), _address(dx), *_dropout(seeds, p),
        )  # fmt: skip
        return dresidual, dx, (dw, db, da)


BACKEND = NativeBackend()
