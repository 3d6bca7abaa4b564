"""Checkpoints that are not what they should be: told by the part, before anything is touched."""

from __future__ import annotations

import copy
import gc
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from conftest import assert_failure, assert_misuse, assert_nothing_left

from normtrain.errors import UserError
from normtrain.training.checkpoint import FORMAT_VERSION, check_resumable, read_file
from normtrain.training.checkpoint.migrate import migrate

Command = Callable[..., Result]
Raw = dict[str, Any]
Change = Callable[[Raw], Any]


@pytest.fixture(scope="module")
def begun(tiny_recipe: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run after the first of its two steps."""
    from normtrain.training import fit

    folder = tmp_path_factory.mktemp("begun") / "run"
    fit(tiny_recipe(train_max_steps=2, optim_warmup_steps=1), out=folder)
    (folder / "status.json").unlink()
    last = folder / "checkpoints/last.ckpt"
    last.unlink()
    (folder / "checkpoints/step-00000001.ckpt").rename(last)
    return folder


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Path:
    return shutil.copytree(begun, tmp_path / "run")


def edit(run: Path, change: Change) -> Path:
    path = run / "checkpoints/last.ckpt"
    raw = torch.load(path, weights_only=True)
    change(raw)
    torch.save(raw, path)
    return path


def snapshot(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def weight(raw: Raw) -> str:
    return next(iter(raw["state_dict"]))


def ours(**parts: Any) -> Change:
    return lambda raw: raw["normtrain"].update(parts)


def launch(**keys: Any) -> Change:
    return lambda raw: raw["normtrain"]["launch"].update(keys)


def weights(key: Any, value: Any) -> Change:
    """Replace one weight; ``None`` stands for the name of the first."""
    return lambda raw: raw["state_dict"].update({key or weight(raw): value})


def optimizer(part: str, index: int, **keys: Any) -> Change:
    return lambda raw: raw["optimizer_states"][0][part][index].update(keys)


NEEDED_BY_ALL: list[tuple[Change, str]] = [
    (lambda raw: raw.update(state_dict=torch.zeros(2)), "state_dict must be a mapping"),
    (weights(3, torch.zeros(2)), "state_dict 3 must be named by a string"),
    (weights(None, 0.5), "must be a dense tensor of numbers, got 0.5"),
    (weights(None, torch.zeros(2, device="meta")), "got a tensor of (2,), torch.float32 on meta"),
    (weights(None, torch.zeros(2, 2).to_sparse()), "got a torch.sparse_coo tensor"),
    (lambda raw: raw.update(global_step=True), "global_step must be an integer, got true"),
    (ours(version=torch.zeros(2)), "checkpoint format"),
    (ours(recipe="x"), "recipe must be a mapping, got 'x'"),
    (ours(tokenizer=None), "tokenizer must be a string, got null"),
    (ours(tokenizer="{"), "last.ckpt: its tokenizer"),
    (ours(norms=[]), "norms must be a mapping"),
    (lambda raw: raw["normtrain"]["norms"].update(x=1), "norms x must be a string"),
    (ours(environment={"threads": torch.zeros(2)}), "environment threads must be an integer"),
    (lambda raw: raw["normtrain"]["data"].pop("sha256"), "data lacks sha256"),
    (ours(launch={"devices": "x"}), "launch devices must be an integer, got 'x'"),
    (launch(nodes=0), "launch nodes must be a number >= 1"),
    (launch(strategy=""), "launch strategy must be 'auto', 'ddp' or 'fsdp2'"),
    (launch(x=1), "launch x must be absent"),
]
NEEDED_TO_RESUME: list[tuple[Change, str]] = [
    (lambda raw: raw.pop("optimizer_states"), "cannot be resumed: it lacks optimizer_states"),
    (lambda raw: raw["normtrain"].pop("launch"), "cannot be resumed: it lacks launch"),
    (lambda raw: raw["state_dict"].pop(weight(raw)), "has no weight there"),
    (weights(None, torch.zeros(3)), "has shape (3,)"),
    (lambda raw: raw.update(optimizer_states=[]), "optimizer_states must be a list of 1"),
    (lambda raw: raw["optimizer_states"][0]["param_groups"].pop(), "param_groups must be a list"),
    (optimizer("param_groups", 0, params=[1]), "params must be the ids of"),
    (optimizer("state", 0, exp_avg=torch.zeros(2)), "states 0 exp_avg must be a float tensor of"),
    (optimizer("param_groups", 0, lr="x"), "optimizer_states lr must be a finite number"),
    (lambda raw: raw.update(lr_schedulers={}), "lr_schedulers must be a list"),
    (lambda raw: raw.update(totals=None), "totals must be a mapping"),
    (lambda raw: raw["loops"].update(fit_loop=3.5), "loops fit_loop must be an integer"),
    (
        lambda raw: raw["loops"]["fit_loop"]["epoch_progress"]["total"].update(ready=-1),
        "epoch_progress total ready must be an integer >= 0, got -1",
    ),
    (lambda raw: raw.update(callbacks=[]), "callbacks must be a mapping"),
    (lambda raw: raw["random_state"][0].update(torch=torch.zeros(3)), "random_state"),
    (lambda raw: raw["random_state"][0]["python"].pop(), "random_state"),
]


@pytest.mark.parametrize(("change", "part"), NEEDED_BY_ALL)
def test_a_checkpoint_must_be_whole(change: Change, part: str, run: Path) -> None:
    path = edit(run, change)
    with pytest.raises(UserError) as refused:
        read_file(path)
    assert str(refused.value).startswith(str(path))
    assert part in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("change", "part"), NEEDED_TO_RESUME)
def test_resuming_needs_a_whole_training_state(change: Change, part: str, run: Path) -> None:
    path = edit(run, change)
    read = read_file(path)
    with pytest.raises(UserError) as refused:
        check_resumable(read, read.recipe)
    assert str(refused.value).startswith(str(path))
    assert part in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [(NEEDED_BY_ALL[0], "evaluate"), (NEEDED_BY_ALL[3], "resume"), (NEEDED_TO_RESUME[8], "resume")],
)
def test_commands_refuse_in_a_line_and_change_nothing(
    change: tuple[Change, str], words: str, run: Path, command: Command
) -> None:
    path = edit(run, change[0])
    before = snapshot(run)
    result = command("evaluate", path) if words == "evaluate" else command("fit", "--resume", run)
    assert_misuse(result, "last.ckpt is damaged or was edited", change[1])
    assert snapshot(run) == before


def test_unusual_names_are_shown_in_ascii_on_one_line(run: Path) -> None:
    path = edit(run, lambda raw: raw["normtrain"]["norms"].update({"é\n" * 200: torch.ones(2, 2)}))
    with pytest.raises(
        UserError, match=r"norms \\xe9 \\xe9 .* must be a string, got a tensor of"
    ) as found:
        read_file(path)
    assert len(str(found.value)) < len(str(path)) + 300


def test_a_checkpoint_of_norm_swap_alone_is_of_another_program(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "normtrain": {"swap": {"version": 2}}}, tmp_path / "a.ckpt")
    with pytest.raises(
        UserError, match=r"a.ckpt is a checkpoint of another program that used Norm"
    ):
        read_file(tmp_path / "a.ckpt")


def test_migration_is_pure_and_leaves_what_it_does_not_know() -> None:
    section = {
        "version": 1,
        "machine": {"devices": 2, "update_batches": 6},
        "threads": 3,
        "recipe": {"optim": {"lr": 1.0}},
        "init": {"from": "x"},
    }
    old = {"normtrain": section, "global_step": 7}
    before = copy.deepcopy(old)
    assert migrate(old, Path("a.ckpt")) == {
        "normtrain": {
            "version": 2,
            "launch": {"devices": 2, "step_batches": 6},
            "environment": {"threads": 3},
            "recipe": {"optim": {"name": "adamw", "lr": 1.0}},
            "init": {"from": "x"},
        },
        "global_step": 7,
    }
    assert old == before
    new = {"normtrain": {"version": FORMAT_VERSION, "machine": 1}}
    assert migrate(new, Path("a.ckpt")) is new
    junk = migrate({"normtrain": {"version": 1, "machine": 3, "recipe": []}}, Path("a.ckpt"))
    assert junk["normtrain"]["launch"] == 3
    assert junk["normtrain"]["recipe"] == []


def test_a_file_is_read_once_on_resume(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing holds what was read when training starts."""
    from normtrain.training import resume
    from normtrain.training.callbacks.batches_done import BatchesDone

    read: list[Path] = []
    held: list[weakref.ref[Any]] = []
    alive: list[bool] = []
    load = torch.load

    def counted(file: Any, *words: Any, **options: Any) -> Any:
        read.append(Path(file))
        raw = load(file, *words, **options)
        held.append(weakref.ref(next(iter(raw["state_dict"].values()))))
        return raw

    def look(*_: Any) -> None:
        gc.collect()
        alive.extend(ref() is not None for ref in held)

    monkeypatch.setattr(torch, "load", counted)
    monkeypatch.setattr(BatchesDone, "on_train_batch_start", look, raising=False)
    resume(run)
    assert read == [run / "checkpoints" / "last.ckpt"]
    assert alive == [False]


def test_a_state_that_lightning_can_not_take_up_is_a_failure_in_a_line(
    run: Path, command: Command
) -> None:
    path = edit(run, lambda raw: raw["callbacks"]["RunCheckpoints"].pop("best_value"))
    before = path.read_bytes()
    result = command("fit", "--resume", run)
    assert_failure(result, "cannot resume from", "KeyError: 'best_value'", "earlier checkpoint")
    assert path.read_bytes() == before


def test_a_flipped_bit_is_told(run: Path, command: Command) -> None:
    """torch reads it as a weight like any other."""
    path = run / "checkpoints/last.ckpt"
    raw = torch.load(path, weights_only=True)
    weights = raw["state_dict"][weight(raw)].numpy().tobytes()
    content = bytearray(path.read_bytes())
    content[content.index(weights) + 1] ^= 1
    path.write_bytes(content)
    torch.load(path, weights_only=True)
    assert_misuse(command("evaluate", path), "last.ckpt", "damaged", "best.ckpt is whole")


def test_a_start_that_lacks_a_weight_leaves_no_folder(
    tiny_language: Callable[..., Any], text_folder: Path, tmp_path: Path, command: Command
) -> None:
    from normtrain.training import fit

    run = fit(tiny_language(train_max_steps=1, optim_warmup_steps=0), out=tmp_path / "run")
    path = edit(run, lambda raw: raw["state_dict"].pop("model.head.weight"))
    words = ["fit", "--recipe", "lm", "--init-from", path, "--data", text_folder, "--out", "new"]
    sizes = ("--set", "data.window=16", "--set", "data.max_tokens=64")
    assert_misuse(command(*words, *sizes), "the pretrained weight head.weight is missing")
    assert_misuse(command("import", path, "-o", "made.ckpt"), "head.weight is missing")
    assert_nothing_left(Path.cwd())


def test_checkpoints_of_two_models_have_no_mean(run: Path, command: Command) -> None:
    folder = run / "checkpoints"
    (folder / "last.ckpt").rename(folder / "step-00000001.ckpt")
    raw = torch.load(folder / "step-00000001.ckpt", weights_only=True)
    raw["state_dict"][weight(raw)] = torch.zeros(3)
    torch.save(raw, folder / "step-00000002.ckpt")
    before = snapshot(run)
    result = command("average", run, "--last", "2", "-o", "mean.ckpt")
    assert_misuse(result, "step-00000002.ckpt", "step-00000001.ckpt", "different models")
    assert snapshot(run) == before
    assert_nothing_left(Path.cwd())
