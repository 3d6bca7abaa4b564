"""Unusable folders and full disks: the message, and what is left on disk."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from conftest import assert_failure, assert_misuse, assert_nothing_left, fit_words

from normtrain.training.callbacks.checkpoints import RunCheckpoints
from normtrain.training.callbacks.metrics import read_metrics

Command = Callable[..., Result]
ROOT = Path(__file__).parents[2]


def test_out_onto_something_that_is_there(
    command: Command, copy: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    result = command(*fit_words(corpus_folder, copy))
    assert_misuse(result, "already holds a run", f"--resume {copy}")
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before
    result = command(*fit_words(corpus_folder, corpus_folder))
    assert_misuse(result, "--out must be a new or empty folder")
    (tmp_path / "file").write_text("mine")
    assert_misuse(command(*fit_words(corpus_folder, tmp_path / "file")), "is a file")
    assert (tmp_path / "file").read_text() == "mine"


def test_an_unwritable_place(command: Command, corpus_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file" / "run", Path("/proc/run")):
        assert_failure(command(*fit_words(corpus_folder, out)), f"run folder {out}", "--out")
    assert (tmp_path / "file").read_text() == "mine"


def test_exports_and_averages_into_an_unwritable_place(
    command: Command, learned: dict[str, Path], tmp_path: Path
) -> None:
    run = learned["plain"]
    (tmp_path / "file").write_text("mine")
    below = tmp_path / "file" / "more"
    assert_failure(command("export", run, below), str(below))
    assert_failure(command("average", run, "--last", 2, "-o", below), str(below))
    assert_misuse(command("average", run, "--last", 2, "-o", tmp_path), str(tmp_path))
    assert_misuse(command("average", run, "--last", 99, "-o", "mean"), "has 4 numbered")
    assert_nothing_left(tmp_path / "here")


@contextlib.contextmanager
def small_files(limit: int) -> Iterator[None]:
    """Writing beyond ``limit`` bytes fails in the system, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def disk_fills_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """From this step on no checkpoint fits on the disk any more."""
    save = RunCheckpoints.save

    def limited(step: int) -> None:
        def save_or_fail(self: RunCheckpoints, trainer: Any) -> Path:
            if trainer.global_step < step:
                return save(self, trainer)
            with small_files(20_000):
                return save(self, trainer)

        monkeypatch.setattr(RunCheckpoints, "save", save_or_fail)

    return limited


@pytest.mark.extended
@pytest.mark.parametrize("step", [1, 5])  # the first one; one that is validated too
def test_a_full_disk(
    step: int,
    command: Command,
    disk_fills_at: Callable[[int], None],
    corpus_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tmp_path / "run"
    words = fit_words(corpus_folder, run, train_max_steps=7)
    disk_fills_at(step)
    assert_failure(command(*words), "could not write", f"step-0000000{step}.ckpt", "--resume")
    files = {path.name for path in (run / "checkpoints").iterdir()}
    expected = {f"step-0000000{i}.ckpt" for i in range(1, step)}
    assert files == (expected | {"last.ckpt"} if expected else set())
    assert not list(run.rglob("*.tmp"))
    if expected:
        last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
        assert last["global_step"] == step - 1
    monkeypatch.undo()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    resumed = command("fit", "--resume", run)
    assert resumed.exit_code == 0, resumed.stderr
    assert [int(row["step"]) for row in read_metrics(run / "metrics.csv") if row["epoch"]] == [
        *range(1, 8)
    ]


@pytest.mark.extended
def test_a_full_disk_from_the_start(command: Command, corpus_folder: Path, tmp_path: Path) -> None:
    command(*fit_words(corpus_folder, tmp_path / "warm", train_max_steps=1))  # fills the cache
    with small_files(0):
        result = command(*fit_words(corpus_folder, tmp_path / "run"))
    assert_failure(result, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_full_disk_while_exporting_and_averaging(
    command: Command, learned: dict[str, Path], tmp_path: Path
) -> None:
    run = learned["plain"]
    with small_files(20_000):
        assert_failure(command("export", run, "made"), "could not write made")
        assert_failure(command("average", run, "--last", 2, "-o", "mean"), "could not write mean")
    assert_nothing_left(tmp_path / "here")


@pytest.mark.extended
def test_two_runs_in_one_folder(command: Command, corpus_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = fit_words(corpus_folder, run, train_max_steps=100_000, train_keep=2)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "cli.py"), *words],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        deadline = time.monotonic() + 100
        while not (run / "checkpoints" / "last.ckpt").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        held = f"{run} is in use by another run (process {process.pid})"
        second = command("fit", "--resume", run)
        assert_misuse(second, held)
        assert_misuse(command(*words), "already holds a run")
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGTERM)
        _, messages = process.communicate(timeout=60)
    assert process.returncode == 130, messages
    steps = [int(row["step"]) for row in read_metrics(run / "metrics.csv") if row["epoch"]]
    assert steps == list(range(1, len(steps) + 1))
