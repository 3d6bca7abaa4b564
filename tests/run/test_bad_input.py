"""Mistakes and failures, through the real command line: what is said, what is left behind."""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from conftest import tiny_settings

from normtrain.callbacks.checkpoints import RunCheckpoints
from normtrain.callbacks.metrics import read_metrics

Command = Callable[..., Result]
ROOT = Path(__file__).parents[2]


def fit_words(corpus: Path, out: Path, **changes: Any) -> list[str]:
    settings = [word for setting in tiny_settings(**changes) for word in ("--set", setting)]
    return ["fit", "--recipe", "envi", "--data", str(corpus), "--out", str(out), *settings]


def assert_misuse(result: Result, *parts: str) -> None:
    """Exit 2, one or two lines that hold all the parts, nothing on stdout."""
    assert result.exit_code == 2, result.stderr
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) <= 2, result.stderr
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in result.stderr


def assert_failure(result: Result, *parts: str) -> None:
    """Exit 1, and the failure in the last line."""
    assert result.exit_code == 1, result.stderr
    assert "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    for part in parts:
        assert part in last


def assert_nothing_left(folder: Path) -> None:
    assert sorted(folder.rglob("*")) == []


@pytest.fixture
def copy(learned: dict[str, Path], tmp_path: Path) -> Path:
    """A finished run that a test may damage."""
    return shutil.copytree(learned["plain"], tmp_path / "copy")


# What the user names wrongly


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("--norm rmsnrom", ["unknown norm 'rmsnrom'", "rmsnorm"]),
        ("--norm prmsnorm:q=1", ["q", "prmsnorm"]),
        ("--norm prmsnorm:p=2", ["p", "2"]),
        ("--norm-at encoder.*=layernrom", ["layernrom", "layernorm"]),
        ("--norm-at nowhere.*=none", ["'nowhere.*' matches no norm", "encoder"]),
        ("--recipe envii", ["unknown recipe 'envii'", "envi"]),
        ("--set model.dmodel=3", ["unknown key 'model.dmodel'", "model.d_model"]),
        ("--set dropuot=0.3", ["unknown key 'dropuot'", "model.dropout"]),
        ("--set model.heads=3", ["heads"]),
        ("--set model.dropout=1.5", ["model.dropout is 1.5"]),
        ("--set data.vocab_size=100", ["vocab_size is 100", "300"]),
        ("--set data.workers=-1", ["data.workers is -1"]),
        ("--data phrasebok", ["phrasebok", "phrasebook"]),
        ("--data nowhere/at/all", ["there is no folder nowhere/at/all"]),
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
        ("valid.en", None, ["valid.en"]),
        ("train.vi", b"ta\n", ["train.en has 90 lines", "train.vi has 1"]),
        ("valid.en", b"", ["valid.en is empty"]),
        ("train.en", b"an\n" * 89 + b"\xffat\n", ["train.en, line 90", "UTF-8"]),
        ("test.vi", b"\n" * 10, ["no line has text on both sides"]),
        ("train.en.gz", b"an\n" * 90, ["train.en.gz", "not valid gzip"]),
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


# Checkpoints that are none, or somebody else's


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


CUT = "cut short, damaged or no checkpoint"
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
def test_a_foreign_checkpoint_is_told(kind: str, command: Command, tmp_path: Path) -> None:
    write, message = FOREIGN[kind]
    path = tmp_path / "some.ckpt"
    write(path)
    before = sorted(tmp_path.rglob("*"))
    assert_misuse(command("evaluate", path), "some.ckpt", message)
    assert_misuse(command("translate", path, stdin=b"an\n"), "some.ckpt", message)
    assert_misuse(command("export", path, "made"), "some.ckpt", message)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.9, -1.0])
def test_a_truncated_checkpoint_is_told_and_kept(kept: float, copy: Path, command: Command) -> None:
    (copy / "status.json").unlink()
    last = copy / "checkpoints" / "last.ckpt"
    whole = last.read_bytes()
    part = whole[:-1] if kept < 0 else whole[: int(kept * len(whole))]
    last.unlink()
    last.write_bytes(part)
    for words in (("evaluate", last), ("fit", "--resume", copy)):
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
        ("d_ff", 7, ["don't fit its recipe", "7"]),
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
        "goes on only with its own",
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
    assert_misuse(command("fit", "--resume", copy), f"there is no folder {tmp_path / 'gone'}")
    (copy / "recipe.yaml").write_text("model: [", encoding="utf-8")
    assert_misuse(command("fit", "--resume", copy), "recipe.yaml")


def test_resume_auto_starts_and_goes_on(command: Command, corpus_folder: Path) -> None:
    sizes = tiny_settings(train_max_steps=4, train_val_every=4)
    settings = [word for setting in sizes for word in ("--set", setting)]
    words = ("fit", "--resume", "auto", "--recipe", "envi", "--data", corpus_folder, *settings)
    assert_misuse(command("fit", "--resume", "auto"), "no run to go on with", "--recipe")
    assert_nothing_left(Path.cwd())
    first = command(*words)
    assert first.exit_code == 0, first.stderr
    assert "no run to go on with: starting one" in first.stderr
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


def test_a_run_killed_before_it_was_called_finished_is_finished(
    command: Command, copy: Path
) -> None:
    before = (copy / "metrics.csv").read_bytes()
    (copy / "status.json").unlink()
    result = command("fit", "--resume", copy)
    assert result.exit_code == 0, result.stderr
    assert (copy / "status.json").is_file()
    assert (copy / "metrics.csv").read_bytes() == before


# Folders and disks


def test_out_onto_something_that_is_there(
    command: Command, copy: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    result = command(*fit_words(corpus_folder, copy))
    assert_misuse(result, "already holds a run", f"--resume {copy}")
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before
    result = command(*fit_words(corpus_folder, corpus_folder))
    assert_misuse(result, "no run's folder")
    (tmp_path / "file").write_text("mine")
    assert_misuse(command(*fit_words(corpus_folder, tmp_path / "file")), "is a file")
    assert (tmp_path / "file").read_text() == "mine"


def test_an_unwritable_place(command: Command, corpus_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file" / "run", Path("/proc/run")):
        assert_failure(command(*fit_words(corpus_folder, out)), f"run folder {out}", "--out")
    assert (tmp_path / "file").read_text() == "mine"


def test_exports_and_averages_into_an_unwritable_place(
    command: Command, learned: dict[str, Path], tmp_path: Path
) -> None:
    run = learned["plain"]
    (tmp_path / "file").write_text("mine")
    below = tmp_path / "file" / "more"
    assert_failure(command("export", run, below), str(below))
    assert_failure(command("average", run, "--last", 2, "-o", below), str(below))
    assert_misuse(command("average", run, "--last", 2, "-o", tmp_path), str(tmp_path))
    assert_misuse(command("average", run, "--last", 99, "-o", "mean"), "has 4 numbered")
    assert_nothing_left(tmp_path / "here")


@contextlib.contextmanager
def small_files(limit: int) -> Iterator[None]:
    """Writing beyond ``limit`` bytes fails in the system, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def disk_fills_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """From this step on no checkpoint fits on the disk any more."""
    save = RunCheckpoints.save

    def limited(step: int) -> None:
        def save_or_fail(self: RunCheckpoints, trainer: Any) -> Path:
            if trainer.global_step < step:
                return save(self, trainer)
            with small_files(20_000):
                return save(self, trainer)

        monkeypatch.setattr(RunCheckpoints, "save", save_or_fail)

    return limited


@pytest.mark.parametrize("step", [1, 4, 5])  # 5 is validated too
def test_a_full_disk(
    step: int,
    command: Command,
    disk_fills_at: Callable[[int], None],
    corpus_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tmp_path / "run"
    words = fit_words(corpus_folder, run, train_max_steps=7)
    disk_fills_at(step)
    assert_failure(command(*words), "could not write", f"step-0000000{step}.ckpt", "--resume")
    files = {path.name for path in (run / "checkpoints").iterdir()}
    expected = {f"step-0000000{i}.ckpt" for i in range(1, step)}
    assert files == (expected | {"last.ckpt"} if expected else set())
    assert not list(run.rglob("*.tmp"))
    if expected:
        last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
        assert last["global_step"] == step - 1
    monkeypatch.undo()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    resumed = command("fit", "--resume", run)
    assert resumed.exit_code == 0, resumed.stderr
    assert [int(row["step"]) for row in read_metrics(run / "metrics.csv") if row["epoch"]] == [
        *range(1, 8)
    ]


def test_a_full_disk_from_the_start(command: Command, corpus_folder: Path, tmp_path: Path) -> None:
    command(*fit_words(corpus_folder, tmp_path / "warm", train_max_steps=1))  # fills the cache
    with small_files(0):
        result = command(*fit_words(corpus_folder, tmp_path / "run"))
    assert_failure(result, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_full_disk_while_exporting_and_averaging(
    command: Command, learned: dict[str, Path], tmp_path: Path
) -> None:
    run = learned["plain"]
    with small_files(20_000):
        assert_failure(command("export", run, "made"), "could not write made")
        assert_failure(command("average", run, "--last", 2, "-o", "mean"), "could not write mean")
    assert_nothing_left(tmp_path / "here")


def test_two_runs_in_one_folder(command: Command, corpus_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = fit_words(corpus_folder, run, train_max_steps=100_000, train_keep=2)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "cli.py"), *words],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        deadline = time.monotonic() + 100
        while not (run / "checkpoints" / "last.ckpt").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        held = f"{run} is in use by another run (process {process.pid})"
        second = command("fit", "--resume", run)
        assert second.exit_code == 2
        assert held in second.stderr.splitlines()[-1]
        assert "Traceback" not in second.stderr
        assert_misuse(command(*words), "already holds a run")
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGTERM)
        _, messages = process.communicate(timeout=60)
    assert process.returncode == 130, messages
    steps = [int(row["step"]) for row in read_metrics(run / "metrics.csv") if row["epoch"]]
    assert steps == list(range(1, len(steps) + 1))
