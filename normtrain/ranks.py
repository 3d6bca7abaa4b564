"""Which of a run's processes this one is, and exchanging Python objects between them."""

from __future__ import annotations

import os
from typing import TypeVar

_T = TypeVar("_T")


def is_first_process() -> bool:
    """Return whether this is rank 0, which makes folders and prints results.

    Reads the variables of torchrun, SLURM and Lightning's launcher, in that order, so it works
    before a process group is up.
    """
    for name in ("RANK", "SLURM_PROCID"):
        if name in os.environ:
            return os.environ[name] == "0"
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "NODE_RANK"))


def is_first_here() -> bool:
    """Return whether this is the first process of its machine, which reports a user's mistake.

    Every process of a machine finds the same mistake.
    """
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        if name in os.environ:
            return os.environ[name] == "0"
    return True


def several_ranks() -> bool:
    """Return whether a process group of several ranks is up."""
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def all_gather(value: _T) -> list[_T]:
    """Return every rank's value, in rank order; values are pickled.

    Args:
        value: of this rank; its device tensors should be on the CPU.
    """
    if not several_ranks():
        return [value]
    import torch.distributed as dist

    values: list[_T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]
