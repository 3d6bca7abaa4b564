"""What the bits of a run depend on: the mode of ``train.deterministic``, and what checkpoints note.

``docs/determinism.md`` says what is bit-equal to what. On a CPU everything this package runs gives
the same bits each time with the same number of threads; the mode is for GPUs, some of whose
operations add in whatever order their threads arrive.
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
"""The settings under which NVIDIA promises that cuBLAS repeats itself."""

# PyTorch's own words, in several places: "X does not have a deterministic implementation, but …"
_NO_SUCH = re.compile(r"(\S+) does not have a deterministic implementation")


@contextlib.contextmanager
def determinism(wanted: bool) -> Iterator[None]:
    """Let only operations run that give the same bits each time, inside of a ``with``.

    Unlike Lightning's ``Trainer(deterministic=True)`` it gives everything back: PyTorch's and
    cuDNN's flags, cuDNN's attention (whose backward pass does not repeat itself) and cuBLAS's
    workspace setting, which stays as it is where it already is one that does. Enter it before
    anything is computed on a GPU, since cuBLAS reads its setting once in a process.

    Args:
        wanted: without it, nothing changes.

    Raises:
        RunError: an operation has no version that gives the same bits each time.
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
                f"{found[1]} has no version on this device that gives the same bits each time, "
                f"which train.deterministic asks for; start a run with train.deterministic=false, "
                f"or without what needs {found[1]}"
            ) from error


def _set_flags(back: contextlib.ExitStack) -> None:
    """Set every flag; leaving the stack sets it to what it was."""
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


def surroundings() -> dict[str, Any]:
    """What the last bits of a run's results depend on here, plain values by name.

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
    """What differs from the surroundings that a checkpoint notes, a line each.

    Args:
        before: the checkpoint's notes; what an older one lacks is passed over.
    """
    said = {
        "kernels": "norms now run by {}, before by {}",
        "threads": "now {} CPU threads, before {}",
        "torch": "now torch {}, before torch {}",
        "device": "now on {}, before on {}",
    }
    for name, now in surroundings().items():
        if name == "threads" and torch.cuda.is_available():
            continue  # a GPU does the sums
        if (then := before.get(name)) is not None and then != now:
            yield f"{said[name].format(now, then)}: the last bits of results may differ"


def _set_variable(value: str | None) -> None:
    os.environ.pop(WORKSPACE, None)
    if value is not None:
        os.environ[WORKSPACE] = value
