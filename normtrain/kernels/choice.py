"""Which backend is asked for: ``NORMTRAIN_KERNELS``, or `use` around a piece of a program.

==========  ======================================================================================
auto        on the CPU ``native``, but PyTorch's kernel for ``layernorm``, which so keeps the bits
            of `torch.nn.LayerNorm`; where there is no extension, and on a GPU (the Triton kernels
            have yet to be measured on one), ``aten``
plain       differentiable torch formulas, for everything
aten        PyTorch's kernels and functions made of its operations
native      the CPU's fused kernels wherever they can run, ``layernorm`` included
triton      the GPU's fused kernels wherever they can run
==========  ======================================================================================

Where the kernels asked for can't run (float64, function transforms, forward mode, tensor
subclasses, ``eps_mode="outside"``), the formulas do, and under `torch.compile` too, since the
compiler fuses them. A backend that can run nowhere on this machine is refused.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

from normtrain.errors import UserError

VARIABLE = "NORMTRAIN_KERNELS"
BACKENDS = ("auto", "plain", "aten", "native", "triton")

_current: Choice | None = None
_modules: dict[str, ModuleType | str] = {}


def module(name: str) -> ModuleType | str:
    """The module of ``"native"`` or ``"triton"``, or why it can't be had here."""
    if name not in _modules:
        _modules[name] = _load(name)
    return _modules[name]


def _load(name: str) -> ModuleType | str:
    if name == "native":
        from normtrain.kernels import native

        return native.unavailable() or native
    import torch

    try:
        found = importlib.import_module("normtrain.kernels.triton")
    except ImportError as error:
        return f"Triton's kernels can't be imported ({error})"
    if not torch.cuda.is_available() and not found.interpreted():
        return "there is no CUDA device, and TRITON_INTERPRET=1 is not set"
    return found


def checked(name: str, source: str) -> str:
    """The backend's name.

    Raises:
        UserError: there is no such backend, or it can't run on this machine.
    """
    if name not in BACKENDS:
        raise UserError(f"{source} is one of {', '.join(BACKENDS)}, not {name!r}")
    if name in ("native", "triton"):
        found = module(name)
        if isinstance(found, str):
            raise UserError(f"{source}={name} can't run here: {found}")
    return name


class Choice(NamedTuple):
    """What is asked for, and the fused kernels that follow from it.

    Attributes:
        wanted: one of `BACKENDS`.
        cpu: the module that runs fused norms on the CPU, or None.
        gpu: the same for other devices.
    """

    wanted: str
    cpu: ModuleType | None
    gpu: ModuleType | None


def _chosen(name: str) -> Choice:
    fused = {"auto": "native", "native": "native", "triton": "triton"}.get(name)
    found = module(fused) if fused else None
    usable = None if isinstance(found, str) else found
    return Choice(name, usable, usable if name == "triton" else None)


def current() -> Choice:
    """The choice in force: the environment variable's, ``"auto"`` unless it is set.

    Raises:
        UserError: the environment variable names a backend that can't run here.
    """
    global _current
    if _current is None:
        _current = _chosen(checked(os.environ.get(VARIABLE) or "auto", VARIABLE))
    return _current


@contextlib.contextmanager
def use(name: str) -> Iterator[None]:
    """Make the norms of this process run by a backend, inside of a ``with``.

    Args:
        name: one of `BACKENDS`.

    Raises:
        UserError: there is no such backend, or it can't run on this machine.
    """
    global _current
    before, _current = _current, _chosen(checked(name, "kernels"))
    try:
        yield
    finally:
        _current = before


def described() -> str:
    """What runs norms on this machine's CPU, as far as the last bits of results depend on it.

    ``"auto: native (avx2)"``, ``"auto: aten"``, …: the backend asked for, then the fused kernels
    and their instruction set, or PyTorch's.
    """
    now = current()
    if now.cpu is None:
        return f"{now.wanted}: {'plain' if now.wanted == 'plain' else 'aten'}"
    name = now.cpu.__name__.rpartition(".")[2]
    detail = f" ({now.cpu.instruction_set()})" if name == "native" else ""
    return f"{now.wanted}: {name}{detail}"
