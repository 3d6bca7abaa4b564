"""What bitwise identity of runs depends on: ``train.deterministic`` and the environment.

On a CPU everything this package runs is deterministic for a fixed number of threads; the mode is
for GPUs, some of whose operations sum in the order in which threads arrive (docs/determinism.md).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from normtrain import kernels
from normtrain.errors import RunError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
WORKSPACES = (":4096:8", ":16:8")
"""The settings under which NVIDIA documents cuBLAS as deterministic."""

# PyTorch's message, in several places: "X does not have a deterministic implementation, but …"
_NO_SUCH = re.compile(r"(\S+) does not have a deterministic implementation")


@contextlib.contextmanager
def determinism(wanted: bool) -> Iterator[None]:
    """Allow only deterministic operations inside of a ``with``.

    Unlike Lightning's ``Trainer(deterministic=True)`` it restores everything: PyTorch's and
    cuDNN's flags, cuDNN's attention (whose backward pass is not deterministic) and cuBLAS's
    workspace setting. Enter it before anything is computed on a GPU: cuBLAS reads its setting
    once in a process.

    Args:
        wanted: False changes nothing.

    Raises:
        RunError: an operation has no deterministic implementation.
    """
    if not wanted:
        yield
        return
    with contextlib.ExitStack() as back:
        _set_flags(back)
        try:
            yield
        except RuntimeError as error:
            if (found := _NO_SUCH.search(str(error))) is None:
                raise
            raise RunError(
                f"{found[1]} has no deterministic implementation on this device; start a run with "
                f"train.deterministic=false, or without what needs {found[1]}"
            ) from error


def _set_flags(back: contextlib.ExitStack) -> None:
    """Set every flag; leaving the stack restores it."""
    was = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    back.callback(torch.use_deterministic_algorithms, was, warn_only=warned)
    torch.use_deterministic_algorithms(True)
    cudnn = torch.backends.cudnn
    for name, value in (("deterministic", True), ("benchmark", False)):
        back.callback(setattr, cudnn, name, getattr(cudnn, name))
        setattr(cudnn, name, value)
    attention = torch.backends.cuda
    back.callback(attention.enable_cudnn_sdp, attention.cudnn_sdp_enabled())
    attention.enable_cudnn_sdp(False)
    before = os.environ.get(WORKSPACE)
    if before not in WORKSPACES:
        back.callback(_set_variable, before)
        os.environ[WORKSPACE] = WORKSPACES[0]


def environment() -> dict[str, Any]:
    """Return what the last bits of results depend on, plain values by name.

    ``kernels`` runs the norms; ``threads`` of the CPU decide how BLAS splits its sums; ``torch`` is
    the version; ``device`` a GPU's name, or the instruction set that PyTorch uses of the CPU.
    """
    on_gpu = torch.cuda.is_available()
    return {
        "kernels": kernels.described(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__.split("+")[0],
        "device": torch.cuda.get_device_name()
        if on_gpu
        else f"CPU ({torch.backends.cpu.get_cpu_capability()})",
    }


def changes_since(before: Mapping[str, Any]) -> Iterator[str]:
    """Yield what differs from the environment that a checkpoint records, a line each.

    Args:
        before: the record; what an older one lacks is passed over.
    """
    said = {
        "kernels": "norm kernels {} instead of {}",
        "threads": "{} CPU threads instead of {}",
        "torch": "torch {} instead of {}",
        "device": "device {} instead of {}",
    }
    for name, now in environment().items():
        if name == "threads" and torch.cuda.is_available():
            continue  # sums run on the GPU
        if (then := before.get(name)) is not None and then != now:
            yield f"{said[name].format(now, then)}: the last bits of results may differ"


def _set_variable(value: str | None) -> None:
    os.environ.pop(WORKSPACE, None)
    if value is not None:
        os.environ[WORKSPACE] = value
