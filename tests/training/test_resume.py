"""A resumed run is bitwise identical to an uninterrupted one: losses, scores, weights."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from normtrain.training import fit, resume
from normtrain.training.callbacks.metrics import read_metrics
from tools.campaigns.tiny import tiny_settings

ROOT = Path(__file__).parents[2]
CLOCKED = ("tokens_per_second", "seconds")
VARIANTS: dict[str, dict[str, Any]] = {
    "workers, accumulation": {"data_workers": 2, "optim_accumulate": 2},
    "ema, patience": {"train_ema": 0.9, "train_patience": 50, "train_best": "loss"},
    "bf16, dropouts": {
        "train_precision": "bf16-mixed",
        "model_word_dropout": 0.2,
        "model_attention_dropout": 0.2,
    },
    "seldom validated": {"train_val_every": 50},
    "muon": {"optim_name": "muon", "optim_weight_decay": 0.1, "model_tie": "none"},
}


def rows(run: Path) -> list[dict[str, str]]:
    found = read_metrics(run / "metrics.csv")
    return [{k: v for k, v in row.items() if k not in CLOCKED} for row in found]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def rewound(run: Path, step: int, to: Path) -> Path:
    """A copy of a run as a kill after the checkpoint of ``step`` would have left it."""
    shutil.copytree(run, to)
    (to / "status.json").unlink()
    for file in (to / "checkpoints").glob("step-*.ckpt"):
        if int(file.stem[5:]) > step:
            file.unlink()
    last = to / "checkpoints" / "last.ckpt"
    last.unlink()
    if step:
        shutil.copy(to / "checkpoints" / f"step-{step:08d}.ckpt", last)
    return to


def assert_same_run(whole: Path, again: Path) -> None:
    assert rows(again) == rows(whole)
    ours, theirs = weights(again), weights(whole)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


def assert_resumes(whole: Path, steps: tuple[int, ...], folder: Path) -> None:
    """Resume from the checkpoints of these steps; every run ends as the uninterrupted one."""
    losses = [row["train_loss"] for row in rows(whole) if row["train_loss"]]
    assert len(losses) == len(set(losses)) == 12
    for step in steps:
        again = rewound(whole, step, folder / f"again-{step}")
        assert resume(again) == again
        assert_same_run(whole, again)


@pytest.mark.parametrize("task", ["translation", "language"])
def test_resumed_equals_uninterrupted(task: str, trained: dict[str, Path], tmp_path: Path) -> None:
    # no checkpoint yet, one of a step without and one with a validation
    assert_resumes(trained[task], (0, 4, 5), tmp_path)


@pytest.mark.extended
@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_with_options_equals_uninterrupted(
    variant: str, tiny_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    assert_resumes(fit(tiny_recipe(**VARIANTS[variant]), out=tmp_path / "whole"), (4, 5), tmp_path)


@pytest.mark.extended
@pytest.mark.parametrize("precision", ["'32'", "bf16-true"])
def test_a_language_model_trained_with_muon_resumes_bitwise(
    precision: str, tiny_language: Callable[..., Any], tmp_path: Path
) -> None:
    settings = {"optim_name": "muon", "train_ema": 0.9, "optim_accumulate": 2}
    recipe = tiny_language(train_precision=precision, **settings)
    assert_resumes(fit(recipe, out=tmp_path / "whole"), (1, 5), tmp_path)


@pytest.mark.extended
def test_epochs_are_crossed_and_ordered_anew(
    tiny_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    run = fit(
        tiny_recipe(train_max_steps=100, train_val_every=200, train_checkpoint_every=40),
        out=tmp_path / "run",
    )
    epochs = [int(row["epoch"]) for row in rows(run) if row["epoch"]]
    assert epochs == sorted(epochs)
    assert epochs[-1] >= 2
    again = rewound(run, 80, tmp_path / "again")
    resume(again)
    assert_same_run(run, again)


@pytest.mark.extended
def test_another_seed_gives_another_run(tiny_recipe: Callable[..., Any], tmp_path: Path) -> None:
    first = fit(tiny_recipe(train_max_steps=3), out=tmp_path / "first")
    second = fit(tiny_recipe(train_max_steps=3), out=tmp_path / "second")
    other = fit(tiny_recipe(train_max_steps=3, train_seed=2), out=tmp_path / "other")
    assert rows(first) == rows(second)
    assert rows(first) != rows(other)


def start(out: Path, corpus: Path, settings: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "cli.py"), "fit", "--recipe", "envi"]
    command += ["--norm", "rmsnorm", "--data", str(corpus), "--out", str(out)]
    command += [w for s in settings for w in ("--set", s)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        if any(int(row["step"]) >= step for row in read_metrics(run / "metrics.csv")):
            return
        time.sleep(0.005)
    raise AssertionError("the run made no progress")


@pytest.fixture(scope="module")
def undisturbed(
    tiny_recipe: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, list[str]]]:
    """A run in this process, on one thread, as the processes that tests start have."""
    changes = {"train_max_steps": 150, "train_val_every": 40, "train_checkpoint_every": 20}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    yield fit(tiny_recipe(**changes), out=out), tiny_settings(**changes)
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("asked", "step", "code"),
    [
        (signal.SIGKILL, 33, -9),
        pytest.param(signal.SIGINT, 50, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 75, 130, marks=pytest.mark.slow),
    ],
)
def test_a_killed_process_resumes_bit_exactly(
    asked: signal.Signals,
    step: int,
    code: int,
    undisturbed: tuple[Path, list[str]],
    corpus_folder: Path,
    tmp_path: Path,
) -> None:
    whole, settings = undisturbed
    out = tmp_path / "run"
    process = start(out, corpus_folder, settings)
    wait_for_step(out, step, process)
    process.send_signal(asked)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == code, messages
    if code == 130:
        assert f"--resume {out}" in messages
        assert "Traceback" not in messages
    resume(out)
    assert_same_run(whole, out)
    assert not list(out.rglob("*.tmp"))
