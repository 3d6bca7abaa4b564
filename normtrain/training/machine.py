"""What this machine can do, and the settings that make it do it well."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from dataclasses import dataclass

import torch

from normtrain.errors import RunError, UserError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


@dataclass(frozen=True)
class Machine:
    """Where a run trains. Checkpoints carry it, since a run goes on as it was started.

    Attributes:
        devices: devices of each machine.
        nodes: machines.
        strategy: ``"auto"``, ``"ddp"`` or ``"fsdp2"``.
        compile: run the training forward pass through ``torch.compile``.
        timeout: seconds that a process waits for an answer of the others.
        update_batches: batches of one optimizer step over all processes. A run that goes on with
            another number of processes keeps it.
    """

    devices: int = 1
    nodes: int = 1
    strategy: str = "auto"
    compile: bool = False
    timeout: int = 1800
    update_batches: int = 1

    @property
    def processes(self) -> int:
        """How many processes train, one a device."""
        return self.devices * self.nodes

    @property
    def accumulate(self) -> int:
        """Batches of one optimizer step that each process takes."""
        assert self.update_batches % self.processes == 0, self
        return self.update_batches // self.processes


def check_devices(devices: int, nodes: int) -> None:
    """See that there are so many devices here, and a launcher where there are other machines.

    Raises:
        ValueError: there are fewer, or nothing says which machine this one is.
    """
    if torch.cuda.is_available() and devices > torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UserError(f"{devices} devices were asked for, but there are {count} here")
    placed = ("RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
    if nodes > 1 and not any(name in os.environ for name in placed):
        raise UserError(
            f"{nodes} machines were asked for; start the command on each of them by "
            f"torchrun or SLURM, which tell it which one it is"
        )


def quiet_lightning() -> None:
    """Silence Lightning's remarks on what it starts; import it first, which sets the level."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory for reuse instead of handing it back to the system.

    A training step frees and asks for the same large blocks again and again; by default each
    time costs page faults for the whole block.

    Returns:
        Whether the C library understood (it is glibc on Linux).
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
    """See that this machine can hold a model's training: weights, gradients, AdamW's two moments.

    Raises:
        RunError: it can't, whatever the batches are.
    """
    if torch.cuda.is_available():
        there, where = torch.cuda.get_device_properties(0).total_memory, "this GPU"
    else:
        there, where = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "this machine"
    # bf16-true halves each of the four; sharding is no strategy here.
    if (least := parameters * 4 * 2) > there:
        raise RunError(
            f"{parameters:,} parameters take at least {least / 1e9:,.0f} GB to train, and {where} "
            f"has {there / 1e9:,.0f} GB; lower model.d_model, model.d_ff, the number of layers or "
            "data.vocab_size"
        )


def resolve_precision(asked: str) -> tuple[str, str]:
    """Turn ``"auto"`` into a precision of this machine.

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
