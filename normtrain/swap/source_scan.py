"""Scan the source of a model's classes for functional norms and for reads of norms' attributes.

Only what the classes' own source shows is found; classes without source are skipped.
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
# Methods that run outside the computation.
_OUTSIDE = ("__init__", "_init_weights", "reset_parameters", "extra_repr", "init_weights")
# Reading these of a parameter does not use its values.
_HARMLESS = ("dtype", "device", "shape", "size", "ndim", "dim", "numel", "is_cuda", "is_meta")

Step = str | int


@dataclass(frozen=True)
class Read:
    """``self.<path>.<attribute>`` in a method, and the attribute read of it, such as ``dtype``."""

    path: tuple[Step, ...]
    attribute: str
    then: str | None

    def __str__(self) -> str:
        parts = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.path]
        return "".join(["self", *parts, f".{self.attribute}", f".{self.then}" if self.then else ""])


@dataclass(frozen=True)
class Findings:
    """The functional norms that a function calls, and the attributes it reads of submodules."""

    calls: tuple[str, ...] = ()
    reads: tuple[Read, ...] = ()


_seen: WeakKeyDictionary[type, tuple[Findings, ...]] = WeakKeyDictionary()


def functional_norms(model: nn.Module, norms: Iterable[nn.Module]) -> list[str]:
    """Return a line for each class that calls a functional norm, with its number of modules."""
    known = {id(norm) for norm in norms}
    counts: dict[tuple[str, str], int] = {}
    for module in model.modules():
        if id(module) in known:
            continue
        for call in dict.fromkeys(c for found in _findings(type(module)) for c in found.calls):
            key = (type(module).__name__, call)
            counts[key] = counts.get(key, 0) + 1
    return [
        f"{kind} ({count} in the model) calls {call} itself, which cannot be replaced"
        for (kind, call), count in counts.items()
    ]


def outside_reads(
    model: nn.Module, swaps: Mapping[nn.Module, nn.Module]
) -> Iterator[tuple[str, Read, nn.Module]]:
    """Yield where another module reads an attribute of a norm that its replacement changes.

    Args:
        model: contains the norms.
        swaps: the new norm for each old one.

    Yields:
        The class that reads, what it reads, and the old norm; reads whose result the new norm does
        not change are left out.
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
    """Return whether the new norm lacks the attribute that is read."""
    return getattr(new, read.attribute, None) is None


def _matters(read: Read, old: nn.Module, new: nn.Module) -> bool:
    if getattr(old, read.attribute, None) is None:
        return False
    values = read.attribute in ("weight", "bias") and read.then not in _HARMLESS
    return lacks(new, read) or values


def _resolve(module: nn.Module, path: tuple[Step, ...]) -> nn.Module | None:
    """Return the submodule at a path, without running properties."""
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
    """Return the findings in a class's own and inherited methods; cached by class."""
    if kind not in _seen:
        _seen[kind] = tuple(_scan(function) for function in _methods(kind))
    return _seen[kind]


def _methods(kind: type) -> list[FunctionType]:
    functions: dict[str, FunctionType] = {}
    for base in reversed(kind.__mro__):
        if not f"{base.__module__}.".startswith(_FRAMEWORKS):
            found = {n: inspect.unwrap(f) for n, f in vars(base).items() if inspect.isfunction(f)}
            functions |= {n: f for n, f in found.items() if inspect.isfunction(f)}
    return [function for name, function in functions.items() if name not in _OUTSIDE]


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
    """Return the steps from ``self`` to a node, or None if it starts elsewhere."""
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
    """Return the object that a dotted name means in a function's module, or None."""
    if isinstance(node, ast.Name):
        return function.__globals__.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = _callee(node.value, function)
        # Reading an attribute of another package's module may import something.
        ours = inspect.ismodule(owner) and owner.__name__.split(".")[0] == "torch"
        return getattr(owner, node.attr, None) if ours else None
    return None


def _is_norm(callee: Any) -> bool:
    return any(callee is norm for norm in _FUNCTIONAL)
