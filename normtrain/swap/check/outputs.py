"""Compare the outputs of models up to rounding."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

# Relative differences of the same computation by another kernel, by output dtype.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_HALF_TOLERANCE = 3e-2


def float_tensors(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield every float tensor of an output, also in containers and dataclasses, by its path."""
    inner: list[tuple[Any, Any]] = []
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield path or "the output", value
    elif isinstance(value, Mapping):
        inner = list(value.items())
    elif isinstance(value, tuple | list):
        inner = list(enumerate(value))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        inner = [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
    for key, each in inner:
        yield from float_tensors(each, f"{path}.{key}" if path else str(key))


def outputs_of(value: Any) -> dict[str, Tensor]:
    """Return copies of an output's float tensors, dense and without gradients."""
    found = {path: tensor.detach() for path, tensor in float_tensors(value)}
    return {
        path: t.to_padded_tensor(0.0) if t.is_nested else t.to_dense() if t.is_sparse else t.clone()
        for path, t in found.items()
    }


def relative_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the largest ‖found − expected‖/‖expected‖; NaN equals NaN.

    It is infinite if the paths, the shapes or the positions of NaN or Inf differ.
    """
    if found.keys() != expected.keys():
        return math.inf
    return max((_distance(found[path], expected[path]) for path in expected), default=0.0)


def _distance(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return math.inf
    a, b = found.to("cpu", torch.float64), expected.to("cpu", torch.float64)
    error = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, a - b).norm().item()
    size = torch.where(b.isfinite(), b, 0.0).norm().item()
    # An output of rounding errors only is compared with the size of 1e-3.
    ratio = error / max(size, 1e-3 * math.sqrt(b.numel())) if error else 0.0
    return math.inf if math.isnan(ratio) else ratio


def agree(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    """Return whether outputs are equal up to rounding."""
    dtypes = {tensor.dtype for tensor in expected.values()}
    allowed = max((_TOLERANCE.get(dtype, _HALF_TOLERANCE) for dtype in dtypes), default=0.0)
    return relative_difference(found, expected) <= allowed
