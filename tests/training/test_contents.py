"""Checkpoints that are not what they should be: told by the part, before anything is touched."""

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
from normtrain.training.checkpoint.migrate import MIGRATIONS, migrate

Command = Callable[..., Result]


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


def edit(run: Path, *keys: Any, to: Any = None) -> Path:
    """Replace a value in the run's last checkpoint; without ``to`` the key is removed.

    Args:
        run: the run's folder.
        keys: of nested dicts and lists; ``...`` is the first key.
        to: the new value, or a function of the old one.
    """
    path = run / "checkpoints/last.ckpt"
    raw = inner = torch.load(path, weights_only=True)
    for key in keys[:-1]:
        inner = inner[key]
    last = next(iter(inner)) if keys[-1] is ... else keys[-1]
    if to is None:
        del inner[last]
    else:
        inner[last] = None if to == "null" else to
    torch.save(raw, path)
    return path


def snapshot(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def refused(call: Callable[[], Any], path: Path, part: str) -> None:
    with pytest.raises(UserError) as error:
        call()
    said = str(error.value)
    assert part in said
    assert "\n" not in said
    assert said.startswith((str(path), "the weights"))


OPTIMIZER, LOOP = ("optimizer_states", 0), ("loops", "fit_loop")
PROGRESS = (*LOOP, "epoch_progress", "total", "ready")
SPARSE, META = torch.zeros(2, 2).to_sparse(), torch.zeros(2, device="meta")
NEEDED_BY_ALL: list[tuple[tuple[Any, ...], Any, str]] = [
    (("state_dict",), torch.zeros(2), "state_dict must be a mapping"),
    (("state_dict", 3), torch.zeros(2), "state_dict 3 must be named by a string"),
    (("state_dict", ...), 0.5, "must be a dense tensor of numbers, got 0.5"),
    (("state_dict", ...), META, "got a tensor of (2,), torch.float32 on meta"),
    (("state_dict", ...), SPARSE, "got a torch.sparse_coo tensor"),
    (("state_dict",), None, "is not a whole checkpoint: it lacks state_dict"),
    (("global_step",), True, "global_step must be an integer, got true"),
    (("normtrain", "version"), torch.zeros(2), "checkpoint format"),
    (("normtrain", "recipe"), "x", "recipe must be a mapping, got 'x'"),
    (("normtrain", "tokenizer"), "null", "tokenizer must be a string, got null"),
    (("normtrain", "tokenizer"), "{", "last.ckpt: its tokenizer"),
    (("normtrain", "norms"), [], "norms must be a mapping"),
    (("normtrain", "norms", "é\n" * 99), 1, r"norms \xe9 \xe9"),
    (("normtrain", "environment", "threads"), torch.zeros(2), "threads must be an integer"),
    (("normtrain", "data", "sha256"), None, "data lacks sha256"),
    (("normtrain", "launch", "devices"), "x", "launch devices must be an integer, got 'x'"),
    (("normtrain", "launch", "nodes"), 0, "launch nodes must be a number >= 1"),
    (("normtrain", "launch", "strategy"), "", "strategy must be 'auto', 'ddp' or 'fsdp2'"),
    (("normtrain", "launch", "x"), 1, "launch x must be absent"),
]
NEEDED_TO_RESUME: list[tuple[tuple[Any, ...], Any, str]] = [
    (("optimizer_states",), None, "cannot be resumed: it lacks optimizer_states"),
    (("normtrain", "launch"), None, "cannot be resumed: it lacks launch"),
    (("state_dict", ...), None, "has no weight there"),
    (("state_dict", ...), torch.zeros(3), "has shape (3,)"),
    (("optimizer_states",), [], "optimizer_states must be a list of 1"),
    ((*OPTIMIZER, "param_groups", 0), None, "param_groups must be a list of 2"),
    ((*OPTIMIZER, "param_groups", 0, "params"), [1], "params must be the ids of"),
    ((*OPTIMIZER, "param_groups", 0, "lr"), "x", "optimizer_states lr must be a finite number"),
    ((*OPTIMIZER, "state", 0, "exp_avg"), torch.zeros(2), "0 exp_avg must be a float tensor of"),
    (("lr_schedulers",), {}, "lr_schedulers must be a list"),
    (("totals",), "null", "totals must be a mapping"),
    (LOOP, 3.5, "loops fit_loop must be an integer"),
    (PROGRESS, -1, "epoch_progress total ready must be an integer >= 0, got -1"),
    (("callbacks",), [], "callbacks must be a mapping"),
    (("random_state", 0, "torch"), torch.zeros(3), "random_state 0 must be the states"),
    (("random_state", 0, "python", 0), None, "random_state 0 must be the states"),
]


@pytest.mark.parametrize(("keys", "value", "part"), NEEDED_BY_ALL)
def test_a_checkpoint_must_be_whole(keys: Any, value: Any, part: str, run: Path) -> None:
    path = edit(run, *keys, to=value)
    refused(lambda: read_file(path), path, part)


@pytest.mark.parametrize(("keys", "value", "part"), NEEDED_TO_RESUME)
def test_resuming_needs_a_whole_training_state(keys: Any, value: Any, part: str, run: Path) -> None:
    read = read_file(edit(run, *keys, to=value))
    refused(lambda: check_resumable(read, read.recipe), read.path, part)


@pytest.mark.parametrize("case", [NEEDED_BY_ALL[0], NEEDED_TO_RESUME[8]])
def test_commands_refuse_in_a_line_and_change_nothing(
    case: tuple[Any, Any, str], run: Path, command: Command
) -> None:
    path = edit(run, *case[0], to=case[1])
    before = snapshot(run)
    resumed, evaluated = command("fit", "--resume", run), command("evaluate", path)
    assert_misuse(resumed, "last.ckpt is damaged or was edited", case[2])
    if case in NEEDED_BY_ALL:
        assert_misuse(evaluated, "last.ckpt is damaged or was edited", case[2])
        assert snapshot(run) == before


def test_a_checkpoint_of_norm_swap_alone_is_of_another_program(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "normtrain": {"swap": {"version": 2}}}, tmp_path / "a.ckpt")
    with pytest.raises(
        UserError, match=r"a.ckpt is a checkpoint of another program that used Norm"
    ):
        read_file(tmp_path / "a.ckpt")


def test_version_1_becomes_version_2() -> None:
    recipe = {"optim": {"lr": 1.0}}
    machine = {"devices": 2, "update_batches": 6}
    old = {"version": 1, "machine": machine, "threads": 3, "recipe": recipe, "init": {"from": "x"}}
    before = copy.deepcopy(old)
    assert MIGRATIONS[1](old) == {
        "version": 2,
        "launch": {"devices": 2, "step_batches": 6},
        "environment": {"threads": 3},
        "recipe": {"optim": {"name": "adamw", "lr": 1.0}},
        "init": {"from": "x"},
    }
    assert old == before
    junk = MIGRATIONS[1]({"version": 1, "machine": 3, "recipe": []})
    assert (junk["launch"], junk["recipe"]) == (3, [])


def test_migrations_end_in_the_present_version_and_change_nothing_given() -> None:
    raw = {"normtrain": {"version": 1}, "global_step": 7}
    found = migrate(raw, Path("a.ckpt"))
    assert (found["normtrain"]["version"], found["global_step"]) == (FORMAT_VERSION, 7)
    assert raw["normtrain"] == {"version": 1}
    assert migrate(found, Path("a.ckpt")) is found


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
    path = edit(run, "callbacks", "RunCheckpoints", "best_value")
    before = path.read_bytes()
    result = command("fit", "--resume", run)
    assert_failure(result, "cannot resume from", "KeyError: 'best_value'", "earlier checkpoint")
    assert path.read_bytes() == before


def test_a_flipped_bit_is_told(run: Path, command: Command) -> None:
    """torch reads it as a weight like any other."""
    path = run / "checkpoints/last.ckpt"
    raw = torch.load(path, weights_only=True)
    weights = next(iter(raw["state_dict"].values())).numpy().tobytes()
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
    path = edit(run, "state_dict", "model.head.weight")
    words = ["fit", "--recipe", "lm", "--init-from", path, "--data", text_folder, "--out", "new"]
    sizes = ("--set", "data.window=16", "--set", "data.max_tokens=64")
    assert_misuse(command(*words, *sizes), "weight head.weight")
    assert_misuse(command("import", path, "-o", "made.ckpt"), "weight head.weight")
    assert_nothing_left(Path.cwd())


def test_checkpoints_of_two_models_have_no_mean(run: Path, command: Command) -> None:
    folder = run / "checkpoints"
    (folder / "last.ckpt").rename(folder / "step-00000001.ckpt")
    shutil.copy(folder / "step-00000001.ckpt", folder / "last.ckpt")
    edit(run, "state_dict", ..., to=torch.zeros(3)).rename(folder / "step-00000002.ckpt")
    before = snapshot(run)
    result = command("average", run, "--last", "2", "-o", "mean.ckpt")
    assert_misuse(result, "step-00000002.ckpt", "step-00000001.ckpt", "different models")
    assert snapshot(run) == before
    assert_nothing_left(Path.cwd())
