"""Models that no machine can hold are told before anything is written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import assert_failure, assert_misuse, assert_nothing_left, fit_words

from normtrain.tasks.base import task_of

HUGE = {"model_d_ff": 2**31 - 1, "model_d_model": 2**20, "model_heads": 1}


def test_sizes_that_torch_can_not_count(command: Callable[..., Any], corpus_folder: Path) -> None:
    words = fit_words(corpus_folder, Path("run"), **HUGE | {"model_d_model": 2**31 - 2})
    assert_misuse(command(*words), "a model of these sizes cannot be built", "model.d_model")
    assert_misuse(command(*words, "--dry-run"), "a model of these sizes cannot be built")
    assert_nothing_left(Path.cwd())


def test_more_than_this_machine_holds(command: Callable[..., Any], corpus_folder: Path) -> None:
    words = fit_words(corpus_folder, Path("run"), **HUGE)
    assert_failure(command(*words), "parameters take at least", "GB to train", "lower model.d_")
    assert_nothing_left(Path.cwd())
    shown = command(*words, "--dry-run")  # perhaps it is for another machine
    assert shown.exit_code == 0, shown.stderr


def test_memory_that_ends_while_the_model_is_built(
    command: Callable[..., Any],
    corpus_folder: Path,
    tiny_recipe: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    monkeypatch.setattr(type(task_of(tiny_recipe())), "module", full)
    result = command(*fit_words(corpus_folder, Path("run")))
    assert_failure(result, "out of memory building the model; lower model.d_model")
