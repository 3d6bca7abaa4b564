"""Find the norms of a model, and compute statistics of their calls with hooks."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from normtrain.errors import UserError
from normtrain.kernels.formulas import stats_dtype
from normtrain.norms.base import NormBase
from normtrain.norms.batch import BatchNormBase
from normtrain.norms.registry import registered
from normtrain.swap.module_names import unwrapped_name
from normtrain.swap.readers import read

Numbers = dict[str, float]

_KNOWN = (
    NormBase,
    BatchNormBase,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    _BatchNorm,
    _InstanceNorm,
)
# Not "NormalHead", but "Normalize".
_NAMED = re.compile(r"norm(?!al(?!i[sz]))", re.IGNORECASE)
_GAINS = ("weight", "gamma", "gain", "scale", "g")


@dataclass(frozen=True)
class Layer:
    """A norm of a model.

    Attributes:
        name: its module name, without the parts that wrappers add.
        module: the norm.
        compiled: whether it is in a module that runs through ``torch.compile``.
        offset: what is added to the stored weight to get the gain (1.0 for Gemma's ``1 + w``).
        channels_first: whether the normalized axis is axis 1.
    """

    name: str
    module: nn.Module
    compiled: bool = False
    offset: float = 0.0
    channels_first: bool = False


def norm_layers(model: nn.Module) -> list[Layer]:
    """List the norms of a model: this package's, PyTorch's, and modules of a class named norm.

    A module of such a class is not listed if it contains a norm or a matrix, or parametrizes a
    weight. A norm used at several places is one layer, with its first name.
    """
    modules = dict(model.named_modules())
    norms = [name for name, module in modules.items() if _is_norm(name, module)]
    holders = {parent for name in norms for parent in _parents(name)}
    compiled = {name for name, module in modules.items() if _is_compiled(module)}
    layers, known = [], dict[type, tuple[float, bool]]()
    for name in norms:
        module = modules[name]
        if name in holders and not isinstance(module, _KNOWN):
            continue
        if type(module) not in known:
            known[type(module)] = _offset_and_axis(module)
        inside = not compiled.isdisjoint([name, *_parents(name)])
        layers.append(Layer(unwrapped_name(name), module, inside, *known[type(module)]))
    return layers


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts)) if name]


def _is_compiled(module: nn.Module) -> bool:
    wrapped = getattr(module, "_orig_mod", None) is not None
    return wrapped or getattr(module, "_compiled_call_impl", None) is not None


def _is_norm(name: str, module: nn.Module) -> bool:
    if isinstance(module, _KNOWN):
        return True
    bases = type(module).__mro__
    if any(entry.factory in bases for entry in registered()):
        return True
    if (
        "parametrizations" in name.split(".")
        or _is_compiled(module)
        and hasattr(module, "_orig_mod")
    ):
        return False
    matrix = any(sum(side > 1 for side in p.shape) > 1 for p in module.parameters(recurse=False))
    named = bases[: bases.index(nn.Module)]
    return not matrix and any(_NAMED.search(base.__name__) for base in named)


def _offset_and_axis(module: nn.Module) -> tuple[float, bool]:
    try:
        facts = read(module)
    except UserError:  # it cannot be replaced, but it can be measured
        facts = None
    return (0.0, False) if facts is None else (facts.offset, facts.channels_first)


@dataclass
class _Use:
    """One call of a norm: its layer's name, its input's size, and the numbers to fetch."""

    layer: str
    size: int
    numbers: dict[str, Tensor]


class Watch:
    """Measures norms until it is closed, without changing what the model computes.

    Nothing waits for the device until `numbers`, which fetches everything at once.

    Args:
        layers: the norms.
        near_zero: rows with a variance below this count as near zero.
        abandoned: returns whether the step was interrupted; the next call then closes the watch.
    """

    def __init__(
        self, layers: list[Layer], near_zero: float, abandoned: Callable[[], bool]
    ) -> None:
        self.layers, self.near_zero, self.abandoned = layers, near_zero, abandoned
        self.uses: list[_Use] = []
        self.handles: list[Any] = []
        for layer in layers:
            hook = _Hook(self, layer)
            handle = layer.module.register_forward_hook(hook, with_kwargs=True)
            self.handles.append(handle)

    def close(self) -> None:
        """Remove every hook."""
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def see(self, layer: Layer, inputs: list[Any], output: Any) -> None:
        """Compute the statistics of one call, if it has one input of the output's shape."""
        tensors = [_local(value) for value in inputs if isinstance(value, Tensor)]
        y = _local(output) if isinstance(output, Tensor) else None
        if len(tensors) != 1 or y is None or not _plain(tensors[0]) or tensors[0].shape != y.shape:
            return
        with torch.no_grad():
            numbers = _input_numbers(layer, tensors[0].detach(), self.near_zero)
            numbers["output_rms"] = _norm(y.detach()) / math.sqrt(y.numel())
            numbers |= _gain_numbers(layer)
        use = _Use(layer.name, y.numel(), numbers)
        self.uses.append(use)
        # A norm that returns its input has no gradient of its own.
        if output.requires_grad and all(output is not value for value in inputs):

            def take(gradient: Tensor) -> None:
                if _plain(_local(gradient)):
                    with torch.no_grad():
                        use.numbers["gradient_norm"] = _norm(_local(gradient))

            self.handles.append(output.register_hook(take))

    def numbers(self, loss_scale: Tensor | None = None) -> dict[str, Numbers]:
        """Return the numbers by layer and name, gradients divided by the loss's factor."""
        flat = [tensor for use in self.uses for tensor in use.numbers.values()]
        values = _fetch([*flat, *([] if loss_scale is None else [loss_scale])])
        scale = 1.0 if loss_scale is None else values.pop()
        every, left = dict[str, list[tuple[int, Numbers]]](), iter(values)
        for use in self.uses:
            found = {name: next(left) for name in use.numbers}
            if "gradient_norm" in found:
                found["gradient_norm"] /= scale
            every.setdefault(use.layer, []).append((use.size, found))
        return {layer: _together(uses) for layer, uses in every.items()}


class _Hook:
    """A forward hook that does nothing in copies and pickles of the model."""

    def __init__(self, watch: Watch, layer: Layer) -> None:
        self.watch, self.layer = watch, layer

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        # Traced by a compiler, the hook must not break the graph.
        if torch.compiler.is_compiling():
            return
        if self.watch.abandoned():
            self.watch.close()
            return
        self.watch.see(self.layer, [*args, *kwargs.values()], output)

    def __reduce__(self) -> tuple[Callable, tuple]:
        return _copied, ()


def _copied() -> Callable:
    return _do_nothing


def _do_nothing(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
    """Do nothing: the hook in a copy of the model."""


def _local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a sharded tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _plain(x: Tensor) -> bool:
    """Return whether the values of a tensor can be read."""
    return (
        x.is_floating_point()
        and x.numel() > 0
        and x.dim() > 0
        and not (x.is_meta or x.is_nested or x.is_sparse)
        and not torch._C._are_functorch_transforms_active()
    )


def _scaled(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``x`` divided by its largest magnitude, so that squares stay in range, and that."""
    wide = x.to(stats_dtype(x))
    size = torch.linalg.vector_norm(wide, ord=math.inf).clamp(min=torch.finfo(wide.dtype).tiny)
    return wide / size, size


def _norm(x: Tensor) -> Tensor:
    """Return the Euclidean norm of all values."""
    wide, size = _scaled(x)
    return torch.linalg.vector_norm(wide) * size


def _input_numbers(layer: Layer, x: Tensor, near_zero: float) -> dict[str, Tensor]:
    wide, size = _scaled(x)
    variance, mean = torch.var_mean(_rows(layer, wide), dim=-1, correction=0)
    between, centre = torch.var_mean(mean, correction=0)
    total = variance.mean() + between
    return {
        "input_mean": centre * size,
        "input_rms": (total + centre.square()).sqrt() * size,
        "input_std": total.sqrt() * size,
        "near_zero_rows": (variance.sqrt() * size < math.sqrt(near_zero)).to(wide.dtype).mean(),
    }


def _rows(layer: Layer, x: Tensor) -> Tensor:
    """Return the values as ``(rows, size)``; a row is normalized together."""
    module, name = layer.module, type(layer.module).__name__
    if isinstance(module, _BatchNorm | BatchNormBase) or ("BatchNorm" in name and x.dim() > 1):
        return x.transpose(0, 1).flatten(1)
    if isinstance(module, _InstanceNorm):
        spatial = {"1": 1, "2": 2, "3": 3}.get(name[-2:-1], x.dim() - 2)
        return x.flatten(-spatial).flatten(0, -2)
    if isinstance(module, nn.GroupNorm):
        return x.reshape(x.shape[0] * module.num_groups, -1)
    if layer.channels_first or (name.endswith("2d") and x.dim() == 4):
        return x.movedim(1, -1).flatten(0, -2)
    shape = getattr(module, "normalized_shape", None)
    axes = len(shape) if isinstance(shape, tuple | list) else 1
    return x.reshape(-1, math.prod(x.shape[-axes:]))


def _gain_numbers(layer: Layer) -> dict[str, Tensor]:
    for name in _GAINS:
        gain = getattr(layer.module, name, None)
        if isinstance(gain, Tensor) and _plain(_local(gain)):
            break
    else:
        return {}
    gain = _local(gain).detach()
    gain = gain.to(stats_dtype(gain)) + layer.offset
    low, high = gain.aminmax()
    spread, centre = torch.std_mean(gain, correction=0)
    return {"gain_mean": centre, "gain_min": low, "gain_max": high, "gain_std": spread}


def _fetch(tensors: list[Tensor]) -> list[float]:
    """Return the values of 0-d tensors, with one transfer from each device."""
    places: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for index, tensor in enumerate(tensors):
        places.setdefault((tensor.device, tensor.dtype), []).append(index)
    values = [math.nan] * len(tensors)
    for indices in places.values():
        fetched = torch.stack([tensors[index] for index in indices]).tolist()
        for index, value in zip(indices, fetched, strict=True):
            values[index] = value
    return values


def _together(uses: list[tuple[int, Numbers]]) -> Numbers:
    """Combine the numbers of all calls of one norm in a step, as if they had been one."""
    if len(uses) == 1:
        return uses[0][1]
    whole = sum(size for size, _ in uses)
    shares = [math.sqrt(size / whole) for size, _ in uses]

    def root(name: str) -> list[float]:
        return [share * numbers[name] for share, (_, numbers) in zip(shares, uses, strict=True)]

    found = dict(uses[-1][1])  # the gain is the same in all of them
    for name in ("input_mean", "near_zero_rows"):
        found[name] = math.fsum(size / whole * numbers[name] for size, numbers in uses)
    between = [
        share * (numbers["input_mean"] - found["input_mean"])
        for share, (_, numbers) in zip(shares, uses, strict=True)
    ]
    found["input_std"] = math.hypot(*root("input_std"), *between)
    for name in ("input_rms", "output_rms"):
        found[name] = math.hypot(*root(name))
    gradients = [n["gradient_norm"] for _, n in uses if "gradient_norm" in n]
    if gradients:
        found["gradient_norm"] = math.hypot(*gradients)
    return found
