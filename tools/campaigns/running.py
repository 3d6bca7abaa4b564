"""Training runs as real processes: started, watched, killed, compared."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from normtrain.training.callbacks.metrics import read_metrics

ROOT = Path(__file__).parents[2]
MARK = "NORMTRAIN_TEST_MARK"
CLOCKED = ("tokens_per_second", "seconds")
TORCHRUN = (
    *("-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0"),
    *("--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0"),
)


class Process:
    """``python cli.py fit …``, marked in its environment, so that all of it can be found.

    Args:
        words: what follows ``fit``.
        torchrun: start two ranks by torchrun.
    """

    def __init__(self, *words: str, torchrun: bool = False, **environment: str) -> None:
        start = [sys.executable, *(TORCHRUN if torchrun else ()), str(ROOT / "cli.py"), "fit"]
        self.mark = uuid.uuid4().hex
        quiet = {
            MARK: self.mark,
            "OMP_NUM_THREADS": "1",
            "GOMP_SPINCOUNT": "0",
            "CUDA_VISIBLE_DEVICES": "",
        }
        self.popen = subprocess.Popen(
            [*start, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | quiet | {"PYTHONPATH": str(ROOT), MARK: self.mark} | environment,
        )
        self.pid = self.popen.pid

    def living(self) -> dict[int, dict[str, str]]:
        """Its processes that run, stopped ones too: environment by number."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            with contextlib.suppress(OSError):
                pairs = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
                values = dict(p.split("=", 1) for p in pairs if "=" in p)
                if values.get(MARK) == self.mark:
                    found[int(entry.name)] = values
        return found

    def ranks(self) -> list[int]:
        """The processes that train, in rank order; without the first one until others are there."""
        living = self.living()
        found: dict[int, int] = {}
        for pid in sorted(living, key=_started):
            number = living[pid].get("LOCAL_RANK")
            if number is not None and _parent(pid) == self.pid:
                found.setdefault(int(number), pid)
        if found and 0 not in found:  # Lightning's first process is the command itself
            found[0] = self.pid
        return [found[number] for number in sorted(found)]

    def rank(self, number: int) -> int:
        """The process that trains as a rank."""
        return self.ranks()[number]

    def workers(self) -> list[int]:
        """The processes that load data: started by one that trains."""
        train = set(self.ranks()) or {self.pid}
        others = [p for p in self.living() if p not in train | {self.pid} and _parent(p) in train]
        return [p for p in others if "tracker" not in _command(p)]

    def end(self, seconds: float = 120) -> tuple[int, str, str]:
        """Wait for the end: exit code, stdout, stderr."""
        out, err = self.popen.communicate(timeout=seconds)
        return self.popen.returncode, out, err

    def left_behind(self, seconds: float = 15) -> list[int]:
        """Processes that are there although the first has ended, after some time to end too."""
        deadline = time.monotonic() + seconds
        while (left := list(self.living())) and time.monotonic() < deadline:
            time.sleep(0.05)
        return left

    def kill_all(self) -> None:
        """SIGKILL to everything."""
        for pid in self.living():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def _stat(pid: int) -> list[str]:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _command(pid: int) -> str:
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_text()
    except OSError:
        return ""


def _parent(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[1]) if fields else 0


def _started(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[19]) if fields else 0


@contextlib.contextmanager
def running(*words: str, torchrun: bool = False, **environment: str) -> Iterator[Process]:
    """A process of which nothing is left at the end, whatever happens."""
    process = Process(*words, torchrun=torchrun, **environment)
    try:
        yield process
    finally:
        process.kill_all()
        process.popen.wait()


def steps(run: Path) -> int:
    """The newest step in a run's metrics; -1 where there is none."""
    with contextlib.suppress(ValueError):  # a row in the making
        return max((int(row["step"]) for row in read_metrics(run / "metrics.csv")), default=-1)
    return -1


def wait_for_step(run: Path, step: int, process: Process, seconds: float = 120) -> None:
    """Until a step is reported."""
    deadline = time.monotonic() + seconds
    while steps(run) < step:
        assert process.popen.poll() is None, process.popen.communicate()
        assert time.monotonic() < deadline, "the run made no progress"
        time.sleep(0.01)


def rows(run: Path) -> list[dict[str, str]]:
    """A run's metrics without what a clock measured."""
    found = read_metrics(run / "metrics.csv")
    return [{k: v for k, v in row.items() if k not in CLOCKED} for row in found]


def differences(whole: Any, again: Any, name: str = "") -> list[str]:
    """Where two checkpoints differ: every tensor's bits, every plain value but the clock's."""
    if isinstance(whole, torch.Tensor):
        same = isinstance(again, torch.Tensor) and whole.dtype == again.dtype
        same = same and whole.shape == again.shape and torch.equal(whole, again)
        return [] if same else [name]
    if isinstance(whole, dict) and isinstance(again, dict):
        if whole.keys() != again.keys():
            return [f"{name}: keys"]
        keys = [k for k in whole if k not in ("seconds", "timeout", "strategy")]
        return [d for k in keys for d in differences(whole[k], again[k], f"{name}.{k}")]
    if isinstance(whole, (list, tuple)) and isinstance(again, (list, tuple)):
        if len(whole) != len(again):
            return [f"{name}: length"]
        pairs = enumerate(zip(whole, again, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{name}.{i}")]
    return [] if whole == again else [f"{name}: {whole!r} / {again!r}"]


def last(run: Path) -> dict[str, Any]:
    """A run's last checkpoint."""
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def compared(whole: Path, again: Path) -> list[str]:
    """Where two finished runs differ: metrics, weights, optimizer, random state, counts."""
    found = [] if rows(whole) == rows(again) else ["metrics.csv"]
    return found + differences(last(whole), last(again))
