"""``normtrain convert``: from a trained checkpoint to one with other norms and equal outputs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import assert_misuse

from normtrain.config.recipe import diff
from normtrain.errors import UserError
from normtrain.training import convert, export, fit, read_checkpoint, translate

SETTINGS = {
    "data_max_tokens": 240,
    "model_d_model": 32,
    "model_d_ff": 64,
    "optim_lr": 0.02,
    "train_max_steps": 100,
    "train_val_every": 50,
    "train_checkpoint_every": 50,
    "train_log_every": 50,
}
KINDS: dict[str, dict[str, Any]] = {
    "layernorm": {"norm": "layernorm", "train_ema": 0.9},
    "zero-mean": {"norm": "rmsnorm:bias=true", "model_zero_mean": "stream"},
    "adanorm": {"norm": "adanorm"},
    "post": {"norm": "layernorm", "model_placement": "post"},
}


@pytest.fixture(scope="session")
def runs(
    tiny_recipe: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Finished runs by kind, each trained when it is first asked for. Read only."""
    folder, made = tmp_path_factory.mktemp("convertible"), dict[str, Path]()

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = fit(tiny_recipe(**SETTINGS, **KINDS[kind]), out=folder / kind)
        return made[kind]

    return get


def hypotheses(target: Path, corpus: Path) -> list[str]:
    lines = (corpus / "test.en").read_text(encoding="utf-8").splitlines()
    return list(translate(target, lines))


def logits(target: Path) -> torch.Tensor:
    model = read_checkpoint(target).model()
    ids = torch.randint(4, model.vocab_size, (2, 3, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.double()(*ids)


@pytest.mark.parametrize(
    ("kind", "to"),
    [("layernorm", "rmsnorm"), pytest.param("zero-mean", "crmsnorm", marks=pytest.mark.extended)],
)
def test_the_converted_checkpoint_gives_equal_outputs(
    kind: str, to: str, runs: Callable[[str], Path], corpus_folder: Path, tmp_path: Path
) -> None:
    run, made = runs(kind), tmp_path / "made.ckpt"
    message = convert(run, to=to, output=made)
    assert f"converted to {to}" in message.splitlines()[0]
    error = float(message.partition("random text: ")[2].split()[0])
    assert 0 <= error < 1e-5
    expected = logits(run)
    difference = (logits(made) - expected).abs().amax() / expected.abs().amax()
    assert difference.item() < 1e-5
    assert hypotheses(made, corpus_folder) == hypotheses(run, corpus_folder)
    read, section = read_checkpoint(made), read_checkpoint(made).section.plain()
    assert all(spec.startswith(to) for spec in section["norms"].values())
    assert section["converted"]["to"] == to
    assert read.step == read_checkpoint(run).step


@pytest.mark.extended
def test_there_and_back(runs: Callable[[str], Path], tmp_path: Path) -> None:
    run = runs("layernorm")
    convert(run, to="rmsnorm", output=tmp_path / "rms.ckpt")
    convert(tmp_path / "rms.ckpt", to="layernorm", output=tmp_path / "back.ckpt")
    convert(tmp_path / "rms.ckpt", to="crmsnorm", output=tmp_path / "crms.ckpt")
    expected = logits(run)
    for name in ("back", "crms"):
        torch.testing.assert_close(logits(tmp_path / f"{name}.ckpt"), expected, rtol=0, atol=1e-4)
    recipes = [read_checkpoint(path).recipe for path in (run, tmp_path / "back.ckpt")]
    assert diff(*recipes) == []
    changed = read_checkpoint(tmp_path / "crms.ckpt").recipe.model
    assert (changed.norm, changed.d_stream, changed.d_model) == ("crmsnorm:affine=false", 31, 32)
    assert (changed.tie, changed.positions, changed.head_bias) == ("embeddings", "learned", True)
    assert "parameters" in export(tmp_path / "crms.ckpt", tmp_path / "exported")


@pytest.mark.extended
@pytest.mark.parametrize(
    ("kind", "to", "reason"),
    [
        ("adanorm", "rmsnorm", "quadratic"),
        ("adanorm", "layernorm", "quadratic"),
        ("post", "crmsnorm", "post-norm"),
    ],
)
def test_inexact_conversions_are_refused(
    kind: str, to: str, reason: str, runs: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError) as failure:
        convert(runs(kind), to=to, output=tmp_path / "made.ckpt")
    assert reason in str(failure.value)
    assert "encoder.layers.0.attention_residual" in str(failure.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.extended
def test_misuse_gets_one_line(
    learned: dict[str, Path], runs: Callable[[str], Path], command: Callable[..., Any]
) -> None:
    run = runs("layernorm")
    source = run / "checkpoints" / "last.ckpt"
    assert_misuse(command("convert", run, "--to", "batchnorm", "-o", "x"), "'batchnorm'")
    assert_misuse(command("convert", run, "--to", "rmsnorm"), "-o")
    assert_misuse(command("convert", run, "-o", "x"), "--to")
    spare = Path("../spare.ckpt")
    spare.write_bytes(source.read_bytes())
    assert_misuse(command("convert", spare, "--to", "rmsnorm", "-o", spare), "another file")
    for place, reason in ((source, "own checkpoints"), ("/dev/null", "not a regular file")):
        assert_misuse(command("convert", run, "--to", "rmsnorm", "-o", place), reason)
        assert_misuse(command("average", run, "--last", 1, "-o", place), reason)
    # the learned run is plain Pre-RMSNorm: it reads its stream's mean
    assert_misuse(
        command("convert", learned["plain"], "--to", "layernorm", "-o", "x"), "adds a mean"
    )
    assert_misuse(command("convert", learned["plain"], "--to", "rmsnorm", "-o", "x"), "mean")
    assert list(Path().iterdir()) == []
    done = command("convert", run, "--to", "rmsnorm", "-o", "made.ckpt")
    assert done.exit_code == 0
    assert done.stdout.startswith("made.ckpt: ")
    assert_misuse(command("convert", "made.ckpt", "--to", "rmsnorm", "-o", "x"), "already")
    assert_misuse(command("fit", "--resume", "made.ckpt"), "made.ckpt")


def test_biases_that_no_recipe_describes_are_refused(
    tiny_language: Callable[..., Any], tmp_path: Path
) -> None:
    recipe = tiny_language(norm="layernorm", model_bias="false", train_max_steps=3)
    run = fit(recipe, out=tmp_path / "run")
    assert convert(run, to="rmsnorm", output=tmp_path / "rms.ckpt")
    with pytest.raises(UserError, match=r"model\.bias=false"):
        convert(run, to="crmsnorm", output=tmp_path / "crms.ckpt")
    assert not (tmp_path / "crms.ckpt").exists()
