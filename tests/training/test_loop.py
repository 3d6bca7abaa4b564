"""The training loop: what stops it, and what it logs."""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from normtrain.config.recipe import override
from normtrain.errors import RunError
from normtrain.models import build_model
from normtrain.models.token_ids import PAD
from normtrain.tasks.translation import module as translation
from normtrain.tasks.translation.data import TranslationData
from normtrain.tasks.translation.tokenizer import Tokenizer
from normtrain.training import Interrupted, describe, fit, resume
from normtrain.training.callbacks.metrics import read_metrics
from normtrain.training.machine import keep_freed_memory, resolve_precision

ROOT = Path(__file__).parents[2]


def test_out_of_memory_names_the_shape_and_the_setting(
    tiny_recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*args: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(translation, "training_loss", no_memory)
    with pytest.raises(RunError, match=r"source \(\d+, \d+\).*lower data.max_tokens \(now 60\)"):
        fit(tiny_recipe(), out=tmp_path / "run")


def test_a_nan_loss_stops_before_it_is_saved(
    tiny_recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = translation.training_loss, []

    def broken(*args: Any, **options: Any) -> torch.Tensor:
        calls.append(1)
        return real(*args, **options) * (float("nan") if len(calls) > 7 else 1.0)

    monkeypatch.setattr(translation, "training_loss", broken)
    with pytest.raises(RunError, match=r"the loss is nan at step 8.*optim.lr"):
        fit(tiny_recipe(), out=tmp_path / "run")
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 7
    assert all(torch.isfinite(v).all() for v in last["state_dict"].values())
    monkeypatch.setattr(translation, "training_loss", real)
    resume(tmp_path / "run")
    assert read_metrics(tmp_path / "run" / "metrics.csv")[-1]["step"] == "12"


@pytest.mark.extended
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


@pytest.mark.extended
@pytest.mark.parametrize("change", [{"optim_clip": 0}, {"optim_clip": 0.01}])
def test_clipping_bounds_the_step_and_0_turns_it_off(
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


def test_describe_counts_the_parameters_of_the_model(tiny_recipe: Callable[..., Any]) -> None:
    recipe = tiny_recipe(norm="layernorm")
    model = build_model(recipe.model, recipe.data.vocab_size)
    text = describe(recipe)
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in text
    assert "7 × layernorm" in text


def test_precision_auto_gives_its_reason() -> None:
    precision, reason = resolve_precision("auto")
    assert precision in ("32-true", "bf16-mixed")
    assert reason
    assert resolve_precision("32")[0] == "32-true"
    assert resolve_precision("bf16-true")[0] == "bf16-true"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's setting")
def test_freed_memory_is_kept_on_linux() -> None:
    assert keep_freed_memory()


@pytest.mark.extended
def test_accumulated_batches_weigh_by_their_tokens(
    tiny_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    """Loss, gradient and tokens of the step are those of all batches as if they were one."""
    changes = {"train_max_steps": 1, "optim_warmup_steps": 0, "model_dropout": 0}
    recipe = tiny_recipe(optim_accumulate=5, **changes)
    row = read_metrics(fit(recipe, out=tmp_path / "run") / "metrics.csv")[0]
    data = TranslationData(recipe.data, seed=recipe.train.seed, total_batches=5)
    data.trainer = SimpleNamespace(global_rank=0, world_size=1)  # type: ignore[assignment]
    batches = list(data.train_dataloader())
    counts = [int((batch["target_out"] != PAD).sum()) for batch in batches]
    assert len(set(counts)) > 1
    pl.seed_everything(recipe.train.seed, verbose=False)
    tokenizer = (tmp_path / "run" / "tokenizer.json").read_text(encoding="utf-8")
    model = build_model(recipe.model, Tokenizer.from_json(tokenizer).vocab_size)
    total = torch.zeros(())
    for batch in batches:
        total = total + torch.nn.functional.cross_entropy(
            model(batch["source"], batch["target_in"]).flatten(0, 1),
            batch["target_out"].flatten(),
            ignore_index=PAD,
            label_smoothing=recipe.optim.label_smoothing,
            reduction="sum",
        )
    loss = total / sum(counts)
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert float(row["train_loss"]) == pytest.approx(loss.item(), rel=1e-5)
    assert float(row["gradient_norm"]) == pytest.approx(float(gradient.norm()), rel=1e-4)
    assert int(row["tokens"]) == sum(counts)


def test_fewer_pairs_than_ranks_is_refused_before_anything_is_written(
    tiny_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="12 pairs, too few for 13 processes"):
        fit(tiny_recipe(), out=tmp_path / "run", devices=13)
    assert not (tmp_path / "run").exists()


@pytest.mark.extended
def test_text_that_changed_is_refused_on_resume(
    tiny_recipe: Callable[..., Any], corpus_folder: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text"
    shutil.copytree(corpus_folder, text)
    recipe = override(tiny_recipe(), [f"data.source={text}"])
    run = fit(recipe, out=tmp_path / "run")
    (run / "status.json").unlink()
    lines = (text / "train.vi").read_text(encoding="utf-8").splitlines()
    (text / "train.vi").write_text("\n".join(lines[::-1]) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="not what .* was trained on"):
        resume(run)


@pytest.mark.extended
def test_a_second_ctrl_c_stops_at_once_and_says_how_to_resume(
    tiny_recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = translation.training_loss, []

    def twice(*args: Any, **options: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return real(*args, **options)

    monkeypatch.setattr(translation, "training_loss", twice)
    with pytest.raises(Interrupted, match=r"at once, without saving; resume with: .*--resume"):
        fit(tiny_recipe(), out=tmp_path / "run")
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 2
