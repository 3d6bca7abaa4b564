"""Norms of distributed tensors (`torch.distributed.tensor.DTensor`), as in tensor parallelism.

Every layout gives the result and the gradients of the whole tensor, by the usual kernels:

===========================  ======================================================================
rows whole on each rank      no communication but one sum of each parameter's gradient, if rows are
(replicated; split along     split (the layout of
batch or time)               `torch.distributed.tensor.parallel.SequenceParallel`)
rows split over ranks        gathered, normalised on every rank, split again, as
(the last axis)              `torch.nn.LayerNorm` does it: a layout to avoid around norms
pending sums (partial)       the sum first; the result is replicated
===========================  ======================================================================

A parameter may be distributed over the same mesh, or plain, which means that every rank has the
same; its gradient is the whole one on every rank. DTensor's own operations are not relied on: the
gradient of its ``topk`` along a split axis is wrong (torch 2.13).
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


def on_shards(operation: Callable[_P, _T]) -> Callable[_P, _T]:
    """Make an operation of rows ``(x, *parameters and numbers)`` take distributed tensors too.

    Raises:
        ValueError: its parameters are distributed and its input is not, or over another mesh.
    """

    @functools.wraps(operation)
    def run(*args: _P.args, **options: _P.kwargs) -> _T:
        # Looks at nothing but the input's type: a parameter that does not fit fails by itself.
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
        f"{name}: the norm's parameters are distributed (DTensor) and its input is a plain tensor, "
        f"so nothing says whether that is all rows or this rank's; distribute the input, as "
        f"torch.distributed.tensor.parallel.SequenceParallel does, or keep the parameters plain"
    )


def _run(operation: Callable[..., Any], name: str, x: Any, *rest: Any) -> Any:
    """The operation, whose parameters are all among ``rest``, on a distributed tensor."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    mesh, given, last = x.device_mesh, x.placements, x.ndim - 1
    places = [
        Replicate() if place.is_partial() or getattr(place, "dim", None) == last else place
        for place in given
    ]
    # Where ranks have rows of their own, each adds to a parameter's gradient; the way back through
    # `redistribute` sums that.
    added = [Replicate() if place.is_replicate() else Partial() for place in places]
    replicas = [Replicate()] * mesh.ndim
    local = [
        _beside(value, x, name).redistribute(placements=replicas).to_local(grad_placements=added)
        if isinstance(value, Tensor)
        else value
        for value in rest
    ]
    y = operation(x.redistribute(placements=places).to_local(), *local).contiguous()
    stride = torch.empty(x.shape, device="meta").stride()
    whole = DTensor.from_local(y, mesh, places, run_check=False, shape=x.shape, stride=stride)
    back = [now if place.is_partial() else place for place, now in zip(given, places, strict=True)]
    return whole.redistribute(placements=back)


def _beside(parameter: Tensor, x: Any, name: str) -> Any:
    """A parameter as a distributed tensor over the mesh of ``x``."""
    from torch.distributed.tensor import DTensor, Replicate

    if not isinstance(parameter, DTensor):
        replicas = [Replicate()] * x.device_mesh.ndim
        return DTensor.from_local(parameter, x.device_mesh, replicas, run_check=False)
    if parameter.device_mesh != x.device_mesh:
        raise ValueError(
            f"{name}: the norm's parameters are distributed over {parameter.device_mesh} and its "
            f"input over {x.device_mesh}; distribute both over one mesh"
        )
    return parameter
