"""Signals in the loader's worker processes: only the training process may stop them."""

from __future__ import annotations

import os
import signal
import threading

_STOP = {signal.SIGTERM}


def start_worker(number: int) -> None:
    """Make a worker outlive the signals that stop training; a ``DataLoader``'s ``worker_init_fn``.

    SLURM, torchrun and a terminal send SIGTERM or SIGINT to all processes alike. A worker that
    ends by it fails the training process, which is about to save. Only SIGTERM from the training
    process still ends the worker.
    """
    for signum in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(signum, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP)
    threading.Thread(target=_wait_for_parent, args=(os.getppid(),), daemon=True).start()


def _wait_for_parent(parent: int) -> None:
    while signal.sigwaitinfo(_STOP).si_pid not in (parent, 0):
        pass
    os._exit(0)
