"""Processes that prepare batches, and signals."""

import os
import signal
import time

import pytest
from torch.utils.data import DataLoader

from normtrain.data.workers import start_worker


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_worker_outlives_what_asks_the_training_to_stop(signum: signal.Signals) -> None:
    loader = DataLoader(range(40), num_workers=1, worker_init_fn=start_worker, batch_size=1)
    batches = iter(loader)
    next(batches)
    worker = batches._workers[0]  # type: ignore[attr-defined]
    if (stranger := os.fork()) == 0:
        os.kill(worker.pid, signum)
        os._exit(0)
    os.waitpid(stranger, 0)
    assert len(list(batches)) == 39
    worker.join(10)
    assert worker.exitcode == 0


def test_a_worker_ends_when_the_process_that_trains_says_so() -> None:
    loader = DataLoader(range(400), num_workers=1, worker_init_fn=start_worker, batch_size=1)
    batches = iter(loader)
    next(batches)
    worker = batches._workers[0]  # type: ignore[attr-defined]
    began = time.monotonic()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's would fail this process
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0
    assert time.monotonic() - began < 5
