"""Detect ranks that have ended or hang, report it once, and end the remaining processes."""

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
"""Environment variable with the process id of the rank that started this one."""

POLL_SECONDS = 0.3
# A rank whose peer closed its connections ends by itself within the first; then the ranks that it
# started have the second.
END_ITSELF, END_AFTER_FIRST = 20.0, 10.0
# A worker that outlives torchrun saves first.
SAVE_ITSELF = 120.0
# Ranks start at different speeds, so --timeout applies only once all run.
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
    """Return whether an error means that another rank hangs (True), has ended (False), or neither.

    Neither is None.
    """
    if isinstance(error, RunError) or not isinstance(error, RuntimeError):
        return None
    text = str(error)
    if _UNANSWERED.search(text):
        return True
    if _CLOSED.search(text) or type(error).__name__ in _OF_TORCH:
        return False
    return None


class Ranks:
    """Watches the other ranks of a Trainer and explains errors that come from losing one.

    Sets the Trainer's timeout and replaces Lightning's launcher, whose observer kills the first
    rank with SIGKILL and no message as soon as another fails. Lightning's signal handlers are
    turned off: they communicate with other ranks inside a handler, and under SLURM they save and
    requeue by themselves.

    Args:
        trainer: before it fits.
        timeout: seconds to wait for another rank.
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
            trainer.callbacks.insert(0, _SetTimeout(timeout))  # type: ignore[attr-defined]
        if type(strategy.launcher) is _SubprocessScriptLauncher:
            strategy._launcher = self.launcher = _Launcher(strategy.launcher, self._ended)

    def error(self, error: BaseException) -> BaseException | None:
        """Return the error to raise instead of one that comes from losing another rank, else None.

        In a rank that Lightning started it is ``SystemExit(1)`` if the first rank can report.
        """
        hung = unanswered(error)
        if hung is None or self.alone:
            return None
        if not _reports():
            return SystemExit(1)
        if hung:
            return RunError(
                f"no answer from another process for {self.timeout} s (--timeout): it hangs, or "
                f"its machine or network failed; {self.how_to_resume}, from its last checkpoint"
            )
        return RunError(self._ended(self.launcher.loss if self.launcher else None))

    def _ended(self, who: str | None) -> str:
        """Return the message on a rank that has ended."""
        return (
            f"{who or 'another process of the run'} has ended, so this one stopped (see its "
            f"message above, if any); {self.how_to_resume}, from its last checkpoint"
        )


class _SetTimeout(pl.Callback):
    """Sets the timeout of all process groups once every rank runs."""

    def __init__(self, timeout: int) -> None:
        self.timeout = timeout

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Set the timeout."""
        if dist.is_available() and dist.is_initialized():
            groups = dist.distributed_c10d._world.pg_map
            for group in list(groups):
                dist.distributed_c10d._set_pg_timeout(timedelta(seconds=self.timeout), group)


class _Launcher(_SubprocessScriptLauncher):
    """Starts the other ranks as Lightning does, watches them, and ends them with this one."""

    def __init__(
        self, plain: _SubprocessScriptLauncher, message_of: Callable[[str | None], str]
    ) -> None:
        super().__init__(plain.cluster_environment, plain.num_processes, plain.num_nodes)
        self._message = message_of
        self.loss: str | None = None

    def launch(
        self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any
    ) -> Any:
        """Start the other ranks, unless a launcher such as torchrun has, then call ``function``."""
        self.cluster_environment.validate_settings(
            num_devices=self.num_processes, num_nodes=self.num_nodes
        )
        if not self.cluster_environment.creates_processes_externally:
            os.environ[PARENT_VARIABLE] = str(os.getpid())
            self._call_children_scripts()
            del os.environ[PARENT_VARIABLE]
            watch = _Watch(self._watch_children)
        else:
            watch = _Watch(_parent_watch(self._message))
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
        """Describe the started rank that failed first; None if none has within a second."""
        deadline = time.monotonic() + 1  # its connections close before it can be waited for
        while True:
            for number, process in enumerate(self.procs, start=1):
                if process.poll():
                    return _describe_exit(number, self.num_processes, process)
            if not self.procs or time.monotonic() > deadline:
                return None
            time.sleep(0.05)

    def _watch_children(self, stopped: threading.Event) -> None:
        while not stopped.wait(POLL_SECONDS):
            if any(process.poll() for process in self.procs):
                if not stopped.wait(END_ITSELF):
                    said = self._message(self._first_loss())
                    self._kill()
                    _exit_now(said)
                return

    def _end_children(self, seconds: float) -> None:
        """Wait for the started ranks to end, then kill those that are stopped or hang."""
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
    """A thread that runs ``look`` until it is stopped."""

    def __init__(self, look: Callable[[threading.Event], None]) -> None:
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=look, args=(self._stopped,), daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()


def _parent_watch(message_of: Callable[[str | None], str]) -> Callable[[threading.Event], None]:
    """Return what ends this process after the one that started it has ended.

    When torchrun ends, its workers can still communicate, so the run saves first. When the first
    rank ends, there is nothing to wait for.
    """
    told = os.environ.get(PARENT_VARIABLE)
    parent = int(told) if told else os.getppid()
    if told:
        _wake_when_parent_ends()
    elif "TORCHELASTIC_RUN_ID" not in os.environ:
        return lambda stopped: None

    def look(stopped: threading.Event) -> None:
        while os.getppid() == parent:
            if stopped.wait(POLL_SECONDS):
                return
        if not told:
            os.kill(os.getpid(), signal.SIGTERM)
        if not stopped.wait(END_ITSELF if told else SAVE_ITSELF):
            _exit_now(
                message_of("the process that started this one") if _reports_for_parent() else ""
            )

    return look


def _wake_when_parent_ends() -> None:
    """Continue this process, if stopped, when its parent dies, so that it can end (Linux)."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGCONT)


def _reports() -> bool:
    """Return whether this process reports the error; if not, wait for the first rank to end."""
    told = os.environ.get(PARENT_VARIABLE)
    if told is None:
        return True
    parent = int(told)
    time.sleep(0.5)  # a process closes its connections before it ends
    if os.getppid() != parent:
        return _reports_for_parent()
    deadline = time.monotonic() + 2 * END_AFTER_FIRST
    while time.monotonic() < deadline:
        if os.getppid() != parent:
            return False  # it has ended by itself, with a message
        time.sleep(0.1)
    return True


def _reports_for_parent() -> bool:
    """Return whether this process reports when the first rank has ended."""
    return os.environ.get("LOCAL_RANK") in ("0", "1")


def _describe_exit(number: int, count: int, process: subprocess.Popen[Any]) -> str:
    code = process.returncode
    how = f"exit code {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"
    return f"process {number + 1} of {count} ({how})"


def _exit_now(message: str) -> None:
    """Print the message, if any, and exit at once, whatever the main thread waits for."""
    if message:
        print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(1)
