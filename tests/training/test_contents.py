"""Checkpoints that are not what they should be: told by the part, before anything is touched."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from conftest import assert_failure, assert_misuse, assert_nothing_left

Command = Callable[..., Result]
Raw = dict[str, Any]


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


def edit(run: Path, change: Callable[[Raw], Any]) -> Path:
    path = run / "checkpoints/last.ckpt"
    raw = torch.load(path, weights_only=True)
    change(raw)
    torch.save(raw, path)
    return path


def snapshot(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def weight(raw: Raw) -> str:
    return next(iter(raw["state_dict"]))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda raw: raw.update(state_dict=torch.zeros(2)), "state_dict should be a mapping"),
        (lambda raw: raw["state_dict"].update({3: torch.zeros(2)}), "named by text"),
        (lambda raw: raw["state_dict"].update({weight(raw): 0.5}), "a dense tensor"),
        (
            lambda raw: raw["state_dict"].update({weight(raw): torch.zeros(2, device="meta")}),
            "not a tensor of (2,), torch.float32 on meta",
        ),
        (
            lambda raw: raw["state_dict"].update({weight(raw): torch.zeros(2, 2).to_sparse()}),
            "not a torch.sparse_coo tensor",
        ),
        (lambda raw: raw.update(global_step=True), "global_step should be a whole number"),
        (lambda raw: raw["normtrain"].update(version=torch.zeros(2)), "checkpoint format"),
        (lambda raw: raw["normtrain"].update(recipe="x"), "recipe should be a mapping, not text"),
        (lambda raw: raw["normtrain"].update(tokenizer=None), "tokenizer should be text, not null"),
        (lambda raw: raw["normtrain"].update(tokenizer="{"), "last.ckpt: its tokenizer"),
        (lambda raw: raw["normtrain"].update(norms=[]), "norms should be a mapping"),
        (lambda raw: raw["normtrain"]["norms"].update(x=1), "norms x should be text"),
        (lambda raw: raw["normtrain"].update(threads=torch.zeros(2)), "threads should be a whole"),
        (lambda raw: raw["normtrain"]["data"].pop("sha256"), "data lacks sha256"),
        (lambda raw: raw["normtrain"].update(data={}), "data kind should be text"),
    ],
)
def test_every_command_needs_a_whole_checkpoint(
    change: Callable[[Raw], Any], part: str, run: Path, command: Command
) -> None:
    path = edit(run, change)
    before = snapshot(run)
    assert_misuse(command("evaluate", path), "last.ckpt", part)
    assert_misuse(command("fit", "--resume", run), "last.ckpt", part)
    assert snapshot(run) == before


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda raw: raw.pop("optimizer_states"), "it lacks optimizer_states"),
        (lambda raw: raw["normtrain"]["machine"].update(devices="x"), "machine devices"),
        (lambda raw: raw["normtrain"]["machine"].update(nodes=0), "a whole number of 1 or more"),
        (lambda raw: raw["normtrain"]["machine"].update(strategy=""), "strategy should be auto or"),
        (lambda raw: raw["normtrain"]["machine"].update(x=1), "written by another version"),
        (lambda raw: raw["state_dict"].pop(weight(raw)), "has no weight there"),
        (lambda raw: raw["state_dict"].update({weight(raw): torch.zeros(3)}), "has shape (3,)"),
        (lambda raw: raw.update(optimizer_states=[]), "a list of one optimizer's state"),
        (lambda raw: raw["optimizer_states"][0]["param_groups"].pop(), "param_groups"),
        (
            lambda raw: raw["optimizer_states"][0]["state"][0].update(exp_avg=torch.zeros(2)),
            "optimizer_states 0 exp_avg should be a float tensor of",
        ),
        (lambda raw: raw["optimizer_states"][0]["param_groups"][0].update(lr="x"), "lr should be"),
        (lambda raw: raw.update(lr_schedulers={}), "lr_schedulers should be a list"),
        (lambda raw: raw.update(totals=None), "totals should be a mapping"),
        (lambda raw: raw["loops"].update(fit_loop=3), "loops fit_loop"),
        (
            lambda raw: raw["loops"]["fit_loop"]["epoch_progress"]["total"].update(ready=-1),
            "epoch_progress total ready should be a whole number",
        ),
        (lambda raw: raw.update(callbacks=[]), "callbacks should be a mapping"),
        (lambda raw: raw["random_state"][0].update(torch=torch.zeros(3)), "random_state"),
        (lambda raw: raw["random_state"][0]["python"].pop(), "random_state"),
    ],
)
def test_going_on_needs_a_whole_training_state(
    change: Callable[[Raw], Any], part: str, run: Path, command: Command
) -> None:
    edit(run, change)
    before = snapshot(run)
    assert_misuse(command("fit", "--resume", run), "last.ckpt", part)
    assert snapshot(run) == before


def test_a_state_that_lightning_can_not_take_up_is_a_failure_in_a_line(
    run: Path, command: Command
) -> None:
    path = edit(run, lambda raw: raw["callbacks"]["RunCheckpoints"].pop("best_value"))
    before = path.read_bytes()
    result = command("fit", "--resume", run)
    assert_failure(result, "can't go on from", "KeyError: 'best_value'", "earlier checkpoint")
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
