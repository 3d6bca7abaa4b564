"""Wrong input through the command line: the message, and what is left on disk."""

import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from conftest import assert_misuse, assert_nothing_left, fit_words

from tools.campaigns.tiny import tiny_settings

Command = Callable[..., Result]


# Wrong names


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("--norm prmsnorm:q=1", ["q", "prmsnorm"]),
        ("--norm-at nowhere.*=none", ["'nowhere.*' matches no norm", "encoder"]),
        ("--set model.heads=3", ["heads"]),
        ("--set data.vocab_size=100", ["vocab_size", "300"]),
        ("--data phrasebok", ["phrasebok", "phrasebook"]),
        ("--data nowhere/at/all", ["nowhere/at/all not found"]),
    ],
)
def test_wrong_names_leave_no_folder(
    words: str, parts: list[str], command: Command, corpus_folder: Path, tmp_path: Path
) -> None:
    more = words.split()
    data = [] if "--data" in more else ["--data", corpus_folder]
    sizes = ["--set", "model.d_model=16", "--set", "model.heads=2", "--set", "data.vocab_size=420"]
    result = command("fit", "--recipe", "envi", *data, *sizes, *more)
    assert_misuse(result, *parts)
    assert_nothing_left(tmp_path / "here")


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("train.vi", None, ["train.vi", "it holds"]),
        ("train.vi", b"ta\n", ["train.en has 90 lines", "train.vi has 1"]),
        ("valid.en", b"", ["valid.en is empty"]),
        ("train.en", b"an\n" * 89 + b"\xffat\n", ["train.en, line 90", "UTF-8"]),
        ("test.vi", b"\n" * 10, ["no line has text on both sides"]),
    ],
)
def test_bad_data_leaves_no_folder(
    name: str,
    content: bytes | None,
    parts: list[str],
    command: Command,
    corpus_folder: Path,
    tmp_path: Path,
) -> None:
    corpus = shutil.copytree(corpus_folder, tmp_path / "corpus")
    (corpus / name.removesuffix(".gz")).unlink()
    if content is not None:
        (corpus / name).write_bytes(content)
    assert_misuse(command(*fit_words(corpus, Path("run"))), *parts)
    assert_nothing_left(tmp_path / "here")


# Invalid and foreign checkpoints


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def lightning_checkpoint(path: Path) -> None:
    import pytorch_lightning as pl

    class Other(pl.LightningModule):
        def __init__(self, width: int = 3) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.layer = torch.nn.Linear(width, width)

    model = Other()
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(path)


def trapped(path: Path) -> None:
    torch.save({"normtrain": Trap(path.parent / "sprung"), "state_dict": {}}, path)


def other_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "hello")


CUT = "truncated, damaged or not a checkpoint"
OTHER = "of another program"
FOREIGN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda path: path.write_bytes(b""), CUT),
    "text": (lambda path: path.write_text("not a checkpoint\n"), CUT),
    "zip": (other_zip, CUT),
    "dict": (lambda path: torch.save({"state_dict": {}, "epoch": 3}, path), OTHER),
    "tensor": (lambda path: torch.save(torch.ones(3), path), OTHER),
    "legacy": (
        lambda path: torch.save({"a": 1}, path, _use_new_zipfile_serialization=False),
        OTHER,
    ),
    "lightning": (lightning_checkpoint, OTHER),
    "pickle": (
        lambda path: path.write_bytes(pickle.dumps(Trap(path.parent / "sprung"), protocol=2)),
        "have to be executed, which is not done",
    ),
    "trap": (trapped, "have to be executed, which is not done"),
    "normtrain": (lambda path: torch.save({"normtrain": {"version": 1}}, path), "lacks state_dict"),
    "newer": (lambda path: torch.save({"normtrain": {"version": 99}}, path), "format 99"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_checkpoint_is_refused(kind: str, command: Command, tmp_path: Path) -> None:
    write, message = FOREIGN[kind]
    path = tmp_path / "some.ckpt"
    write(path)
    before = sorted(tmp_path.rglob("*"))
    assert_misuse(command("evaluate", path), "some.ckpt", message)
    assert_misuse(command("translate", path, stdin=b"an\n"), "some.ckpt", message)
    assert_misuse(command("export", path, "made"), "some.ckpt", message)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.extended
@pytest.mark.parametrize("kept", [0.0, 0.5, -1.0])
def test_a_truncated_checkpoint_is_reported_and_kept(
    kept: float, copy: Path, command: Command
) -> None:
    (copy / "status.json").unlink()
    last = copy / "checkpoints" / "last.ckpt"
    whole = last.read_bytes()
    part = whole[:-1] if kept < 0 else whole[: int(kept * len(whole))]
    last.unlink()
    last.write_bytes(part)
    whole_one = str(copy / "checkpoints" / "best.ckpt")
    assert_misuse(command("evaluate", last), "last.ckpt", CUT, f"{whole_one} is whole")
    assert last.read_bytes() == part
    for file in (copy / "checkpoints").glob("*.ckpt"):
        if file != last:
            file.unlink()
    for words in (("evaluate", last), ("fit", "--resume", copy)):  # no other is left
        assert_misuse(command(*words), "last.ckpt", CUT)
    assert last.read_bytes() == part


def test_missing_checkpoints(command: Command, copy: Path) -> None:
    assert_misuse(command("evaluate", "nowhere.ckpt"), "nowhere.ckpt", "does not exist")
    assert_misuse(command("fit", "--resume", "nowhere"), "there is no such run folder")
    assert_misuse(command("fit", "--resume", "."), "holds no run", "recipe.yaml")
    for file in (copy / "checkpoints").iterdir():
        file.unlink()
    assert_misuse(command("evaluate", copy), "holds no checkpoint")
    assert_misuse(command("average", copy, "-o", "mean.ckpt"), "has 0 numbered checkpoints")


def edited(checkpoint: Path, edit: Callable[[dict[str, Any]], Any]) -> Path:
    raw = torch.load(checkpoint, weights_only=True)
    edit(raw)
    path = checkpoint.with_name("edited.ckpt")
    torch.save(raw, path)
    return path


@pytest.mark.parametrize(
    ("key", "value", "parts"),
    [
        (
            "norm",
            "layernorm",
            ["trained with rmsnorm at decoder.layers.0", "builds layernorm there"],
        ),
        ("norm_rules", [["decoder.*", "none"]], ["rmsnorm", "none", "decoder"]),
        ("encoder_layers", 2, ["no norm", "encoder.layers.1"]),
        ("d_ff", 7, ["fit its recipe", "7"]),
        ("hidden", 7, ["unknown key 'model.hidden'"]),
    ],
)
def test_weights_of_another_model_are_refused(
    key: str, value: Any, parts: list[str], command: Command, copy: Path
) -> None:
    def edit(raw: dict[str, Any]) -> None:
        raw["normtrain"]["recipe"]["model"][key] = value

    path = edited(copy / "checkpoints" / "last.ckpt", edit)
    assert_misuse(command("evaluate", path), "edited.ckpt", *parts)


# Resuming


def test_resume_of_a_finished_run_says_so(command: Command, copy: Path) -> None:
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    result = command("fit", "--resume", copy)
    assert (result.exit_code, result.stdout) == (0, f"{copy}\n")
    assert "finished, after step 160: nothing to do" in result.stderr
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_resume_with_a_changed_recipe_shows_the_difference(command: Command, copy: Path) -> None:
    (copy / "status.json").unlink()
    words = ("--norm", "layernorm", "--set", "optim.lr=0.5", "--seed", "7")
    result = command("fit", "--resume", copy, *words)
    assert_misuse(
        result,
        "resumes only with its own",
        "model.norm: rmsnorm → layernorm",
        "optim.lr: 0.02 → 0.5",
        "train.seed: 1 → 7",
    )
    assert "d_model" not in result.stderr
    same = command("fit", "--resume", copy, "--norm", "RMSNorm", "--set", "optim.lr=2e-2")
    assert same.exit_code == 0, same.stderr


def test_resume_of_a_run_without_data_or_with_a_broken_recipe(
    command: Command, copy: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    (copy / "status.json").unlink()
    text = (copy / "recipe.yaml").read_text(encoding="utf-8")
    gone = text.replace(str(corpus_folder), str(tmp_path / "gone"))
    assert gone != text
    (copy / "recipe.yaml").write_text(gone, encoding="utf-8")
    assert_misuse(command("fit", "--resume", copy), str(tmp_path / "gone"), "not found")
    (copy / "recipe.yaml").write_text("model: [", encoding="utf-8")
    assert_misuse(command("fit", "--resume", copy), "recipe.yaml")


@pytest.mark.extended
def test_resume_auto_starts_or_resumes(command: Command, corpus_folder: Path) -> None:
    sizes = tiny_settings(train_max_steps=4, train_val_every=4)
    settings = [word for setting in sizes for word in ("--set", setting)]
    words = ("fit", "--resume", "auto", "--recipe", "envi", "--data", corpus_folder, *settings)
    assert_misuse(command("fit", "--resume", "auto"), "no run to resume", "--recipe")
    assert_nothing_left(Path.cwd())
    first = command(*words)
    assert first.exit_code == 0, first.stderr
    assert "no run to resume: starting one" in first.stderr
    run = Path(first.stdout.strip())
    assert run.is_dir()
    (run / "status.json").unlink()
    for file in (run / "checkpoints").glob("step-0000000[34].ckpt"):
        file.unlink()
    shutil.copy(run / "checkpoints" / "step-00000002.ckpt", run / "checkpoints" / "last.ckpt")
    second = command(*words)
    assert (second.exit_code, second.stdout) == (0, first.stdout)
    assert "after step 2" in second.stderr
    third = command("fit", "--resume", "auto")
    assert (third.exit_code, third.stdout) == (0, first.stdout)
    assert "nothing to do" in third.stderr
    other = command(*words, "--norm", "layernorm")
    assert "starting one" in other.stderr
    assert other.stdout != first.stdout
