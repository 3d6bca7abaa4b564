"""The fused kernels as operations of torch: autograd around a backend that follows `rows`.

The function of autograd calls the backend itself; where someone watches the calls (a
`TorchDispatchMode`, such as a recorder of op names or selective checkpointing) it calls the
registered operations ``normtrain::rows_forward`` and ``normtrain::rows_backward``, which do the
same and have fake kernels. The direct call costs a few microseconds less.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from normtrain.kernels import choice, formulas, native
from normtrain.kernels.rows import DETACH, KINDS, Numbers

_Optional = Tensor | None


def plain(
    kind: str, x: Tensor, weight: _Optional, bias: _Optional, alpha: _Optional, numbers: Numbers
) -> Tensor:
    """The differentiable formula of a kind; arguments as in `normtrain.kernels.rows`."""
    wide = formulas.stats_dtype(x)
    weight, bias = (None if p is None else p.to(wide) for p in (weight, bias))
    eps = numbers.eps
    match kind:
        case "layer":
            return formulas.plain_layer_norm(x, weight, bias, eps)
        case "detach":
            return formulas.plain_detach_norm(x, eps, "inside", DETACH[numbers.count])
        case "rms":
            return formulas.plain_rms_norm(x, weight, bias, eps, numbers.count)
        case "ada":
            return formulas.plain_ada_norm(x, eps, numbers.a, numbers.b)
        case "crms":
            return formulas.plain_crms_norm(x, weight, bias, eps)
        case "l2":
            return formulas.plain_l2_norm(x, weight, eps)
        case "l1":
            return formulas.plain_lp_norm(x, weight, bias, eps, numbers.a)
    assert alpha is not None
    return formulas.plain_squash(x, alpha.to(wide), None, weight, bias, "tanh")


class _Watched:
    """The registered operations as a backend."""

    @staticmethod
    def forward(kind: str, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        *parameters, numbers = rest
        return torch.ops.normtrain.rows_forward(KINDS.index(kind), x, *parameters, *numbers)

    @staticmethod
    def backward(kind: str, grad: Tensor, x: Tensor, *rest: Any) -> tuple[_Optional, ...]:
        *parameters, stats, numbers = rest
        dx, *grads = torch.ops.normtrain.rows_backward(
            KINDS.index(kind), grad, x, *parameters, stats, *numbers
        )
        found = iter(grads)
        return dx, *(None if p is None else next(found) for p in parameters)


class _Flat:
    """A backend that wants its rows as ``(rows, d)``."""

    def __init__(self, backend: ModuleType) -> None:
        self.backend = backend

    def forward(self, kind: str, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        y, stats = self.backend.forward(kind, x.view(-1, x.shape[-1]), *rest)
        return y.view(x.shape), stats

    def columns(self, kind: str) -> int:
        return self.backend.columns(kind)

    def backward(self, kind: str, grad: Tensor, x: Tensor, *rest: Any) -> tuple[_Optional, ...]:
        d = x.shape[-1]
        dx, *grads = self.backend.backward(kind, grad.view(-1, d), x.view(-1, d), *rest)
        return dx.view(x.shape), *grads


def _backend_of(x: Tensor) -> Any:
    """What runs the registered operations on the device of ``x``."""
    if x.is_cpu and choice.current().wanted != "triton":
        return native
    return _Flat(importlib.import_module("normtrain.kernels.triton"))


# how many modes watch the calls
watched = torch._C._len_torch_dispatch_stack


_legacy_batched = torch._C._functorch.is_legacy_batchedtensor
_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


def _batched(grad: Tensor) -> bool:
    """Whether many gradients are pulled back at once, as `torch.autograd.functional` can."""
    return _legacy_batched(grad) or _wrapped(grad)


class RowsFunction(torch.autograd.Function):
    """A fused norm that keeps its input and a few numbers a row for the backward."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: _Optional,
        bias: _Optional,
        alpha: _Optional,
        kind: str,
        numbers: Numbers,
        backend: Any,
    ) -> Tensor:
        """Run the backend's forward; ``x`` is ``(..., d)``, contiguous."""
        y, stats = backend.forward(kind, x, weight, bias, alpha, numbers)
        ctx.save_for_backward(x, weight, bias, alpha, stats)
        ctx.call = kind, numbers, backend
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Gradients by the backend, or by the formula where they are differentiated again."""
        x, weight, bias, alpha, stats = ctx.saved_tensors
        kind, numbers, backend = ctx.call
        if torch.is_grad_enabled() or type(grad) is not Tensor or _batched(grad):
            found = _by_formula(ctx.needs_input_grad, grad, (x, weight, bias, alpha), kind, numbers)
        else:
            if watched():
                backend = _Watched
            if not grad.is_contiguous():
                grad = grad.contiguous()
            found = backend.backward(kind, grad, x, weight, bias, alpha, stats, numbers)
        return *found, None, None, None


# Function.apply without its look for function transforms, which never come here
_apply = super(torch.autograd.Function, RowsFunction).apply


def _by_formula(
    needs: tuple[bool, ...],
    grad: Tensor,
    saved: tuple[Tensor, _Optional, _Optional, _Optional],
    kind: str,
    numbers: Numbers,
) -> list[_Optional]:
    """Gradients of the plain formula, which can be differentiated once more."""
    graph = torch.is_grad_enabled()
    with torch.enable_grad(), formulas.without_autocast(saved[0]):
        # Views end the way back here: a weight may itself have been made from x.
        inputs = [None if t is None else t.view_as(t) for t in saved]
        x, weight, bias, alpha = inputs
        assert x is not None
        y = plain(kind, x, weight, bias, alpha, numbers)
        wanted = [t for t, need in zip(inputs, needs, strict=False) if need and t is not None]
        found = iter(torch.autograd.grad(y, wanted, grad, create_graph=graph))
    return [
        next(found) if need and t is not None else None
        for t, need in zip(inputs, needs, strict=False)
    ]


def run(
    backend: Any,
    kind: str,
    x: Tensor,
    weight: _Optional,
    bias: _Optional,
    alpha: _Optional,
    numbers: Numbers,
) -> Tensor:
    """The norm of ``(..., d)`` by a backend's kernels, differentiable."""
    if not x.is_contiguous():
        x = x.contiguous()
    if watched():
        backend = _Watched
    elif backend is not native:
        backend = _Flat(backend)
    if torch.is_grad_enabled() and (
        x.requires_grad
        or (weight is not None and weight.requires_grad)
        or (bias is not None and bias.requires_grad)
        or (alpha is not None and alpha.requires_grad)
    ):
        return _apply(x, weight, bias, alpha, kind, numbers, backend)
    if backend is native:
        return native.result(kind, x, weight, bias, alpha, numbers)
    return backend.forward(kind, x, weight, bias, alpha, numbers)[0]


# ---- registered operations

_LIBRARY = torch.library.Library("normtrain", "FRAGMENT")
_INPUTS = "Tensor x, Tensor? weight, Tensor? bias, Tensor? alpha"
_NUMBERS = "float eps, int count, float a, float b"
_LIBRARY.define(f"rows_forward(int kind, {_INPUTS}, {_NUMBERS}) -> (Tensor, Tensor)")
_LIBRARY.define(
    f"rows_backward(int kind, Tensor grad, {_INPUTS}, Tensor stats, {_NUMBERS}) -> Tensor[]"
)


def _forward(kind: int, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    weight, bias, alpha, *numbers = rest
    x = x.contiguous()
    return _backend_of(x).forward(KINDS[kind], x, weight, bias, alpha, Numbers(*numbers))


def _backward(kind: int, grad: Tensor, x: Tensor, *rest: Any) -> list[Tensor]:
    weight, bias, alpha, stats, *numbers = rest
    grad, x = grad.contiguous(), x.contiguous()
    parameters = weight, bias, alpha
    found = _backend_of(x).backward(KINDS[kind], grad, x, *parameters, stats, Numbers(*numbers))
    return [t for t in found if t is not None]


def _fake_forward(kind: int, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    rows = x.numel() // x.shape[-1]
    columns = _backend_of(x).columns(KINDS[kind])
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    return y, x.new_empty((rows, columns), dtype=torch.float32)


def _fake_backward(kind: int, grad: Tensor, x: Tensor, *rest: Any) -> list[Tensor]:
    parameters = [torch.empty_like(p) for p in rest[:3] if p is not None]
    return [torch.empty_like(x, memory_format=torch.contiguous_format), *parameters]


for _name, _run, _fake in (
    ("rows_forward", _forward, _fake_forward),
    ("rows_backward", _backward, _fake_backward),
):
    for _key in ("CPU", "CUDA"):
        _LIBRARY.impl(_name, _run, _key)
    torch.library.register_fake(f"normtrain::{_name}", _fake, lib=_LIBRARY)
