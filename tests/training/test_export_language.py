"""From a run to a folder of `transformers` and back into a run, by function and by command."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import assert_misuse
from test_resume import assert_same_run, rewound

from normtrain.errors import UserError
from normtrain.training import (
    evaluate,
    export,
    fit,
    generate,
    import_model,
    read_checkpoint,
    read_pretrained,
    resume,
    start_recipe,
)

Build = Callable[..., Any]
BPE = {"data_tokenizer": "bpe", "data_vocab_size": 300, "model_max_positions": 40}
KINDS: dict[str, dict[str, Any]] = {
    "llama": BPE | {"norm": "rmsnorm", "model_activation": "swiglu", "model_bias": "false"},
    "gpt2": BPE
    | {
        "norm": "layernorm",
        "model_activation": "gelu-tanh",
        "model_positions": "learned",
        "model_bias": "true",
        "model_dropout": 0.1,
    },
}


@pytest.fixture(scope="module")
def runs(tiny_language: Build, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Finished runs by format. Read only."""
    folder, made = tmp_path_factory.mktemp("exportable"), dict[str, Path]()

    def get(kind: str) -> Path:
        if kind not in made:
            settings = {"optim_lr": 0.02} | KINDS[kind]
            made[kind] = fit(tiny_language(**settings), out=folder / kind)
        return made[kind]

    return get


@pytest.fixture(scope="module")
def exported(
    runs: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Their exports by format; ``"native"`` is the GPT-2's. Read only."""
    folder = tmp_path_factory.mktemp("exported")

    def get(format: str) -> Path:
        if not (folder / format).exists():
            run = runs("gpt2" if format == "native" else format)
            export(run, folder / format, format=format)
        return folder / format

    return get


def logits(target: Path) -> torch.Tensor:
    model = read_checkpoint(target).model()
    ids = torch.randint(0, model.vocab_size, (2, 30), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(ids)


FORMATS = [*(pytest.param(kind, marks=pytest.mark.extended) for kind in KINDS), "native"]


@pytest.mark.parametrize("format", FORMATS)
def test_imported_it_is_the_run_again(
    format: str,
    runs: Callable[[str], Path],
    exported: Callable[[str], Path],
    text_folder: Path,
    tmp_path: Path,
) -> None:
    run = runs("gpt2" if format == "native" else format)
    made = tmp_path / "made.ckpt"
    message = import_model(exported(format), made, data=str(text_folder))
    assert "loaded" in message
    assert "dropped" not in message
    assert torch.equal(logits(made), logits(run))
    read = read_checkpoint(made)
    assert read.step == 0
    assert read.recipe.data.source == str(text_folder)
    init = read.section.init
    model_type = "normtrain" if format == "native" else format
    assert (init["from"], init["model_type"]) == (exported(format).name, model_type)
    assert len(init["sha256"]) == 64
    window = read_checkpoint(run).recipe.data.window
    first, again = evaluate(run, split="test"), evaluate(made, split="test", stride=8)
    assert again["window"] == 40
    assert abs(again["loss"] - first["loss"]) < 1  # of another window
    again = import_model(
        exported(format), tmp_path / "b.ckpt", data=str(text_folder),
        overrides=[f"data.window={window}", "data.max_tokens=512"],
    )  # fmt: skip
    assert f"windows of {window} tokens" in again
    again = evaluate(tmp_path / "b.ckpt", split="test")
    assert again["loss"] == pytest.approx(first["loss"])
    text = "".join(generate(made, "abc", max_tokens=5, temperature=0))
    assert text == "".join(generate(run, "abc", max_tokens=5, temperature=0))
    export(made, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert f"from `{exported(format).name}` ({model_type}, weights of SHA-256" in card


def tuned(build: Build, folder: Path, **changes: Any) -> tuple[Any, Any]:
    """A tiny recipe that starts from a folder, and the folder as read."""
    base = build()
    pretrained = read_pretrained(folder)
    keys = ("window", "max_tokens")
    settings = [f"data.{key}={getattr(base.data, key)}" for key in keys]
    settings += [f"train.{key}={value}" for key, value in TRAIN.items()]
    settings += ["optim.warmup_steps=2", *changes.pop("overrides", [])]
    recipe = start_recipe("lm", pretrained, settings, data=base.data.source, **changes)
    return recipe, pretrained


TRAIN = {
    "max_steps": 6,
    "val_every": 3,
    "checkpoint_every": 1,
    "keep": 100,
    "log_every": 1,
    "precision": "'32'",
}


@pytest.mark.extended
@pytest.mark.parametrize("format", ["llama", "native"])
def test_fine_tuned_and_resumed_without_the_folder(
    format: str,
    tiny_language: Build,
    exported: Callable[[str], Path],
    runs: Callable[[str], Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = shutil.copytree(exported(format), tmp_path / "folder")
    recipe, pretrained = tuned(tiny_language, folder)
    whole = fit(recipe, init=pretrained, out=tmp_path / "whole")
    assert f"pretrained weights of {folder}" in capfd.readouterr().err
    shutil.rmtree(folder)
    for step in (1, 4):
        again = rewound(whole, step, tmp_path / f"again-{step}")
        resume(again)
        assert_same_run(whole, again)
        init = read_checkpoint(again).section.init
        assert init == pretrained.origin | {"from": "folder"}
    first = evaluate(whole, split="valid")["loss"]
    fresh = fit(recipe, init=read_pretrained(whole), out=tmp_path / "further")
    assert evaluate(fresh, split="valid")["loss"] != first
    assert read_checkpoint(whole).tokenizer.to_json() == pretrained.tokenizer.to_json()


def test_training_starts_from_the_weights(
    tiny_language: Build, exported: Callable[[str], Path], tmp_path: Path
) -> None:
    recipe, pretrained = tuned(
        tiny_language, exported("gpt2"), overrides=["optim.lr=1e-12", "optim.weight_decay=0"]
    )
    run = fit(recipe, init=pretrained, out=tmp_path / "run")
    weights = read_checkpoint(run).weights
    for name, weight in pretrained.weights.items():
        torch.testing.assert_close(weights[name], weight, atol=1e-6, rtol=0)


@pytest.mark.extended
def test_a_run_stopped_before_its_first_checkpoint(
    tiny_language: Build, exported: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(exported("llama"), tmp_path / "folder")
    recipe, pretrained = tuned(tiny_language, folder)
    whole = fit(recipe, init=pretrained, out=tmp_path / "whole")
    again = rewound(whole, 0, tmp_path / "again")
    shutil.rmtree(again / "checkpoints")
    (again / "checkpoints").mkdir()
    gone = shutil.copytree(again, tmp_path / "gone")
    other = shutil.copytree(again, tmp_path / "other")
    resume(again)
    assert_same_run(whole, again)
    changed = folder / "model.safetensors"
    changed.write_bytes(changed.read_bytes()[:-1] + b"\x01")
    with pytest.raises(UserError, match="are not those that .*other started from"):
        resume(other)
    shutil.rmtree(folder)
    with pytest.raises(UserError, match=r"there is no .*folder"):
        resume(gone)


@pytest.mark.extended
@pytest.mark.parametrize(
    ("norm", "report"),
    [
        ("rmsnorm", "dropped (decoder.norm.bias, …)"),
        ("adanorm", "dropped (decoder.norm"),
        ("derf", "fresh (decoder.layers.0.attention_residual.norm.alpha, …)"),
    ],
)
def test_fine_tuned_with_another_norm(
    norm: str,
    report: str,
    tiny_language: Build,
    exported: Callable[[str], Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    recipe, pretrained = tuned(tiny_language, exported("gpt2"), norm=norm)
    run = fit(recipe, init=pretrained, out=tmp_path / "run")
    said = capfd.readouterr().err
    assert " loaded, " in said
    assert report in said
    assert read_checkpoint(run).recipe.model.norm == norm
    assert evaluate(run, split="valid")["perplexity"] > 1


REFUSED = (
    *("model.d_model=64", "model.heads=8", "model.layers=3", "model.positions=rotary"),
    *("model.max_positions=64", "model.tie=false", "model.activation=relu", "model.bias=false"),
    *("data.vocab_size=999", "data.tokenizer=word"),
)


@pytest.mark.parametrize("override", REFUSED)
def test_a_key_that_contradicts_the_folder(
    override: str, tiny_language: Build, exported: Callable[[str], Path]
) -> None:
    key, _, value = override.partition("=")
    with pytest.raises(UserError) as refused:
        tuned(tiny_language, exported("gpt2"), overrides=[override])
    assert str(refused.value).startswith(f"{key} must be ")
    assert f"got {value};" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_keys_that_do_not_contradict(tiny_language: Build, exported: Callable[[str], Path]) -> None:
    given = ["model.max_positions=64", "model.kv_heads=2"]
    recipe, _ = tuned(tiny_language, exported("llama"), overrides=given)
    assert recipe.model.max_positions == 64
    assert tuned(tiny_language, exported("gpt2"))[0].model.dropout == 0.1  # the folder's


@pytest.mark.extended
def test_commands(
    command: Callable[..., Any],
    runs: Callable[[str], Path],
    text_folder: Path,
    corpus_folder: Path,
    learned: dict[str, Path],
) -> None:
    run = runs("gpt2")
    done = command("export", run, "made", "--format", "gpt2")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("made: ")
    assert json.loads(Path("made/config.json").read_text())["model_type"] == "gpt2"
    assert "library_name: transformers" in Path("made/README.md").read_text(encoding="utf-8")
    assert_misuse(command("export", run, "made", "--format", "gpt2"), "made is not empty")
    assert_misuse(command("export", run, "other", "--format", "llama"), "Llama's format has only")
    assert_misuse(command("export", learned["plain"], "x", "--format", "gpt2"), "use native")
    done = command("import", "made", "-o", "made.ckpt", "--data", text_folder)
    assert done.exit_code == 0, done.stderr
    assert "made.ckpt: gpt2 of" in done.stdout
    assert command("evaluate", "made.ckpt").exit_code == 0
    assert_misuse(command("import", learned["plain"], "-o", "x.ckpt"), "task translation")
    assert_misuse(command("import", "made", "-o", "x.ckpt", "--recipe", "envi"), "recipe envi is")
    assert_misuse(command("import", text_folder, "-o", "x.ckpt"), "config.json not found")
    shown = command("fit", "--recipe", "lm", "--init-from", "made", "--set", "data.window=8",
                    "--norm", "adanorm", "--dry-run")  # fmt: skip
    assert shown.exit_code == 0, shown.stderr
    assert "norm: adanorm" in shown.stdout
    assert "vocab_size: " in shown.stdout
    words = ["fit", "--recipe", "lm", "--init-from", "made", "--data", text_folder]
    for setting in ("data.window=8", "data.max_tokens=64", "optim.warmup_steps=1"):
        words += ["--set", setting]
    words += ["--set", "train.max_steps=2", "--out", "tuned"]
    started = command(*words, "--resume", "auto")
    assert started.exit_code == 0, started.stderr
    assert "pretrained weights of made (gpt2)" in started.stderr
    again = command(*words, "--resume", "auto")
    assert again.exit_code == 0, again.stderr
    assert "nothing to do" in again.stderr
    assert_misuse(command("fit", "--resume", "tuned", "--init-from", "made"), "starts a new run")
    assert_misuse(command("fit", "--init-from", "made"), "--recipe NAME")
    assert_misuse(command("fit", "--recipe", "envi", "--init-from", "made"), "recipe envi is for")
    assert_misuse(
        command("fit", "--recipe", "lm", "--init-from", "made", "--set", "data.window=8",
                "--set", "model.layers=9"), "model.layers must be 1",
    )  # fmt: skip
