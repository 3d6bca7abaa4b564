"""What processes that prepare batches do about signals: leave them to the one that trains."""

from __future__ import annotations

import os
import signal
import threading

_ASKING = {signal.SIGTERM}


def start_worker(number: int) -> None:
    """For a ``DataLoader``'s ``worker_init_fn``: outlive what asks the training to stop.

    SLURM, torchrun and a terminal send SIGTERM or SIGINT to all processes alike. A worker that
    ends by it fails the training, which was about to save. Only SIGTERM from the process that
    trains still ends it.
    """
    for signum in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(signum, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, _ASKING)
    threading.Thread(target=_end_if_told, args=(os.getppid(),), daemon=True).start()


def _end_if_told(parent: int) -> None:
    while signal.sigwaitinfo(_ASKING).si_pid not in (parent, 0):
        pass
    os._exit(0)
