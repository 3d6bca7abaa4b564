"""What the source of a model's forwards says about its norms: functional ones, reads from outside.

Only what can be seen in the classes' own source is found; what has none is passed over.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn import functional

_FUNCTIONAL = (
    functional.layer_norm,
    functional.rms_norm,
    torch.layer_norm,
    torch.rms_norm,
    torch.native_layer_norm,
)
_FRAMEWORKS = (
    *("torch.", "normtrain.", "pytorch_lightning.", "lightning.", "builtins.", "abc."),
    *("transformers.modeling_utils.", "transformers.generation.", "transformers.utils."),
)
# Methods that run before or besides the computation.
_ASIDE = ("__init__", "_init_weights", "reset_parameters", "extra_repr", "init_weights")
# Asking these of a gain tells nothing of its values.
_HARMLESS = ("dtype", "device", "shape", "size", "ndim", "dim", "numel", "is_cuda", "is_meta")

Step = str | int


@dataclass(frozen=True)
class Read:
    """``self.<path>.<attribute>`` in a method, and what is taken of that: ``.dtype``, or None."""

    path: tuple[Step, ...]
    attribute: str
    then: str | None

    def __str__(self) -> str:
        parts = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.path]
        return "".join(["self", *parts, f".{self.attribute}", f".{self.then}" if self.then else ""])


@dataclass(frozen=True)
class Findings:
    """The functional norms that a function calls, and the attributes it reads below ``self``."""

    calls: tuple[str, ...] = ()
    reads: tuple[Read, ...] = ()


_seen: WeakKeyDictionary[type, tuple[Findings, ...]] = WeakKeyDictionary()


def functional_norms(model: nn.Module, norms: Iterable[nn.Module]) -> list[str]:
    """A line for each class that normalises by a function, with how many modules are of it."""
    known = {id(norm) for norm in norms}
    counts: dict[tuple[str, str], int] = {}
    for module in model.modules():
        if id(module) in known:
            continue
        for call in dict.fromkeys(c for found in _findings(type(module)) for c in found.calls):
            key = (type(module).__name__, call)
            counts[key] = counts.get(key, 0) + 1
    return [
        f"{kind} ({count} in the model) calls {call} itself, which no swap of modules reaches"
        for (kind, call), count in counts.items()
    ]


def outside_reads(
    model: nn.Module, swaps: Mapping[nn.Module, nn.Module]
) -> Iterator[tuple[str, Read, nn.Module]]:
    """Where another module reads something of a norm that its successor lacks or changes.

    Args:
        model: holds the norms.
        swaps: the new norm for each old one.

    Yields:
        The reader's class, what it reads, and the old norm; reads that are as well answered by
        the new norm are left out.
    """
    for module in model.modules():
        if module in swaps:
            continue
        for found in _findings(type(module)):
            for read in found.reads:
                old = _resolve(module, read.path)
                if old is not None and old in swaps and _matters(read, old, swaps[old]):
                    yield type(module).__name__, read, old


def lacks(new: nn.Module, read: Read) -> bool:
    """Whether the new norm has nothing under the name that is read."""
    return getattr(new, read.attribute, None) is None


def _matters(read: Read, old: nn.Module, new: nn.Module) -> bool:
    if getattr(old, read.attribute, None) is None:
        return False
    values = read.attribute in ("weight", "bias") and read.then not in _HARMLESS
    return lacks(new, read) or values


def _resolve(module: nn.Module, path: tuple[Step, ...]) -> nn.Module | None:
    """The submodule at a path; nothing but submodules is touched, so no property runs."""
    found: nn.Module | None = module
    for step in path:
        if found is None:
            return None
        children = found._modules
        if isinstance(step, int):
            names = list(children)
            inside = -len(names) <= step < len(names)
            found = children[names[step]] if inside else None
        else:
            found = children.get(step)
    return found


def _findings(kind: type) -> tuple[Findings, ...]:
    """What the methods of a class, its own and inherited, say; looked up once for each class."""
    if kind not in _seen:
        _seen[kind] = tuple(_scan(function) for function in _methods(kind))
    return _seen[kind]


def _methods(kind: type) -> list[FunctionType]:
    functions: dict[str, FunctionType] = {}
    for base in reversed(kind.__mro__):
        if not f"{base.__module__}.".startswith(_FRAMEWORKS):
            found = {n: inspect.unwrap(f) for n, f in vars(base).items() if inspect.isfunction(f)}
            functions |= {n: f for n, f in found.items() if inspect.isfunction(f)}
    return [function for name, function in functions.items() if name not in _ASIDE]


def _scan(function: FunctionType) -> Findings:
    try:
        source = textwrap.dedent(inspect.getsource(function))
        tree = ast.parse(source) if "norm" in source or ".weight" in source else None
    except (OSError, TypeError, SyntaxError, ValueError):
        return Findings()
    if tree is None:
        return Findings()
    calls, reads = [], []
    above = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _is_norm(_callee(node.func, function)):
            calls.append(ast.unparse(node.func))
        elif isinstance(node, ast.Attribute):
            read = _read(node, above.get(node))
            reads += [read] if read is not None else []
    return Findings(tuple(dict.fromkeys(calls)), tuple(dict.fromkeys(reads)))


def _read(node: ast.Attribute, parent: ast.AST | None) -> Read | None:
    path = _path(node.value)
    compared = isinstance(parent, ast.Compare) and isinstance(parent.ops[0], ast.Is | ast.IsNot)
    if not path or compared:
        return None
    then = parent.attr if isinstance(parent, ast.Attribute) else None
    return Read(path, node.attr, then)


def _path(node: ast.AST) -> tuple[Step, ...] | None:
    """The steps from ``self`` to a node, or None where it starts elsewhere."""
    if isinstance(node, ast.Name):
        return () if node.id == "self" else None
    step: Step
    if isinstance(node, ast.Attribute):
        step = node.attr
    elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        if not isinstance(node.slice.value, int):
            return None
        step = node.slice.value
    else:
        return None
    before = _path(node.value)
    return None if before is None else (*before, step)


def _callee(node: ast.AST, function: FunctionType) -> Any:
    """What a dotted name stands for in a function's module, or None."""
    if isinstance(node, ast.Name):
        return function.__globals__.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = _callee(node.value, function)
        # Other packages' modules may import something when they are asked.
        ours = inspect.ismodule(owner) and owner.__name__.split(".")[0] == "torch"
        return getattr(owner, node.attr, None) if ours else None
    return None


def _is_norm(callee: Any) -> bool:
    return any(callee is norm for norm in _FUNCTIONAL)
