"""A task of another package fits, resumes, evaluates and is compared by the real commands."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

HELPERS = Path(__file__).parents[1] / "helpers"
RECIPE = """
task: masked
data: {tokenizer: byte, window: 16, max_tokens: 64}
model: {d_model: 16, heads: 2, layers: 1, d_ff: 24, positions: learned, max_positions: 64}
optim: {warmup_steps: 2, lr: 0.01}
train: {max_steps: 12, val_every: 4, checkpoint_every: 2, keep: 100, log_every: 1, precision: 32}
"""


@pytest.fixture
def normtrain(
    tmp_path: Path, text_folder: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Run commands where another package's entry point names the task."""
    info = tmp_path / "site" / "masked-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: masked\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[normtrain.tasks]\nmasked = masked_task:TASK\n")
    monkeypatch.syspath_prepend(info.parent)
    Path("masked.yaml").write_text(RECIPE.replace("window", f"source: {text_folder}, window"))
    return command


def rows(run: Path) -> list[dict[str, str]]:
    with open(run / "metrics.csv", newline="") as file:
        found = list(csv.DictReader(file))
    return [
        {k: v for k, v in row.items() if k not in ("tokens_per_second", "seconds")} for row in found
    ]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_it_fits_in_150_lines() -> None:
    assert len((HELPERS / "masked_task.py").read_text().splitlines()) < 150


def test_fit_resume_evaluate_and_compare(normtrain: Callable[..., Any], tmp_path: Path) -> None:
    whole, again = tmp_path / "whole", tmp_path / "again"
    done = normtrain("fit", "--recipe", "./masked.yaml", "--norm", "layernorm", "--out", whole)
    assert done.exit_code == 0, done.stderr
    assert "accuracy" in done.stderr

    shutil.copytree(whole, again)
    (again / "status.json").unlink()
    for file in sorted((again / "checkpoints").glob("step-*.ckpt"))[2:]:
        file.unlink()
    (again / "checkpoints" / "last.ckpt").unlink()
    shutil.copy(again / "checkpoints" / "step-00000004.ckpt", again / "checkpoints" / "last.ckpt")
    done = normtrain("fit", "--resume", again)
    assert done.exit_code == 0, done.stderr
    assert rows(again) == rows(whole)
    found, expected = weights(again), weights(whole)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())

    other = tmp_path / "other"
    done = normtrain("fit", "--recipe", "./masked.yaml", "--norm", "rmsnorm", "--out", other)
    assert done.exit_code == 0, done.stderr
    scores = {}
    for run in (whole, other):
        done = normtrain("evaluate", run, "--json")
        assert done.exit_code == 0, done.stderr
        scores[run.name] = json.loads(done.stdout)
        assert 0 <= scores[run.name]["accuracy"] <= 1
    assert (scores["whole"]["norm"], scores["other"]["norm"]) == ("layernorm", "rmsnorm")
    assert scores["whole"]["loss"] != scores["other"]["loss"]
    assert json.loads((whole / "evaluation-test.json").read_text()) == scores["whole"]

    best = max(float(row["val_accuracy"]) for row in rows(whole) if row["val_accuracy"])
    state = torch.load(whole / "checkpoints" / "last.ckpt", weights_only=True)
    known = [each.get("best_value") for each in state["callbacks"].values()]
    assert pytest.approx(best) in [value for value in known if value is not None]

    done = normtrain("export", whole, tmp_path / "folder")
    assert done.exit_code == 0, done.stderr
    assert "fill-mask" in (tmp_path / "folder" / "README.md").read_text()
    done = normtrain("average", whole, "--last", 2, "-o", tmp_path / "mean.ckpt")
    assert done.exit_code == 0, done.stderr
    done = normtrain("convert", whole, "--to", "rmsnorm", "-o", tmp_path / "rms.ckpt")
    assert done.exit_code == 2  # its residual streams are not known
    assert "MaskedLM" in done.stderr
    done = normtrain("evaluate", whole, "--beam", 2)
    assert done.exit_code == 2
    assert "--beam is unsupported for the task masked" in done.stderr
    done = normtrain("translate", whole)
    assert done.exit_code == 2
    assert "must be of the task translation, got masked" in done.stderr
