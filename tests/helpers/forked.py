"""Run ``normtrain`` commands on several CPU ranks, started as torchrun starts them.

Importing takes most of a short run's time, so a server imports once and forks a process for each
rank of each job. A job is ``{"ranks": 2, "words": ["fit", …], "log": "path", "slurm": false}``, the
last for processes started as SLURM starts them. The server reads a list of jobs per line of stdin
and prints the exit codes, a list per job.
"""

import functools
import json
import os
import socket
import subprocess
import sys
import time
from typing import Any

SECONDS = 120


@functools.cache
def _server() -> subprocess.Popen[str]:
    """Start the server; it ends when this process does."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


def on_ranks(jobs: list[dict[str, Any]]) -> list[list[int]]:
    """Run jobs one after the other and return the exit codes of each one's ranks."""
    server = _server()
    print(json.dumps(jobs), file=server.stdin, flush=True)
    return json.loads(server.stdout.readline())


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
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
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
    import sacrebleu  # noqa: F401
    import torch.distributed.fsdp
    import torch.utils.tensorboard  # noqa: F401

    import normtrain.cli
    import normtrain.tasks.language.data
    import normtrain.tasks.language.module
    import normtrain.tasks.translation.data
    import normtrain.tasks.translation.module
    import normtrain.training  # noqa: F401

    for line in sys.stdin:
        print(json.dumps([_run(job) for job in json.loads(line)]), flush=True)
