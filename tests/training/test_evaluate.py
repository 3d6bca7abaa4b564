"""What is made from a run: scores, translations, averages, exports; and the files of a run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file

from normtrain.config import recipe as recipes
from normtrain.models import build_model
from normtrain.tasks.translation import TASK
from normtrain.tasks.translation.metrics import score
from normtrain.tasks.translation.tokenizer import Tokenizer
from normtrain.training import average, evaluate, export, read_checkpoint, translate
from normtrain.training.callbacks.metrics import columns, read_metrics

Runs = dict[str, Path]
KINDS = pytest.mark.parametrize(
    "kind", ["plain", *(pytest.param(kind, marks=pytest.mark.extended) for kind in ("ema", "bf16"))]
)


@pytest.fixture
def run(learned: Runs, tmp_path: Path) -> Path:
    """A finished run of a test's own."""
    return shutil.copytree(learned["plain"], tmp_path / "run")


def in_training(run: Path) -> dict[int, float]:
    """Step to the BLEU that training reported there."""
    rows = read_metrics(run / "metrics.csv")
    return {int(row["step"]): float(row["val_bleu"]) for row in rows if row["val_bleu"]}


def lines_of(file: Path) -> list[str]:
    lines = file.read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""
    return lines


@KINDS
def test_bleu_in_training_is_bleu_of_evaluate(kind: str, learned: Runs, tmp_path: Path) -> None:
    run = shutil.copytree(learned[kind], tmp_path / "run")
    reported = in_training(run)
    assert list(reported) == [80, 160]
    assert max(reported.values()) > 1, "a model that has learnt nothing shows nothing"
    for step, bleu in reported.items():
        checkpoint = run / "checkpoints" / f"step-{step:08d}.ckpt"
        result = evaluate(checkpoint, split="valid", beam=2)
        assert (result["step"], result["bleu"]) == (step, bleu)
    best = evaluate(run, split="valid", beam=2)
    assert best["bleu"] == max(reported.values())


def test_evaluate_reports_how_it_was_obtained(run: Path, corpus_folder: Path) -> None:
    result = evaluate(run)
    written = json.loads((run / "evaluation-test.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(result))
    assert (written["split"], written["beam"], written["norm"]) == ("test", 2, "rmsnorm")
    assert (written["sentences"], written["sources_truncated"]) == (10, [])
    assert {"normtrain", "torch", "sacrebleu"} <= written["versions"].keys()
    assert "tok:13a" in written["bleu_signature"]
    hypotheses = lines_of(Path(written["hypotheses"]))
    references = lines_of(corpus_folder / "test.vi")
    assert score(hypotheses, references, tokenized=False, target_lang="vi").bleu == written["bleu"]
    assert list(translate(run, lines_of(corpus_folder / "test.en"))) == hypotheses


@pytest.mark.extended
def test_evaluate_on_another_folder_and_any_stem(
    run: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "ted talks"
    other.mkdir()
    for side in ("en", "vi"):
        lines = lines_of(corpus_folder / f"valid.{side}")
        text = "".join(f"{line}\n" for line in [*lines, "", lines[0]])
        (other / f"tst2013.{side}").write_text(text, encoding="utf-8")
    result = evaluate(run, split="tst2013", data=str(other))
    assert result["sentences"] == 14
    assert result["data"] == str(other)
    hypotheses = lines_of(run / "hypotheses-ted-talks-tst2013.txt")
    assert len(hypotheses) == 14
    assert hypotheses[12] == ""
    assert hypotheses[13] == hypotheses[0] != ""
    assert (run / "evaluation-ted-talks-tst2013.json").is_file()
    assert not (run / "evaluation-test.json").exists()


@pytest.mark.extended
def test_evaluate_a_file_outside_a_run_writes_beside_it(run: Path, tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    alone = shutil.copy(run / "checkpoints" / "last.ckpt", tmp_path / "alone" / "m.ckpt")
    shutil.rmtree(run)
    evaluate(Path(alone), split="valid", beam=1)
    assert sorted(path.name for path in (tmp_path / "alone").iterdir()) == [
        "evaluation-valid-m-beam1.json",
        "hypotheses-valid-m-beam1.txt",
        "m.ckpt",
    ]


@pytest.mark.extended
def test_evaluations_with_other_settings_stand_beside_one_another(run: Path) -> None:
    first = evaluate(run, split="valid")
    evaluate(run, split="valid", beam=1)
    evaluate(run, split="valid", length_penalty=0.0)
    evaluate(run / "checkpoints" / "last.ckpt", split="valid")
    stems = {path.stem.removeprefix("evaluation-") for path in run.glob("evaluation-*.json")}
    assert stems == {"valid", "valid-beam1", "valid-penalty0", "valid-last"}
    kept = json.loads((run / "evaluation-valid.json").read_text(encoding="utf-8"))
    assert kept["bleu"] == first["bleu"]
    assert kept["beam"] == first["beam"] == 2


def test_translate_keeps_line_counts(command: Callable[..., Result], run: Path) -> None:
    lines = ["an at be", "", "   ", "do " * 3000, "ữ 漢字 🙂", "an at be", "\u2028", "x" * 9000]
    result = command("translate", run, stdin="".join(f"{line}\n" for line in lines).encode())
    assert result.exit_code == 0, result.stderr
    out = result.stdout_bytes.decode().split("\n")
    assert len(out) == len(lines) + 1
    assert out[1] == out[2] == out[8] == ""
    assert out[0] == out[5] != ""
    single = command("translate", run, stdin=b"an at be")
    assert single.stdout == out[0] + "\n"
    assert command("translate", run, stdin=b"").stdout == ""


@pytest.mark.extended
def test_the_mean_of_checkpoints(run: Path, tmp_path: Path) -> None:
    steps = (80, 120, 160)
    raw = [
        torch.load(run / "checkpoints" / f"step-{step:08d}.ckpt", weights_only=True)["state_dict"]
        for step in steps
    ]
    message = average(run, last=3, output=tmp_path / "mean.ckpt")
    assert "80, 120, 160" in message
    mean = read_checkpoint(tmp_path / "mean.ckpt")
    assert mean.step == 160
    assert mean.raw["state_dict"].keys() == raw[0].keys()
    for name, tensor in mean.raw["state_dict"].items():
        parts = torch.stack([state[name] for state in raw]).double()
        torch.testing.assert_close(tensor, parts.mean(0).float(), rtol=0, atol=1e-7)
        assert tensor.dtype == raw[0][name].dtype
    result = evaluate(tmp_path / "mean.ckpt", split="valid", beam=1)
    assert result["sentences"] == 12
    assert average(run, last=1, output=tmp_path / "one.ckpt")
    one = read_checkpoint(tmp_path / "one.ckpt")
    for name, tensor in one.raw["state_dict"].items():
        assert torch.equal(tensor, raw[2][name])


@KINDS
def test_an_export_is_the_same_model(kind: str, learned: Runs, tmp_path: Path) -> None:
    run, folder = learned[kind], tmp_path / "made"
    message = export(run, folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    weights = load_file(folder / "model.safetensors")
    assert f"{sum(w.numel() for w in weights.values()):,} parameters" in message
    recipe = recipes.from_plain(config["recipe"])
    model = build_model(recipe.model, config["vocab_size"]).eval()
    model.to(next(iter(weights.values())).dtype)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert unexpected == []
    assert set(missing) <= {"head.weight", "source_embedding.weight", "target_embedding.weight"}
    original = read_checkpoint(run).model()
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    tokenizer = Tokenizer.from_json(text)
    source = torch.tensor([[*tokenizer.encode("an at be by"), 2]])
    target = torch.tensor([[1, *tokenizer.encode("ăn bà")]])
    with torch.no_grad():
        assert torch.equal(model(source, target), original(source, target))


def test_an_export_needs_an_empty_folder(command: Callable[..., Result], run: Path) -> None:
    (Path.cwd() / "made").mkdir()
    assert command("export", run, "made").exit_code == 0
    before = {path: path.read_bytes() for path in Path("made").iterdir()}
    again = command("export", run, "made")
    assert again.exit_code == 2
    assert again.stderr == "error: made is not empty; export into a new folder\n"
    assert {path: path.read_bytes() for path in Path("made").iterdir()} == before


@pytest.mark.extended
def test_the_model_card_shows_scores_of_this_checkpoint_only(run: Path, tmp_path: Path) -> None:
    (run / "evaluation-broken.json").write_text("{")
    earlier = evaluate(run / "checkpoints" / "step-00000040.ckpt", split="valid", beam=1)
    assert earlier["step"] == 40
    export(run, tmp_path / "one")
    assert "| valid |" not in (tmp_path / "one" / "README.md").read_text(encoding="utf-8")
    result = evaluate(run, split="valid", beam=1)
    export(run, tmp_path / "two")
    card = (tmp_path / "two" / "README.md").read_text(encoding="utf-8")
    assert f"| valid | 1 | {result['bleu']:.2f} | `{result['bleu_signature']}` |" in card


def plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str and plain(each) for key, each in value.items())
    if isinstance(value, list):
        return all(plain(each) for each in value)
    return value is None or type(value) in (str, int, float, bool)


@KINDS
def test_the_contract_of_a_checkpoint(kind: str, learned: Runs) -> None:
    run = learned[kind]
    for name in ("last.ckpt", "best.ckpt"):
        raw = torch.load(run / "checkpoints" / name, weights_only=True)
        assert {"state_dict", "global_step", "optimizer_states", "lr_schedulers"} <= raw.keys()
        ours = raw["normtrain"]
        assert set(ours) == {
            "version",
            "recipe",
            "tokenizer",
            "rules",
            "norms",
            "data",
            "launch",
            "environment",
        }
        assert plain(ours)
        assert recipes.from_plain(ours["recipe"]) == recipes.load(run / "recipe.yaml")
        assert ours["tokenizer"] == (run / "tokenizer.json").read_text(encoding="utf-8")
        assert set(ours["norms"].values()) == {"rmsnorm"}
        assert ours["data"]["kind"] == "folder"


@KINDS
def test_a_checkpoint_needs_nothing_but_itself(kind: str, learned: Runs, tmp_path: Path) -> None:
    alone = shutil.copy(learned[kind] / "checkpoints" / "best.ckpt", tmp_path / "m.ckpt")
    words = ["an at be", "go he"]
    assert list(translate(Path(alone), words)) == list(translate(learned[kind], words))


def test_the_contract_of_a_run_folder(learned: Runs, run: Path) -> None:
    evaluate(run)
    names = {path.name for path in run.iterdir() if not path.name.startswith((".", "events."))}
    assert names == {
        "recipe.yaml",
        "machine.json",
        "metrics.csv",
        "checkpoints",
        "tokenizer.json",
        "status.json",
        "evaluation-test.json",
        "hypotheses-test.txt",
    }
    assert list(run.glob("events.out.tfevents.*"))
    names = {path.name for path in (run / "checkpoints").iterdir()}
    numbered = {f"step-{step:08d}.ckpt" for step in (40, 80, 120, 160)}
    assert names == {"last.ckpt", "best.ckpt"} | numbered
    header = (run / "metrics.csv").read_text(encoding="utf-8").partition("\n")[0].split(",")
    assert header == list(columns(TASK.metrics))
    assert {"step", "train_loss", "val_loss", "tokens_per_second"} <= set(header)
    rows = read_metrics(run / "metrics.csv")
    trained = [int(row["step"]) for row in rows if row["train_loss"]]
    assert trained == list(range(20, 161, 20))
    assert [int(row["step"]) for row in rows if row["val_loss"]] == [80, 160]
    assert all(float(row["tokens_per_second"]) > 0 for row in rows if row["train_loss"])
    assert any(len(row["train_loss"]) > 12 for row in rows), "unrounded"
