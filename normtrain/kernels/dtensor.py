"""Norms of distributed tensors (`torch.distributed.tensor.DTensor`), as in tensor parallelism.

Every layout gives the output and gradients of the unsharded tensor, by the usual kernels:

===========================  ======================================================================
features whole on each rank  no communication except one sum of each parameter's gradient if the
(replicated; split along     vectors are split (the layout of
batch or time)               `torch.distributed.tensor.parallel.SequenceParallel`)
features split over ranks    gathered, normalized on every rank, split again, as
(the last axis)              `torch.nn.LayerNorm` does: avoid this layout around norms
pending sums (partial)       reduced first; the output is replicated
===========================  ======================================================================

A parameter may be distributed over the same mesh, or plain, which means the same on every rank; its
gradient is complete on every rank. DTensor's own operations are not used: the gradient of its
``topk`` along a split axis is wrong (torch 2.13).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

_P = ParamSpec("_P")
_T = TypeVar("_T")
_ORDINARY = (Tensor, nn.Parameter)


def supports_dtensor(operation: Callable[_P, _T]) -> Callable[_P, _T]:
    """Make an operation ``(x, *parameters and numbers)`` accept distributed tensors.

    Raises:
        ValueError: the parameters are distributed and the input is not, or over another mesh.
    """

    @functools.wraps(operation)
    def run(*args: _P.args, **options: _P.kwargs) -> _T:
        # only the input's type is checked: unsupported parameters fail by themselves
        if type(args[0]) in _ORDINARY:
            try:
                return operation(*args, **options)
            except RuntimeError as error:
                if not any(map(_is_distributed, args)):
                    raise
                raise _mixed(operation.__name__) from error
        if _is_distributed(args[0]):
            return _run(functools.partial(operation, **options), operation.__name__, *args)
        return operation(*args, **options)

    return run


def _is_distributed(value: object) -> bool:
    if not isinstance(value, Tensor) or type(value) in _ORDINARY:
        return False
    if not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


def _mixed(name: str) -> ValueError:
    return ValueError(
        f"{name}: the norm's parameters are distributed (DTensor) but its input is a plain tensor; "
        f"distribute the input, as torch.distributed.tensor.parallel.SequenceParallel does, or use "
        f"plain parameters"
    )


def _run(operation: Callable[..., Any], name: str, x: Any, *rest: Any) -> Any:
    """Run the operation, whose parameters are all among ``rest``, on a distributed tensor."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    mesh, given, last = x.device_mesh, x.placements, x.ndim - 1
    whole = [Replicate() if p.is_partial() or getattr(p, "dim", None) == last else p for p in given]
    # where ranks have different vectors, the backward of `redistribute` sums their contributions
    # to a parameter's gradient
    grads = [Replicate() if p.is_replicate() else Partial() for p in whole]
    replicas = [Replicate()] * mesh.ndim
    local = [
        _on_mesh(value, x, name).redistribute(placements=replicas).to_local(grad_placements=grads)
        if isinstance(value, Tensor)
        else value
        for value in rest
    ]
    y = operation(x.redistribute(placements=whole).to_local(), *local).contiguous()
    stride = torch.empty(x.shape, device="meta").stride()
    result = DTensor.from_local(y, mesh, whole, run_check=False, shape=x.shape, stride=stride)
    back = [now if p.is_partial() else p for p, now in zip(given, whole, strict=True)]
    return result.redistribute(placements=back)


def _on_mesh(parameter: Tensor, x: Any, name: str) -> Any:
    """Return a parameter as a distributed tensor over the mesh of ``x``."""
    from torch.distributed.tensor import DTensor, Replicate

    if not isinstance(parameter, DTensor):
        replicas = [Replicate()] * x.device_mesh.ndim
        return DTensor.from_local(parameter, x.device_mesh, replicas, run_check=False)
    if parameter.device_mesh != x.device_mesh:
        raise ValueError(
            f"{name}: the norm's parameters are on {parameter.device_mesh} but its input is on "
            f"{x.device_mesh}; distribute both over one mesh"
        )
    return parameter
