"""Checkpoints of version 1 of the format, written by the release before version 2.

``v1/<task>`` holds a corpus, a run that was interrupted after 5 of 8 steps, and in
``expected.json`` what that release got: the metrics and weights of the uninterrupted run, and the
scores of both.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import rows, weights

from normtrain.training import average, convert, evaluate, export, read_checkpoint, resume
from normtrain.training.checkpoint import FORMAT_VERSION
from normtrain.training.determinism import environment

V1 = Path(__file__).parent / "v1"
SCORES = {"translation": "bleu", "language": "perplexity"}


@pytest.fixture(params=SCORES)
def task(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def run(task: str, tmp_path: Path) -> Path:
    """A copy of the run whose recipes name the corpus in this folder."""
    run = shutil.copytree(V1 / task / "run", tmp_path / "run")
    recipe, last = run / "recipe.yaml", run / "checkpoints" / "last.ckpt"
    corpus = str(V1 / task / "corpus")
    text = recipe.read_text(encoding="utf-8")
    recipe.write_text(text.replace("source: corpus", f"source: {corpus}"), encoding="utf-8")
    raw = torch.load(last, weights_only=True)
    raw["normtrain"]["recipe"]["data"]["source"] = corpus
    torch.save(raw, last)
    return run


@pytest.fixture
def expected(task: str) -> dict[str, Any]:
    return json.loads((V1 / task / "expected.json").read_text(encoding="utf-8"))


def same_bits(run: Path) -> bool:
    """Whether this machine computes what the machine that wrote the run computed, to the bit."""
    now, then = environment(), read_checkpoint(run).section.environment
    return all(now[key] == getattr(then, key) for key in ("torch", "device", "kernels"))


def test_it_resumes_to_the_same_losses_and_weights(run: Path, expected: dict[str, Any]) -> None:
    exact = same_bits(run)
    before = (run / "checkpoints" / "last.ckpt").read_bytes()
    resume(run)
    assert (run / "checkpoints" / "last.ckpt").read_bytes() != before
    if exact:
        assert rows(run) == expected["metrics"]
        content = b"".join(w.numpy().tobytes() for _, w in sorted(weights(run).items()))
        assert hashlib.sha256(content).hexdigest() == expected["weights_sha256"]
    else:
        found, wanted = (
            [float(row["train_loss"]) for row in table if row["train_loss"]]
            for table in (rows(run), expected["metrics"])
        )
        assert found == pytest.approx(wanted, rel=1e-3)
    written = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["normtrain"]
    assert written["version"] == FORMAT_VERSION
    assert written["recipe"]["optim"]["name"] == "adamw"
    assert "machine" not in written
    assert written["launch"]["step_batches"] in (1, 2)


def test_it_is_evaluated_exported_averaged_and_converted(
    run: Path, task: str, expected: dict[str, Any], tmp_path: Path
) -> None:
    score, last = SCORES[task], run / "checkpoints" / "last.ckpt"
    found = evaluate(last, split="test")[score]
    wanted = expected["interrupted"][score]
    assert found == (wanted if same_bits(run) else pytest.approx(wanted, rel=1e-3))
    assert "parameters" in export(last, tmp_path / "exported")
    shutil.copy(last, last.with_name("step-00000005.ckpt"))
    average(run, last=1, output=tmp_path / "mean.ckpt")
    assert evaluate(tmp_path / "mean.ckpt", split="test")[score] == found
    with pytest.raises(ValueError, match="adds a mean"):
        convert(last, to="layernorm", output=tmp_path / "converted.ckpt")


@pytest.mark.parametrize("task", ["language"])
def test_a_run_without_a_checkpoint_starts_again(run: Path, expected: dict[str, Any]) -> None:
    exact = same_bits(run)
    (run / "checkpoints" / "last.ckpt").unlink()
    resume(run)
    if exact:
        assert rows(run) == expected["metrics"]
