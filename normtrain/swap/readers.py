"""Readers: functions that tell what a norm of a known class computes.

A reader is found by the name and module of a class or of its bases, so that no other package is
imported.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from normtrain.errors import UserError
from normtrain.norms.batch import BatchNormBase
from normtrain.norms.registry import registered
from normtrain.swap.detection import detect_norm
from normtrain.swap.facts import NormFacts

Reader = Callable[[Any], NormFacts | None]
_R = TypeVar("_R", bound=Reader)

_readers: list[tuple[str, str, Reader]] = []


def register_reader(*class_paths: str) -> Callable[[_R], _R]:
    """Register a reader, so that `swap_norms` can replace norms of other packages' classes.

    The decorated function takes a module and returns its `NormFacts`, or None if it is not a norm.
    If it raises UserError, the module is skipped with the message as the reason. `detect_norm` is
    a reader for any class that computes a plain LayerNorm or RMSNorm.

    Args:
        class_paths: each ``"package.module.Class"``. The module may be cut short to any prefix,
            and the class's name may hold ``*``: ``"transformers.models.*RMSNorm"``. Subclasses are
            found too; among several matches the most derived class wins, then the last registered.

    Returns:
        A decorator that returns the function unchanged.

    Raises:
        UserError: there is no path, or a path has no module.
    """
    for path in class_paths:
        if not isinstance(path, str) or not all(path.rpartition(".")[::2]):
            raise UserError(
                f"a reader's class must be given as 'package.module.Class', got {path!r}"
            )
    if not class_paths:
        raise UserError("a reader needs at least one class, as 'package.module.Class'")

    def decorate(reader: _R) -> _R:
        for path in class_paths:
            prefix, _, name = path.rpartition(".")
            _readers.append((prefix, name, reader))
        return reader

    return decorate


def reader_for(module: nn.Module) -> Reader | None:
    """Return the reader of a module's class or of its nearest base that has one, or None."""
    for base in type(module).__mro__:
        if any(entry.factory is base for entry in registered()):
            return read_own
        for prefix, name, reader in reversed(_readers):
            inside = base.__module__ == prefix or base.__module__.startswith(f"{prefix}.")
            if inside and fnmatchcase(base.__name__, name):
                return reader
    return None


def read(module: nn.Module) -> NormFacts | None:
    """Return what a norm computes; None if its class has no reader or the reader returns None.

    Raises:
        UserError: it is a norm that cannot be replaced; the message says why.
    """
    reader = reader_for(module)
    facts = None if reader is None else reader(module)
    if facts is not None and not isinstance(facts, NormFacts):
        raise UserError(
            f"the reader of {type(module).__name__} must return NormFacts or None, got {facts!r}"
        )
    return facts


def looks_like_norm(module: nn.Module) -> bool:
    """Return whether a module is a leaf whose class has "norm" in its name."""
    cls = type(module)
    # not Normalize, NormalNoise and the like; torch.nn.utils has norms of weights
    named = re.search("[Nn]orm(?!al)", cls.__name__) is not None
    named = named and not cls.__module__.startswith("torch.nn.utils.")
    return named and not any(True for _ in module.children())


# A replacement of a norm of axis 1 gets these two hooks, so that parameter names stay as they are.


def axis_to_last(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Permute the input from ``(n, dim, *)`` to ``(n, *, dim)``; a forward pre-hook."""
    return (args[0].movedim(1, -1), *args[1:])


def axis_from_last(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """Permute the output from ``(n, *, dim)`` to ``(n, dim, *)``; a forward hook."""
    return output.movedim(-1, 1)


def read_own(module: nn.Module) -> NormFacts | None:
    """Read a norm that is registered with this package."""
    dim = getattr(module, "dim", None)
    if not isinstance(dim, int):
        raise UserError("it is registered as a norm but has no attribute dim")
    return NormFacts(
        dim,
        getattr(module, "eps", None),
        getattr(module, "weight", None),
        getattr(module, "bias", None),
        kind="own",
        channels_first=axis_to_last in module._forward_pre_hooks.values(),
    )


def normalized_dim(module: Any) -> int:
    """Return the size of the one axis in a module's ``normalized_shape``.

    Raises:
        UserError: it has several axes.
    """
    shape = module.normalized_shape
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    if len(shape) != 1:
        raise UserError(f"it normalizes {len(shape)} axes at once, {shape}; only one is supported")
    return int(shape[0])


@register_reader("torch.nn.LayerNorm")
def _read_torch_layer(module: nn.LayerNorm) -> NormFacts | None:
    if type(module).forward is not nn.LayerNorm.forward:
        return detect_norm(module)
    return NormFacts(normalized_dim(module), module.eps, module.weight, module.bias)


@register_reader("torch.nn.RMSNorm")
def _read_torch_rms(module: nn.RMSNorm) -> NormFacts | None:
    if type(module).forward is not nn.RMSNorm.forward:
        return detect_norm(module)
    eps, note = module.eps, ""
    if eps is None:
        dtype = torch.float32 if module.weight is None else module.weight.dtype
        eps = torch.finfo(dtype).eps
        note = f"eps=None read as {eps:.3g}, that of {dtype}".replace("torch.", "")
    return NormFacts(normalized_dim(module), eps, module.weight, None, kind="rms", note=note)


@register_reader("torch.nn.modules.batchnorm._BatchNorm", f"{BatchNormBase.__module__}.*BatchNorm*")
def _read_batch(module: _BatchNorm | BatchNormBase) -> NormFacts | None:
    weight, bias = module.weight, module.bias
    return NormFacts(module.num_features, module.eps, weight, bias, kind="batch")
