"""Which of a run's processes this one is, before any process group is up."""

from __future__ import annotations

import os


def is_first_process() -> bool:
    """Whether this process may make folders and print results; the only one always is the first.

    Reads the variables of torchrun, SLURM and Lightning's own launcher, in that order.
    """
    for name in ("RANK", "SLURM_PROCID"):
        if name in os.environ:
            return os.environ[name] == "0"
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "NODE_RANK"))


def is_first_here() -> bool:
    """Whether this process is the first on its machine, and so says what a user's mistake is.

    What is wrong with a command or its files, every process on the machine finds alike.
    """
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        if name in os.environ:
            return os.environ[name] == "0"
    return True
