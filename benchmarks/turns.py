"""Let several training processes take turns of a few steps, so that one works at a time.

The speed of a shared machine changes from minute to minute: whole runs one after the other are
affected differently, turns of seconds alike. A training process calls `Turn.begin_step` before
every step; `Arm` starts such a process and gives it its turns. Only the standard library is
imported, since this file runs under the interpreters of both sides.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

# They would change the arm that runs with the allocator's defaults.
ALLOCATOR_VARIABLES = ("GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_",
                       "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_", "LD_PRELOAD")  # fmt: skip


class Turn:
    """The training side: waits before a step until it is its turn.

    Args:
        warmup: steps before the first turn.
        steps: steps of a turn.
    """

    def __init__(self, warmup: int, steps: int) -> None:
        self.warmup, self.steps = warmup, steps
        self.step = self.tokens = 0
        self.start = 0.0
        self.results = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what the training prints must not mix with the results

    def begin_step(self, tokens: int, parameters: Callable[[], int]) -> None:
        """Wait for the turn; ``tokens`` are the target tokens that the step trains on."""
        done = self.step - self.warmup
        if done >= 0 and done % self.steps == 0:
            seconds = time.perf_counter() - self.start
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            found = {"tokens": self.tokens, "seconds": seconds, "peak_mib": peak}
            print(json.dumps(found | {"parameters": parameters()}), file=self.results, flush=True)
            if sys.stdin.readline() != "go\n":
                os._exit(0)  # all is measured; skip the end of the training
            self.tokens, self.start = 0, time.perf_counter()
        self.step += 1
        self.tokens += tokens


class Arm:
    """The measuring side: one process, warmed up when this returns."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        self.errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self.command = command
        self.process = subprocess.Popen(
            command, env=env, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
        )  # fmt: skip
        self._listen()

    def turn(self) -> dict[str, Any]:
        """Train a turn; return tokens, seconds, tokens per second, peak memory and parameters."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        found = self._listen()
        return found | {"rate": found["tokens"] / found["seconds"]}

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        self.errors.close()

    def _listen(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            sys.exit(f"{' '.join(self.command[1:4])} failed:\n{self.errors.read()[-3000:]}")
        return dict(json.loads(line))
