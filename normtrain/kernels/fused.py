"""The fused kernels as torch operations: autograd around a `Backend`.

The autograd function calls the backend directly, which saves a few microseconds. If a
`TorchDispatchMode` is active (recording operations, selective checkpointing), it calls the
registered operations ``normtrain::rows_forward`` and ``normtrain::rows_backward`` instead, which do
the same and have fake kernels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normtrain.kernels import choice
from normtrain.kernels.backend import Backend, Parameters
from normtrain.kernels.formulas import stats_dtype
from normtrain.kernels.gradients import formula_gradients, is_batched
from normtrain.kernels.table import KINDS, ROWS, Scalars

modes_active = torch._C._len_torch_dispatch_stack
"""Return how many dispatch modes are active."""


def apply_formula(kind: str, x: Tensor, parameters: Parameters, scalars: Scalars) -> Tensor:
    """Run the differentiable formula of a kind; arguments as for `Backend.forward`."""
    wide = stats_dtype(x)
    weight, bias, alpha = (None if p is None else p.to(wide) for p in parameters)
    return KINDS[kind].formula(x, weight, bias, alpha, scalars)


class _Registered(Backend):
    """The registered operations."""

    def serves(self, x: Tensor) -> bool:
        raise AssertionError

    def forward(
        self, kind: str, x: Tensor, parameters: Parameters, scalars: Scalars
    ) -> tuple[Tensor, Tensor]:
        return torch.ops.normtrain.rows_forward(KINDS[kind].code, x, *parameters, *scalars)

    def backward(
        self,
        kind: str,
        grad: Tensor,
        x: Tensor,
        parameters: Parameters,
        stats: Tensor,
        scalars: Scalars,
    ) -> tuple[Tensor, Parameters]:
        dx, *grads = torch.ops.normtrain.rows_backward(
            KINDS[kind].code, grad, x, *parameters, stats, *scalars
        )
        found = iter(grads)
        dw, db, da = (None if p is None else next(found) for p in parameters)
        return dx, (dw, db, da)


_REGISTERED = _Registered()


class FusedNormFunction(torch.autograd.Function):
    """A fused norm that saves its input and a few numbers per row."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        alpha: Tensor | None,
        kind: str,
        scalars: Scalars,
        backend: Backend,
    ) -> Tensor:
        """Run the backend's forward; ``x`` is ``(..., d)``, contiguous."""
        y, stats = backend.forward(kind, x, (weight, bias, alpha), scalars)
        ctx.save_for_backward(x, weight, bias, alpha, stats)
        ctx.call = kind, scalars, backend
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Compute gradients by the backend, or by the formula if they are differentiated again."""
        x, weight, bias, alpha, stats = ctx.saved_tensors
        kind, scalars, backend = ctx.call
        dx: Any
        if torch.is_grad_enabled() or type(grad) is not Tensor or is_batched(grad):
            dx, *grads = formula_gradients(
                lambda x, *parameters: apply_formula(kind, x, parameters, scalars),
                (x, weight, bias, alpha),
                ctx.needs_input_grad,
                grad,
            )
            return dx, *grads, None, None, None
        if modes_active():
            backend = _REGISTERED
        if not grad.is_contiguous():
            grad = grad.contiguous()
        dx, grads = backend.backward(kind, grad, x, (weight, bias, alpha), stats, scalars)
        return dx, *grads, None, None, None


# Function.apply without its check for function transforms, which never get here
_apply = super(torch.autograd.Function, FusedNormFunction).apply


def run(backend: Backend, kind: str, x: Tensor, parameters: Parameters, scalars: Scalars) -> Tensor:
    """Compute a norm of ``(..., d)`` by a backend's kernels; differentiable."""
    if not x.is_contiguous():
        x = x.contiguous()
    if modes_active():
        backend = _REGISTERED
    weight, bias, alpha = parameters
    if torch.is_grad_enabled() and (
        x.requires_grad
        or (weight is not None and weight.requires_grad)
        or (bias is not None and bias.requires_grad)
        or (alpha is not None and alpha.requires_grad)
    ):
        return _apply(x, weight, bias, alpha, kind, scalars, backend)
    return backend.output(kind, x, parameters, scalars)


# ---- registered operations

_LIBRARY = torch.library.Library("normtrain", "FRAGMENT")
_INPUTS = "Tensor x, Tensor? weight, Tensor? bias, Tensor? alpha"
_SCALARS = "float eps, int count, float a, float b"
_LIBRARY.define(f"rows_forward(int kind, {_INPUTS}, {_SCALARS}) -> (Tensor, Tensor)")
_LIBRARY.define(
    f"rows_backward(int kind, Tensor grad, {_INPUTS}, Tensor stats, {_SCALARS}) -> Tensor[]"
)


def _backend_name(x: Tensor) -> str:
    return "native" if x.is_cpu and choice.current().requested != "triton" else "triton"


def _backend_of(x: Tensor) -> Backend:
    found = choice.load_backend(_backend_name(x))
    assert not isinstance(found, str), found
    return found


def _forward(code: int, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    weight, bias, alpha, *scalars = rest
    x = x.contiguous()
    parameters = weight, bias, alpha
    return _backend_of(x).forward(ROWS[code].kind, x, parameters, Scalars(*scalars))


def _backward(code: int, grad: Tensor, x: Tensor, *rest: Any) -> list[Tensor]:
    weight, bias, alpha, stats, *scalars = rest
    grad, x = grad.contiguous(), x.contiguous()
    dx, grads = _backend_of(x).backward(
        ROWS[code].kind, grad, x, (weight, bias, alpha), stats, Scalars(*scalars)
    )
    return [dx, *(t for t in grads if t is not None)]


def _fake_forward(code: int, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    shape = x.numel() // x.shape[-1], len(ROWS[code].saved[_backend_name(x)])
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    return y, x.new_empty(shape, dtype=torch.float32)


def _fake_backward(code: int, grad: Tensor, x: Tensor, *rest: Any) -> list[Tensor]:
    parameters = [torch.empty_like(p) for p in rest[:3] if p is not None]
    return [torch.empty_like(x, memory_format=torch.contiguous_format), *parameters]


for _name, _run, _fake in (
    ("rows_forward", _forward, _fake_forward),
    ("rows_backward", _backward, _fake_backward),
):
    for _key in ("CPU", "CUDA"):
        _LIBRARY.impl(_name, _run, _key)
    torch.library.register_fake(f"normtrain::{_name}", _fake, lib=_LIBRARY)
