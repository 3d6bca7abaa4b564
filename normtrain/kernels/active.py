"""Which implementation actually runs: the operations that torch dispatches in a call.

A benchmark has to report them, since one function of torch runs different kernels by version, dtype
and device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_VIEWS = {"detach", "view", "_unsafe_view", "reshape", "t", "alias", "unsqueeze", "squeeze"}


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::").split(".")[0]
        if name not in _VIEWS:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def dispatched_operations(call: Callable[[], object]) -> list[str]:
    """Return the names of the operations that a call dispatches, in order, without views.

    ATen's names have no prefix (``native_layer_norm``), others have their namespace
    (``normtrain::rows_forward``). A function compiled by `torch.compile` dispatches few or none.
    """
    with _Recorder() as recorder:
        call()
    return recorder.names


def active_backend(norm: Callable[[Tensor], Tensor], x: Tensor) -> str:
    """Return what runs a norm: ``native``, ``triton``, ``aten`` or ``plain``.

    Args:
        norm: called with ``x``, and differentiated if the output requires a gradient.
        x: input ``(..., d)``.
    """

    def step() -> None:
        y = norm(x)
        if y.requires_grad:
            torch.autograd.grad(y.sum(), x, allow_unused=True)

    names = dispatched_operations(step)
    if "normtrain::rows_forward" in names:
        return "native" if x.is_cpu else "triton"
    return "aten" if "native_layer_norm_backward" in names else "plain"
