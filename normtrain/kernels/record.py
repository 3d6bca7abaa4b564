"""Which operations of torch a call runs, seen where they are dispatched.

That is the only sure way to say what was measured: the same function of torch is another program
by version, dtype and device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_UNTOLD = {"detach", "view", "_unsafe_view", "reshape", "t", "alias", "unsqueeze", "squeeze"}


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = func.name().removeprefix("aten::").split(".")[0]
        if name not in _UNTOLD:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def operations(call: Callable[[], object]) -> list[str]:
    """Names of the operations that a call dispatches, in order, views left out.

    ``native_layer_norm`` is ATen's; those of other libraries have their namespace in front, as in
    ``normtrain::rows_forward``. What `torch.compile` has compiled dispatches little or nothing.
    """
    with _Recorder() as recorder:
        call()
    return recorder.names


def backend(norm: Callable[[Tensor], Tensor], x: Tensor) -> str:
    """What runs a norm on ``(..., d)``: ``native``, ``triton``, ``aten`` or ``plain``.

    Args:
        norm: the norm.
        x: its input; the norm is run on it, and backwards if it requires a gradient.
    """

    def step() -> None:
        y = norm(x)
        if y.requires_grad:
            torch.autograd.grad(y.sum(), x, allow_unused=True)

    names = operations(step)
    if "normtrain::rows_forward" in names:
        return "native" if x.is_cpu else "triton"
    return "aten" if "native_layer_norm_backward" in names else "plain"
