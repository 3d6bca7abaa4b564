"""Several processes train one model: the language task, and a pretrained start."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from conftest import TINY_TEXT, tiny_settings
from test_loop import numbers, on_two_ranks

from normtrain.run import evaluate, export, fit


def test_two_ranks_fine_tune_a_language_model_and_resume(
    tiny_language: Callable[..., Any], text_folder: Path, tmp_path: Path
) -> None:
    begun, changes = tmp_path / "begun", {"train_max_steps": 10, "train_val_every": 5}
    export(fit(tiny_language(), out=tmp_path / "first"), begun)
    settings = tiny_settings(TINY_TEXT, model_dropout=0.2, **changes)
    words = [word for setting in settings for word in ("--set", setting)]
    run = tmp_path / "run"
    on_two_ranks(
        run, "--recipe", "lm", "--data", str(text_folder), "--init-from", str(begun),
        "--norm", "rmsnorm", "--out", str(run), "--devices", "2", "--strategy", "ddp", *words,
    )  # fmt: skip
    rows = numbers(run)
    assert [row["step"] for row in rows if row["epoch"]] == [str(i) for i in range(1, 11)]
    assert {row["tokens"] for row in rows[:1]} == {"128"}  # 64 of each rank
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["normtrain"]["init"]["from"] == "begun"
    # Every window of the validation split counts once, whichever rank had it.
    whole = evaluate(run / "checkpoints" / "last.ckpt", split="valid")
    assert abs(float(rows[-1]["val_loss"]) - whole["loss"]) < 1e-6
    shutil.rmtree(begun)
    again = tmp_path / "again"
    shutil.copytree(run, again)
    (again / "status.json").unlink()
    shutil.copy(again / "checkpoints" / "step-00000004.ckpt", again / "checkpoints" / "last.ckpt")
    on_two_ranks(again, "--resume", str(again))
    assert numbers(again) == rows
    resumed = torch.load(again / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(v, resumed[k]) for k, v in last["state_dict"].items())
