"""Which backend is requested: the variable ``NORMTRAIN_KERNELS``, or `use` for a block of code.

==========  ======================================================================================
auto        on a CPU ``native``, except that PyTorch's kernel runs ``layernorm``, whose results
            are bitwise those of `torch.nn.LayerNorm`; ``aten`` without the extension and on a GPU
            (the Triton kernels have not been measured on one)
plain       differentiable torch formulas for everything
aten        PyTorch's kernels, and autograd functions composed of its operations
native      the fused CPU kernels wherever they can run, ``layernorm`` included
triton      the fused GPU kernels wherever they can run
==========  ======================================================================================

The formulas run where the requested kernels cannot (float64, function transforms, forward mode,
tensor subclasses, ``eps_mode="outside"``), and under `torch.compile`, which fuses them. Requesting
a backend that this system does not support is an error.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator
from typing import NamedTuple

import torch

from normtrain.errors import UserError
from normtrain.kernels import native
from normtrain.kernels.backend import Backend

VARIABLE = "NORMTRAIN_KERNELS"
BACKENDS = ("auto", "plain", "aten", "native", "triton")

_current: Choice | None = None
# a dict, since torch.compile warns about functools.cache
_loaded: dict[str, Backend | str] = {}


def load_backend(name: str) -> Backend | str:
    """Return the backend ``"native"`` or ``"triton"``, or the reason why it cannot run here."""
    if name not in _loaded:
        _loaded[name] = _load(name)
    return _loaded[name]


def _load(name: str) -> Backend | str:
    if name == "native":
        return native.unavailable() or native.BACKEND
    try:
        found = importlib.import_module("normtrain.kernels.triton")
    except ImportError as error:
        return f"the Triton kernels cannot be imported ({error})"
    if not torch.cuda.is_available() and not found.interpreted():
        return "there is no CUDA device, and TRITON_INTERPRET=1 is not set"
    return found.BACKEND


def check_backend(name: str, source: str) -> str:
    """Return the name of a backend that can run here.

    Args:
        name: what was requested.
        source: the option or variable, for the message.

    Raises:
        UserError: there is no such backend, or this system does not support it.
    """
    if name not in BACKENDS:
        raise UserError(f"{source} must be one of {', '.join(BACKENDS)}, got {name!r}")
    if name in ("native", "triton"):
        found = load_backend(name)
        if isinstance(found, str):
            raise UserError(f"{source}={name} is not supported here: {found}")
    return name


class Choice(NamedTuple):
    """The requested backend, and the fused kernels it stands for.

    Attributes:
        requested: one of `BACKENDS`.
        cpu: the fused kernels for CPU tensors, or None.
        gpu: the fused kernels for other devices, or None.
    """

    requested: str
    cpu: Backend | None
    gpu: Backend | None


def _choose(name: str) -> Choice:
    fused = {"auto": "native", "native": "native", "triton": "triton"}.get(name)
    found = load_backend(fused) if fused else None
    usable = None if isinstance(found, str) else found
    return Choice(name, usable, usable if name == "triton" else None)


def current() -> Choice:
    """Return the choice in force; ``"auto"`` unless set.

    Raises:
        UserError: the environment variable names a backend that cannot run here.
    """
    global _current
    if _current is None:
        _current = _choose(check_backend(os.environ.get(VARIABLE) or "auto", VARIABLE))
    return _current


@contextlib.contextmanager
def use(name: str) -> Iterator[None]:
    """Run the norms of this process by a backend, inside a ``with`` block.

    Args:
        name: one of `BACKENDS`.

    Raises:
        UserError: there is no such backend, or this system does not support it.
    """
    global _current
    before, _current = _current, _choose(check_backend(name, "kernels"))
    try:
        yield
    finally:
        _current = before


def described() -> str:
    """Describe what runs norms on this CPU, as far as the last bits of results depend on it.

    Returns:
        The requested backend, then the kernels and their instruction set: ``"auto: native (avx2)"``
        or ``"auto: aten"``.
    """
    now = current()
    if now.cpu is None:
        return f"{now.requested}: {'plain' if now.requested == 'plain' else 'aten'}"
    return f"{now.requested}: {now.cpu.description()}"
