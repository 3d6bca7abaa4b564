"""Looking at what a model gives: repeatably, without a trace, compared up to rounding."""

from __future__ import annotations

import dataclasses
import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Outputs = dict[str, Tensor]
"""The floating tensors of an output, detached, by where they are in it."""

# Other kernels for the same thing agree to these, relative to the size of the output.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_COARSE = 3e-2


@contextmanager
def generators_kept() -> Iterator[None]:
    """Put the global random generators of Python, numpy and torch back at the end."""
    python, numbers, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


def seed_all(seed: int) -> None:
    """Seed what a model may draw from: Python's, numpy's and torch's global generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def device_of(model: nn.Module) -> torch.device:
    """Where its first parameter is, or else its first buffer; meta if any of them is there."""
    tensors = [*model.parameters(), *model.buffers()]
    meta = [tensor for tensor in tensors if tensor.is_meta]
    return next((tensor.device for tensor in [*meta, *tensors]), torch.device("cpu"))


def floats(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every floating tensor of an output, in tuples, lists, dicts and dataclasses too."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield path or "the output", value
        return
    inner: list[tuple[Any, Any]] = []
    if isinstance(value, Mapping):
        inner = list(value.items())
    elif isinstance(value, tuple | list):
        inner = list(enumerate(value))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        inner = [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
    for key, each in inner:
        yield from floats(each, f"{path}.{key}" if path else str(key))


def kept(output: Any) -> Outputs:
    """An output's floating tensors, apart from the graph and from what is written later."""
    return {path: _plain(tensor.detach()) for path, tensor in floats(output)}


def _plain(tensor: Tensor) -> Tensor:
    if tensor.is_nested:
        return tensor.to_padded_tensor(0.0)
    return tensor.clone() if tensor.layout == torch.strided else tensor.to_dense()


def relative_difference(found: Outputs, wanted: Outputs) -> tuple[float, str]:
    """The largest ‖found − wanted‖/‖wanted‖ of the tensors, and where it is.

    It is 0 for equal numbers (NaN equals NaN here) and infinite where tensors are missing, have
    another shape, or differ in what is not finite.
    """
    if found.keys() != wanted.keys():
        return math.inf, ", ".join(sorted(found.keys() ^ wanted.keys()))
    worst, where = 0.0, ""
    for path in wanted:
        if found[path].shape != wanted[path].shape:
            return math.inf, path
        error, size = _distance(found[path], wanted[path])
        ratio = 0.0 if error == 0 else error / size if size else math.inf
        worst, where = (ratio, path) if not ratio <= worst else (worst, where)
    return worst, where


def _distance(found: Tensor, wanted: Tensor) -> tuple[float, float]:
    """The norms of the difference and of what is wanted, over what is not equal as it stands."""
    a, b = found.to("cpu", torch.float64), wanted.to("cpu", torch.float64)
    same = (a == b) | (a.isnan() & b.isnan())
    error = torch.where(same, 0.0, a - b).norm().item()
    size = torch.where(b.isfinite(), b, 0.0).norm().item()
    return math.inf if math.isnan(error) else error, size


def tolerance(model: nn.Module, outputs: Outputs) -> float:
    """How far apart two computations of the same thing may be: the coarsest dtype decides."""
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    dtypes |= {tensor.dtype for tensor in outputs.values()}
    return max((_TOLERANCE.get(dtype, _COARSE) for dtype in dtypes), default=0.0)


def agree(found: Outputs, wanted: Outputs, allowed: float) -> bool:
    """Whether outputs are equal up to rounding: relatively, or absolutely where they cancel out."""
    ratio, _ = relative_difference(found, wanted)
    if ratio <= allowed:
        return True
    return math.isfinite(ratio) and all(
        _distance(found[path], wanted[path])[0]
        <= max(
            allowed * _distance(found[path], wanted[path])[1],
            4 * torch.finfo(wanted[path].dtype).eps * math.sqrt(wanted[path].numel()),
        )
        for path in wanted
    )


def not_finite(outputs: Outputs) -> list[str]:
    """Where outputs hold a number that is not finite."""
    return [path for path, tensor in outputs.items() if not bool(tensor.isfinite().all())]


def without_dropout(model: nn.Module) -> nn.Module:
    """Set every rate of dropping that the model's modules or their ``config`` hold to 0, in place.

    Found by name: a float from 0 to 1 whose name has "drop" in it, and the p of torch's dropouts.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for holder in (module, getattr(module, "config", None)):
            for name, value in list(getattr(holder, "__dict__", {}).items()):
                if "drop" in name.lower() and isinstance(value, float) and 0 <= value <= 1:
                    setattr(holder, name, 0.0)
    return model


@contextmanager
def calls_counted(norms: Mapping[str, nn.Module]) -> Iterator[Counter[str]]:
    """Count how often each module's forward runs.

    Their hooks are left alone: with any, torch would not take the fast path that is looked for.
    """
    counts: Counter[str] = Counter()

    def counting(name: str, forward: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return forward(*args, **kwargs)

        return counted

    plain = {name: norm for name, norm in norms.items() if "forward" not in vars(norm)}
    for name, norm in plain.items():
        vars(norm)["forward"] = counting(name, norm.forward)
    try:
        yield counts
    finally:
        for norm in plain.values():
            del vars(norm)["forward"]
