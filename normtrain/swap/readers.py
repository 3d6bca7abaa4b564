"""What a norm of any class computes, read by a reader per class; third parties add theirs.

A reader is found by the class's name and module along its bases: no foreign package is imported.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from normtrain.errors import UserError
from normtrain.norms.batch import BatchNormBase
from normtrain.norms.registry import registered

KINDS = ("layer", "rms", "batch", "own")
CASTS = ("input", "float32-then-weight", "own")


@dataclass(frozen=True)
class NormFacts:
    """What a norm computes, as far as a successor needs to know.

    Attributes:
        dim: size of the normalised axis.
        eps: what keeps a row of zeros finite; None where there is no such number.
        weight: the gain, or None.
        bias: what is added, or None.
        offset: what the stored weight lacks to be the gain: 1.0 for Gemma's ``1 + w``.
        kind: ``"layer"`` (centred), ``"rms"``, ``"batch"``, or ``"own"`` for this package's.
        channels_first: whether the normalised axis is axis 1 (NCHW) and not the last.
        cast: when half precision is rounded: ``"input"`` before the gain, so that the output has
            the wider dtype of the two; ``"float32-then-weight"`` after it; ``"own"`` as PyTorch's
            kernels and this package do, to the input's dtype.
        note: what the person should know of the reading.

    Raises:
        UserError: a field is out of range.
    """

    dim: int
    eps: float | None
    weight: nn.Parameter | None
    bias: nn.Parameter | None
    offset: float = 0.0
    kind: str = "layer"
    channels_first: bool = False
    cast: str = "own"
    note: str = ""

    def __post_init__(self) -> None:
        """Check what a third party's reader may get wrong."""
        for name, value, known in (("kind", self.kind, KINDS), ("cast", self.cast, CASTS)):
            if value not in known:
                raise UserError(f"a reader's {name} is one of {', '.join(known)}, not {value!r}")
        if self.offset not in (0.0, 1.0):
            raise UserError(f"a reader's offset is 0.0 or 1.0, not {self.offset!r}")


Reader = Callable[[Any], NormFacts | None]
_R = TypeVar("_R", bound=Reader)

_readers: list[tuple[str, str, Reader]] = []


def register_reader(*class_paths: str) -> Callable[[_R], _R]:
    """Make norms of foreign classes known to `swap_norms`.

    The decorated function takes a module and returns its `NormFacts`, or None if it is no norm.
    It may raise UserError: the module is then left alone, and the message says why.
    `read_by_trial` is a reader for any class that computes a plain LayerNorm or RMSNorm.

    Args:
        class_paths: each ``"package.module.Class"``. The module may be cut short to any prefix,
            and the class's name may hold ``*``: ``"transformers.models.*RMSNorm"``. Subclasses are
            found too; among several matches the most derived class wins, then the last registered.

    Returns:
        The decorator, which returns what it was given.

    Raises:
        UserError: a path has no module.
    """
    for path in class_paths:
        if not isinstance(path, str) or not all(path.rpartition(".")[::2]):
            raise UserError(f"a reader's class is given as 'package.module.Class', not {path!r}")
    if not class_paths:
        raise UserError("a reader needs at least one class, as 'package.module.Class'")

    def decorate(reader: _R) -> _R:
        for path in class_paths:
            prefix, _, name = path.rpartition(".")
            _readers.append((prefix, name, reader))
        return reader

    return decorate


def reader_for(module: nn.Module) -> Reader | None:
    """The reader of a module's class, or of the nearest of its bases that has one."""
    for base in type(module).__mro__:
        if any(entry.factory is base for entry in registered()):
            return read_own
        for prefix, name, reader in reversed(_readers):
            inside = base.__module__ == prefix or base.__module__.startswith(f"{prefix}.")
            if inside and fnmatchcase(base.__name__, name):
                return reader
    return None


def read(module: nn.Module) -> NormFacts | None:
    """What a norm computes; None if no reader knows its class, or the reader says it is no norm.

    Raises:
        UserError: it is a norm that can't be replaced, and why.
    """
    reader = reader_for(module)
    facts = None if reader is None else reader(module)
    if facts is not None and not isinstance(facts, NormFacts):
        raise UserError(f"the reader of {type(module).__name__} gave {facts!r}, no NormFacts")
    return facts


def looks_like_norm(module: nn.Module) -> bool:
    """Whether a module without a reader is worth a word: a leaf whose class is called a norm."""
    # not Normalize, NormalNoise and the like
    kind = type(module)
    called = re.search("[Nn]orm(?!al)", kind.__name__) is not None
    called = called and not kind.__module__.startswith("torch.nn.utils.")  # norms of weights
    return called and not any(True for _ in module.children())


# A norm of axis 1 keeps its parameters' names: two hooks carry the axis there and back.


def axis_to_last(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """A forward pre-hook: ``(n, dim, *)`` to ``(n, *, dim)``."""
    return (args[0].movedim(1, -1), *args[1:])


def axis_from_last(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """A forward hook: ``(n, *, dim)`` to ``(n, dim, *)``."""
    return output.movedim(-1, 1)


def read_own(module: nn.Module) -> NormFacts | None:
    """Read a norm of this package, or one that a third party registered with it."""
    dim = getattr(module, "dim", None)
    if not isinstance(dim, int):
        raise UserError("it is registered as a norm, but has no dim")
    return NormFacts(
        dim,
        getattr(module, "eps", None),
        getattr(module, "weight", None),
        getattr(module, "bias", None),
        kind="own",
        channels_first=axis_to_last in module._forward_pre_hooks.values(),
    )


def _only_axis(module: nn.Module) -> int:
    shape = getattr(module, "normalized_shape", ())
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    if len(shape) != 1:
        raise UserError(f"it normalises {len(shape)} axes at once, {shape}; only one axis can be")
    return int(shape[0])


@register_reader("torch.nn.LayerNorm")
def _read_torch_layer(module: nn.LayerNorm) -> NormFacts | None:
    if type(module).forward is not nn.LayerNorm.forward:
        return read_by_trial(module)
    return NormFacts(_only_axis(module), module.eps, module.weight, module.bias)


@register_reader("torch.nn.RMSNorm")
def _read_torch_rms(module: nn.RMSNorm) -> NormFacts | None:
    if type(module).forward is not nn.RMSNorm.forward:
        return read_by_trial(module)
    eps, note = module.eps, ""
    if eps is None:
        dtype = torch.float32 if module.weight is None else module.weight.dtype
        eps = torch.finfo(dtype).eps
        note = f"eps=None read as {eps:.3g}, that of {dtype}".replace("torch.", "")
    return NormFacts(_only_axis(module), eps, module.weight, None, kind="rms", note=note)


@register_reader("torch.nn.modules.batchnorm._BatchNorm", f"{BatchNormBase.__module__}.*BatchNorm*")
def _read_batch(module: _BatchNorm | BatchNormBase) -> NormFacts | None:
    weight, bias = module.weight, module.bias
    return NormFacts(module.num_features, module.eps, weight, bias, kind="batch")


def read_by_trial(module: nn.Module) -> NormFacts | None:
    """Read a norm from what it does to a few numbers.

    A copy with parameters of its own on the CPU is run once or a few times: it must turn out a
    LayerNorm or RMSNorm of the last axis or of axis 1, with the gain stored as it is or less 1.
    The module must have ``weight`` (and ``bias``) of shape ``(dim,)`` or none, an ``eps`` under
    one of the usual names, and a forward of one argument. Meta tensors will do.

    Returns:
        The facts; its cast is ``"input"``, ``"float32-then-weight"`` or ``"own"`` by trial too.

    Raises:
        UserError: it is none of these.
    """
    from normtrain.swap.detection import facts_by_trial

    return facts_by_trial(module)
