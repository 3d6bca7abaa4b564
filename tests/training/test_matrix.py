"""Every norm × every shipped recipe: trains, resumes bit for bit, and is evaluated."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from normtrain.config import bundled as shipped
from normtrain.config import recipe as recipes
from normtrain.norms import norm_names
from normtrain.training import evaluate, fit, read_checkpoint, resume
from normtrain.training.callbacks.metrics import read_metrics

# Only sizes shrink: dropouts, placement, QK-norm, schedule, precision, workers stay the recipe's.
SIZES = {
    "data.revision": "null",
    "model.d_ff": 48,
    "optim.warmup_steps": 2,
    "train.max_steps": 6,
    "train.val_every": 3,
    "train.checkpoint_every": 2,
    "train.keep": 10,
    "train.log_every": 1,
    "decode.max_length": 12,
}
TASK_SIZES: dict[str, dict[str, object]] = {
    "translation": {
        "data.max_tokens": 240,
        "data.vocab_size": 420,
        "model.d_model": 32,
        "model.encoder_layers": 1,
        "model.decoder_layers": 2,
    },
    "language": {
        "data.window": 16,
        "data.max_tokens": 64,
        "model.d_model": 48,
        "model.layers": 2,
        "model.max_positions": 64,
        "optim.accumulate": 2,
    },
}
SHRUNK = {key.partition(".")[2] for part in (SIZES, *TASK_SIZES.values()) for key in part}
SHRUNK |= {"source"}
CLOCKED = ("tokens_per_second", "seconds")
CASES = pytest.mark.parametrize(
    ("name", "norm"), [(name, norm) for name in shipped.names() for norm in norm_names()]
)
Trained = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def corpora(corpus_folder: Path, text_folder: Path) -> dict[str, Path]:
    """A corpus for each task."""
    return {"translation": corpus_folder, "language": text_folder}


def shrunk(name: str, norm: str, corpora: dict[str, Path]) -> Any:
    whole: Any = recipes.load(name)
    sizes = SIZES | TASK_SIZES[whole.task]
    if whole.task == "language" and whole.data.tokenizer == "bpe":
        sizes["data.vocab_size"] = 300
    settings = [f"{key}={value}" for key, value in sizes.items()]
    return recipes.resolve(name, norm=norm, data=str(corpora[whole.task]), overrides=settings)


@pytest.fixture(scope="module")
def trained(corpora: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Trains a recipe with a norm, once."""
    folder = tmp_path_factory.mktemp("matrix")

    @cache
    def run(name: str, norm: str) -> Path:
        return fit(shrunk(name, norm, corpora), out=folder / f"{name}-{norm}")

    return run


def rows(run: Path) -> list[dict[str, str]]:
    found = read_metrics(run / "metrics.csv")
    return [{k: v for k, v in row.items() if k not in CLOCKED} for row in found]


@pytest.mark.parametrize("name", shipped.names())
def test_only_sizes_are_shrunk(name: str, corpora: dict[str, Path]) -> None:
    whole = recipes.load(name)
    changed = recipes.diff(whole, shrunk(name, whole.model.norm, corpora))
    assert {line.partition(":")[0].partition(".")[2] for line in changed} <= SHRUNK


@CASES
def test_fit(name: str, norm: str, trained: Trained) -> None:
    run = trained(name, norm)
    losses = [float(row["train_loss"]) for row in rows(run) if row["train_loss"]]
    score = {"translation": "val_bleu", "language": "val_perplexity"}[recipes.load(name).task]
    scores = [row[score] for row in rows(run) if row[score]]
    assert (len(losses), len(set(losses)), len(scores)) == (6, 6, 2)
    assert all(0 < loss < float("inf") for loss in losses)
    last = read_checkpoint(run / "checkpoints" / "last.ckpt")
    assert last.step == 6
    assert set(last.raw["normtrain"]["norms"].values()) >= {norm}
    start = torch.load(run / "checkpoints" / "step-00000002.ckpt", weights_only=True)
    still = [k for k, v in last.raw["state_dict"].items() if torch.equal(v, start["state_dict"][k])]
    assert not still, f"these weights never learn: {still}"


@CASES
def test_resume(name: str, norm: str, trained: Trained, tmp_path: Path) -> None:
    whole = trained(name, norm)
    again = shutil.copytree(whole, tmp_path / "again")
    checkpoints = again / "checkpoints"
    (again / "status.json").unlink()
    for file in (*checkpoints.glob("step-0000000[346].ckpt"), checkpoints / "last.ckpt"):
        file.unlink()
    shutil.copy(checkpoints / "step-00000002.ckpt", checkpoints / "last.ckpt")
    resume(again)
    assert rows(again) == rows(whole)
    theirs, ours = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (whole, again)
    )
    assert theirs["state_dict"].keys() == ours["state_dict"].keys()
    for key, tensor in theirs["state_dict"].items():
        assert torch.equal(tensor, ours["state_dict"][key]), key
    moments, same = (c["optimizer_states"][0]["state"] for c in (theirs, ours))
    assert moments.keys() == same.keys()
    for key, state in moments.items():
        assert torch.equal(state["exp_avg_sq"], same[key]["exp_avg_sq"]), key


@CASES
def test_evaluate(
    name: str, norm: str, trained: Trained, corpus_folder: Path, tmp_path: Path
) -> None:
    run: Any = shutil.copytree(trained(name, norm), tmp_path / "run")
    result = evaluate(run, split="test")
    written = json.loads((run / "evaluation-test.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(result))
    assert (written["norm"], written["split"]) == (norm, "test")
    whole: Any = recipes.load(name)
    if whole.task == "language":
        assert 1 < written["perplexity"] < 1000
        return
    assert (written["sentences"], written["beam"]) == (10, whole.decode.beam)
    lines = (run / "hypotheses-test.txt").read_text(encoding="utf-8").split("\n")
    references = (corpus_folder / "test.vi").read_text(encoding="utf-8").split("\n")
    assert len(lines) == len(references)
    assert lines[-1] == ""
