"""What this machine can do, and the settings that make it do it well."""

from __future__ import annotations

import ctypes
import logging
import os
import sys

import torch

from normtrain.errors import RunError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def quiet_lightning() -> None:
    """Silence Lightning's remarks; import it first, since the import sets the level."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory for reuse instead of returning it to the system.

    A training step frees and allocates the same large blocks again and again; by default each
    time costs page faults for the whole block.

    Returns:
        Whether the C library supports it (glibc on Linux).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
        return bool(libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)) and bool(
            libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        )
    except (OSError, AttributeError):
        return False


def check_room(parameters: int) -> None:
    """Check that the memory holds a model's training: weights, gradients, two moments.

    Raises:
        RunError: it does not, whatever the batches are.
    """
    if torch.cuda.is_available():
        there, where = torch.cuda.get_device_properties(0).total_memory, "this GPU"
    else:
        there, where = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "this machine"
    # bf16-true halves each of the four; sharding is left out of account.
    if (least := parameters * 4 * 2) > there:
        raise RunError(
            f"{parameters:,} parameters take at least {least / 1e9:,.0f} GB to train, and {where} "
            f"has {there / 1e9:,.0f} GB; lower model.d_model, model.d_ff, the number of layers or "
            "data.vocab_size"
        )


def resolve_precision(asked: str) -> tuple[str, str]:
    """Choose the precision of ``"auto"`` for this machine.

    Args:
        asked: the recipe's ``train.precision``.

    Returns:
        The precision in Lightning's words (``"32-true"``, ``"bf16-mixed"``, ``"bf16-true"``)
        and the reason, for a message.
    """
    if asked != "auto":
        return {"32": "32-true"}.get(asked, asked), "as the recipe says"
    if torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16-mixed", f"{torch.cuda.get_device_name()} computes in bfloat16"
        return "32-true", f"{torch.cuda.get_device_name()} has no bfloat16"
    if _cpu_has_bf16():
        return "bf16-mixed", "this CPU multiplies in bfloat16"
    return "32-true", "this CPU has no bfloat16 instructions"


def _cpu_has_bf16() -> bool:
    capability = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capability.get("avx512_bf16") or capability.get("amx_bf16"))
