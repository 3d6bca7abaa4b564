"""Runs ``normtrain`` commands on several CPU ranks, started as torchrun starts them.

Importing takes most of a short run's time, so this script imports once and forks a process for
each rank of each job. Usage: ``forked.py JOBS`` with a file that holds a JSON list of jobs,
``{"ranks": 2, "words": ["fit", …], "log": "path", "slurm": false}``, the last for processes started
as SLURM starts them; prints the list of exit codes, a list a job.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SECONDS = 120


def on_ranks(jobs: list[dict[str, Any]], folder: Path) -> list[list[int]]:
    """Run jobs one after the other; the exit codes of each one's ranks."""
    file = folder / "jobs.json"
    file.write_text(json.dumps(jobs), encoding="utf-8")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, __file__, str(file)], capture_output=True, text=True, env=environment,
        timeout=60 + SECONDS * len(jobs), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _rank(rank: int, job: dict[str, Any], port: int) -> None:
    mine, world = str(rank), str(job["ranks"])
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    if job.get("slurm"):
        os.environ.update(
            SLURM_JOB_ID="7", SLURM_JOB_NAME="train", SLURM_NTASKS=world, SLURM_PROCID=mine,
            SLURM_LOCALID=mine, SLURM_NODEID="0", SLURM_NODELIST="127.0.0.1",
            SLURM_NTASKS_PER_NODE=world,
        )  # fmt: skip
    else:
        os.environ.update(
            RANK=mine, LOCAL_RANK=mine, WORLD_SIZE=world, LOCAL_WORLD_SIZE=world,
            GROUP_RANK="0", TORCHELASTIC_RUN_ID="x",
        )  # fmt: skip
    log = os.open(f"{job['log']}.{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    from normtrain.cli import main

    sys.argv = ["normtrain", *job["words"]]
    code: Any = 1
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(code))


def _run(job: dict[str, Any]) -> list[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(job["ranks"]):
        if (child := os.fork()) == 0:
            _rank(rank, job, port)
        children.append(child)
    codes: dict[int, int] = {}
    deadline = time.monotonic() + SECONDS
    while len(codes) < len(children):
        for child in set(children) - set(codes):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                codes[child] = os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            for child in set(children) - set(codes):
                os.kill(child, 9)
        time.sleep(0.05)
    return [codes[child] for child in children]


if __name__ == "__main__":
    import datasets  # noqa: F401
    import pytorch_lightning  # noqa: F401

    import normtrain.training  # noqa: F401

    print(json.dumps([_run(job) for job in json.loads(Path(sys.argv[1]).read_text())]))
