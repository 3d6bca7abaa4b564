"""Norms × shipped recipes: each pair trains, resumes bit-exactly, and is evaluated."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import assert_same_run, rewound, rows

from normtrain.config import bundled as shipped
from normtrain.config import recipe as recipes
from normtrain.norms import norm_names
from normtrain.training import Checkpoint, evaluate, fit, read_checkpoint, resume

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
NAMES, NORMS = shipped.names(), norm_names()
# The full tier has every norm and every recipe once; every pair is slow.
SAMPLE = {
    (NAMES[i % len(NAMES)], NORMS[i % len(NORMS)]) for i in range(max(len(NAMES), len(NORMS)))
}
PAIRS = [
    pytest.param(name, norm, marks=() if (name, norm) in SAMPLE else pytest.mark.slow)
    for name in NAMES
    for norm in NORMS
]

pytestmark = pytest.mark.extended


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


@pytest.mark.parametrize("name", NAMES)
def test_only_sizes_are_shrunk(name: str, corpora: dict[str, Path]) -> None:
    whole = recipes.load(name)
    changed = recipes.diff(whole, shrunk(name, whole.model.norm, corpora))
    assert {line.partition(":")[0].partition(".")[2] for line in changed} <= SHRUNK


@pytest.mark.parametrize(("name", "norm"), PAIRS)
def test_fit_resume_and_evaluate(
    name: str, norm: str, corpora: dict[str, Path], tmp_path: Path
) -> None:
    run = fit(shrunk(name, norm, corpora), out=tmp_path / "run")
    assert_trained(run, norm)
    again = rewound(run, 2, tmp_path / "again")
    resume(again)
    assert_same_run(run, again)
    moments, same = (last(each).raw["optimizer_states"][0]["state"] for each in (run, again))
    assert moments.keys() == same.keys()
    for key, state in moments.items():
        assert torch.equal(state["exp_avg_sq"], same[key]["exp_avg_sq"]), key
    assert_evaluated(run, norm, corpora["translation"] / "test.vi")


def last(run: Path) -> Checkpoint:
    return read_checkpoint(run / "checkpoints" / "last.ckpt")


def assert_trained(run: Path, norm: str) -> None:
    losses = [float(row["train_loss"]) for row in rows(run) if row["train_loss"]]
    score = {"translation": "val_bleu", "language": "val_perplexity"}[last(run).recipe.task]
    scores = [row[score] for row in rows(run) if row[score]]
    assert (len(losses), len(set(losses)), len(scores)) == (6, 6, 2)
    assert all(0 < loss < float("inf") for loss in losses)
    assert last(run).step == 6
    assert set(last(run).raw["normtrain"]["norms"].values()) >= {norm}
    start = read_checkpoint(run / "checkpoints" / "step-00000002.ckpt").raw["state_dict"]
    still = [k for k, v in last(run).raw["state_dict"].items() if torch.equal(v, start[k])]
    assert not still, f"these weights never learn: {still}"


def assert_evaluated(run: Path, norm: str, references: Path) -> None:
    result = evaluate(run, split="test")
    written = json.loads((run / "evaluation-test.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(result))
    assert (written["norm"], written["split"]) == (norm, "test")
    whole: Any = last(run).recipe
    if whole.task == "language":
        assert 1 < written["perplexity"] < 1000
        return
    assert (written["sentences"], written["beam"]) == (10, whole.decode.beam)
    text = (run / "hypotheses-test.txt").read_text(encoding="utf-8")
    assert text.count("\n") == references.read_text(encoding="utf-8").count("\n")
    assert text.endswith("\n")
