"""The training loop: what stops it, what it says, and two ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from normtrain.callbacks.metrics import read_metrics
from normtrain.errors import RunError
from normtrain.models import build_model
from normtrain.run import describe, fit, resume
from normtrain.run.machine import keep_freed_memory, resolve_precision
from normtrain.tasks import translation

ROOT = Path(__file__).parents[2]


def test_out_of_memory_names_the_shape_and_the_setting(
    tiny_recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(translation, "training_loss", no_memory)
    with pytest.raises(RunError, match=r"source \(\d+, \d+\).*lower data.max_tokens \(now 60\)"):
        fit(tiny_recipe(), out=tmp_path / "run")


def test_a_loss_that_is_no_number_stops_before_it_is_saved(
    tiny_recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = translation.training_loss, []

    def broken(*args: Any) -> torch.Tensor:
        calls.append(1)
        return real(*args) * (float("nan") if len(calls) > 7 else 1.0)

    monkeypatch.setattr(translation, "training_loss", broken)
    with pytest.raises(RunError, match=r"the loss is nan at step 8.*optim.lr"):
        fit(tiny_recipe(), out=tmp_path / "run")
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 7
    assert all(torch.isfinite(v).all() for v in last["state_dict"].values())
    monkeypatch.setattr(translation, "training_loss", real)
    resume(tmp_path / "run")
    assert read_metrics(tmp_path / "run" / "metrics.csv")[-1]["step"] == "12"


def test_patience_stops_early_and_the_run_counts_as_finished(
    tiny_recipe: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A learning rate of next to nothing: BLEU stays as it is.
    recipe = tiny_recipe(
        train_max_steps=40, train_val_every=2, train_patience=2, optim_lr=1e-12, train_best="bleu"
    )
    run = fit(recipe, out=tmp_path / "run")
    steps = [int(row["step"]) for row in read_metrics(run / "metrics.csv")]
    assert steps[-1] == 6
    resume(run)
    assert "nothing to do" in capsys.readouterr().err


def test_progress_goes_to_stderr_and_samples_are_shown(
    tiny_recipe: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tiny_recipe(), out=tmp_path / "run")
    out, err = capsys.readouterr()
    assert out == ""
    for words in ("tokens/s", "left", "validation loss", "BLEU", "reference", "parameters"):
        assert words in err
    assert "\x1b" not in err


@pytest.mark.parametrize("change", [{"optim_clip": 0}, {"optim_clip": 0.01}])
def test_clipping_bounds_the_update_and_0_turns_it_off(
    change: dict[str, Any], tiny_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    run = fit(tiny_recipe(train_max_steps=3, **change), out=tmp_path / "run")
    norms = [float(r["gradient_norm"]) for r in read_metrics(run / "metrics.csv") if r["epoch"]]
    assert min(norms) > 0.01  # the norm before clipping is what is reported
    plain = fit(tiny_recipe(train_max_steps=3, optim_clip=1e9), out=tmp_path / "plain")
    losses = [
        [r["train_loss"] for r in read_metrics(path / "metrics.csv") if r["epoch"]]
        for path in (run, plain)
    ]
    assert (losses[0] == losses[1]) == (change["optim_clip"] == 0)


def test_accumulation_takes_as_many_batches_to_an_update(
    tiny_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    tokens = {}
    for accumulate in (1, 3):
        recipe = tiny_recipe(train_max_steps=4, optim_accumulate=accumulate)
        run = fit(recipe, out=tmp_path / str(accumulate))
        tokens[accumulate] = int(read_metrics(run / "metrics.csv")[-2]["tokens"])
    assert tokens[3] > 2 * tokens[1]


def test_describe_counts_the_parameters_of_the_model(tiny_recipe: Callable[..., Any]) -> None:
    recipe = tiny_recipe(norm="layernorm")
    model = build_model(recipe.model, recipe.data.vocab_size)
    text = describe(recipe)
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in text
    assert "7 × layernorm" in text


def test_precision_auto_says_why() -> None:
    precision, reason = resolve_precision("auto")
    assert precision in ("32-true", "bf16-mixed")
    assert reason
    assert resolve_precision("32")[0] == "32-true"
    assert resolve_precision("bf16-true")[0] == "bf16-true"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's setting")
def test_freed_memory_is_kept_on_linux() -> None:
    assert keep_freed_memory()


def test_two_ranks_train_one_model_and_see_every_pair(corpus_folder: Path, tmp_path: Path) -> None:
    from conftest import tiny_settings

    settings = tiny_settings(train_max_steps=10, train_val_every=5)
    command = [sys.executable, str(ROOT / "cli.py"), "fit", "--recipe", "envi"]
    command += ["--data", str(corpus_folder), "--out", str(tmp_path / "run")]
    command += ["--devices", "2", "--strategy", "ddp"]
    command += [word for setting in settings for word in ("--set", setting)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=250)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'run'}\n"
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    assert [row["step"] for row in rows if row["epoch"]] == [str(i) for i in range(1, 11)]
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 10
    assert len(last["random_state"]) == 2
