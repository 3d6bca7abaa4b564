"""Processes of a run that are gone or don't answer: noticed, said once, and none left behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
import torch.distributed as dist
from lightning_fabric.utilities.distributed import _set_num_threads_if_needed
from pytorch_lightning.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from normtrain.errors import RunError

PARENT_VARIABLE = "NORMTRAIN_PARENT"
"""Processes that the launcher starts find the number of the one that started them here."""

LOOK_EVERY = 0.3
# How long a process that has lost another may take to end by itself, as it does where the lost
# one closed its connections; and how long others get to end after it.
END_ITSELF, END_AFTER_FIRST = 20.0, 10.0
# A worker that outlives torchrun saves first.
SAVE_ITSELF = 120.0
# Processes start at different speeds, however short the answers of a running one may take.
TO_START = 600

_PR_SET_PDEATHSIG = 1
_CLOSED = re.compile(
    r"gloo/transport|connection (was likely )?(closed|reset|refused)|closed by peer|broken pipe"
    r"|connectFullMesh|ncclRemoteError|remote process exited|NCCL communicator was aborted",
    re.IGNORECASE,
)
_UNANSWERED = re.compile(
    r"timed out waiting|wait timeout|timed out after|socket timeout|collective operation timeout"
    r"|watchdog.*timeout|client socket has timed out",
    re.IGNORECASE,
)
_OF_TORCH = ("DistBackendError", "DistNetworkError", "DistStoreError")


def unanswered(error: BaseException) -> bool | None:
    """Whether an error means that another process didn't answer (True), has ended (False), or
    neither (None)."""
    if isinstance(error, RunError) or not isinstance(error, RuntimeError):
        return None
    text = str(error)
    if _UNANSWERED.search(text):
        return True
    if _CLOSED.search(text) or type(error).__name__ in _OF_TORCH:
        return False
    return None


class Ranks:
    """Watches over the other processes of a Trainer, and words their loss.

    The Trainer gets the waiting time and a launcher of ours in the place of Lightning's, whose
    observer ends the first process by SIGKILL, without a word, as soon as another has failed.
    Lightning's signal handlers stay away: they talk to other processes from inside a handler, and
    under SLURM they save and requeue in their own way.

    Args:
        trainer: about to fit.
        timeout: seconds to wait for another process's answer.
        how_to_resume: the end of every message.
    """

    def __init__(self, trainer: pl.Trainer, timeout: int, how_to_resume: str) -> None:
        self.timeout, self.how_to_resume = timeout, how_to_resume
        self.launcher: _Launcher | None = None
        self.alone = trainer.world_size == 1
        strategy: Any = trainer.strategy
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        if self.alone:
            return
        if hasattr(strategy, "_timeout"):
            strategy._timeout = timedelta(seconds=max(timeout, TO_START))
            trainer.callbacks.insert(0, _Waiting(timeout))  # type: ignore[attr-defined]
        if type(strategy.launcher) is _SubprocessScriptLauncher:
            strategy._launcher = self.launcher = _Launcher(strategy.launcher, self._ended)

    def error(self, error: BaseException) -> BaseException | None:
        """What to raise in the place of an error that came of another process's loss, else None.

        A process that Lightning started leaves the words to the first one, if that can speak:
        then it is ``SystemExit(1)``.
        """
        hung = unanswered(error)
        if hung is None or self.alone:
            return None
        if not _speaks():
            return SystemExit(1)
        if hung:
            return RunError(
                f"no answer from another process for {self.timeout} s (--timeout): it hangs, or "
                f"its machine or the network does; {self.how_to_resume}, from its last checkpoint"
            )
        return RunError(self._ended(self.launcher.loss if self.launcher else None))

    def _ended(self, who: str | None) -> str:
        """The message on a process that is gone."""
        return (
            f"{who or 'another process of the run'} has ended, so this one stopped; a message of "
            f"its own would stand above; {self.how_to_resume}, from its last checkpoint"
        )


class _Waiting(pl.Callback):
    """Sets how long answers are waited for, once all processes are there."""

    def __init__(self, timeout: int) -> None:
        self.timeout = timeout

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Set it in every process group."""
        if dist.is_available() and dist.is_initialized():
            groups = dist.distributed_c10d._world.pg_map
            for group in list(groups):
                dist.distributed_c10d._set_pg_timeout(timedelta(seconds=self.timeout), group)


class _Launcher(_SubprocessScriptLauncher):
    """Starts the other processes as Lightning does, watches them, and takes them along."""

    def __init__(
        self, plain: _SubprocessScriptLauncher, worded: Callable[[str | None], str]
    ) -> None:
        super().__init__(plain.cluster_environment, plain.num_processes, plain.num_nodes)
        self._worded = worded
        self.loss: str | None = None

    def launch(
        self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any
    ) -> Any:
        """Start the others, if that is ours to do, then call ``function``."""
        self.cluster_environment.validate_settings(
            num_devices=self.num_processes, num_nodes=self.num_nodes
        )
        if not self.cluster_environment.creates_processes_externally:
            os.environ[PARENT_VARIABLE] = str(os.getpid())
            self._call_children_scripts()
            del os.environ[PARENT_VARIABLE]
            watch = _Watch(self._look_at_children)
        else:
            watch = _Watch(_parent_watch(self._worded))
        _set_num_threads_if_needed(num_processes=self.num_processes)
        watch.start()
        try:
            done = function(*args, **kwargs)
        except BaseException as error:
            watch.stop()
            if unanswered(error) is False:
                self.loss = self._first_loss()
            self._end_children(1.0 if isinstance(error, KeyboardInterrupt) else END_AFTER_FIRST)
            raise
        watch.stop()
        return done

    def _first_loss(self) -> str | None:
        """The one of the started processes that has failed, in words."""
        deadline = time.monotonic() + 1  # its connections close before it can be waited for
        while True:
            for number, process in enumerate(self.procs, start=1):
                if process.poll():
                    return _in_words(number, self.num_processes, process)
            if not self.procs or time.monotonic() > deadline:
                return None
            time.sleep(0.05)

    def _look_at_children(self, stopped: threading.Event) -> None:
        while not stopped.wait(LOOK_EVERY):
            if any(process.poll() for process in self.procs):
                if not stopped.wait(END_ITSELF):
                    said = self._worded(self._first_loss())
                    self._kill()
                    _end_now(said)
                return

    def _end_children(self, seconds: float) -> None:
        """Let the others end, and make them after a while: one that is stopped or hangs won't."""
        deadline = time.monotonic() + seconds
        for process in self.procs:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.01, deadline - time.monotonic()))
        self._kill()

    def _kill(self) -> None:
        for process in self.procs:
            if process.poll() is None:
                process.kill()
                process.wait()


class _Watch:
    """A thread that looks until it is told to stop."""

    def __init__(self, look: Callable[[threading.Event], None]) -> None:
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=look, args=(self._stopped,), daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()


def _parent_watch(worded: Callable[[str | None], str]) -> Callable[[threading.Event], None]:
    """What a process does about the one that started it: it doesn't outlive it.

    Under torchrun the other workers live on when torchrun is gone, so the run saves before it
    ends. Where the first process of the run is gone, there is nothing to wait for.
    """
    told = os.environ.get(PARENT_VARIABLE)
    parent = int(told) if told else os.getppid()
    if told:
        _wake_when_parent_ends()
    elif "TORCHELASTIC_RUN_ID" not in os.environ:
        return lambda stopped: None

    def look(stopped: threading.Event) -> None:
        while os.getppid() == parent:
            if stopped.wait(LOOK_EVERY):
                return
        if not told:
            os.kill(os.getpid(), signal.SIGTERM)
        if not stopped.wait(END_ITSELF if told else SAVE_ITSELF):
            _end_now(worded("the process that started this one") if _is_eldest() else "")

    return look


def _wake_when_parent_ends() -> None:
    """Have a stopped process go on when its parent dies, to notice and end (Linux)."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGCONT)


def _speaks() -> bool:
    """Whether it is this process that has to say what happened; waits for the first one if not."""
    told = os.environ.get(PARENT_VARIABLE)
    if told is None:
        return True
    parent = int(told)
    time.sleep(0.5)  # a process closes its connections before it ends
    if os.getppid() != parent:
        return _is_eldest()
    deadline = time.monotonic() + 2 * END_AFTER_FIRST
    while time.monotonic() < deadline:
        if os.getppid() != parent:
            return False  # it has ended by itself, and said why
        time.sleep(0.1)
    return True


def _is_eldest() -> bool:
    """Whether this one says what there is to say when the first process is gone."""
    return os.environ.get("LOCAL_RANK") in ("0", "1")


def _in_words(number: int, count: int, process: subprocess.Popen[Any]) -> str:
    code = process.returncode
    how = f"exit code {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"
    return f"process {number + 1} of {count} ({how})"


def _end_now(message: str) -> None:
    """Say it, if there is anything to say, and end, whatever the main thread waits for."""
    if message:
        print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(1)
