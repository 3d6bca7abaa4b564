"""``train.deterministic`` and ``train.activation_checkpointing``, and what checkpoints note."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import assert_same_run, rewound

from normtrain.config.recipe import dump
from normtrain.errors import RunError
from normtrain.tasks.language import module as language
from normtrain.tasks.translation import module as translation
from normtrain.training import determinism as module
from normtrain.training import fit, resume
from normtrain.training.determinism import WORKSPACE, changes_since, determinism, environment

DROPOUTS = {"model_dropout": 0.2, "model_attention_dropout": 0.1}
Build = Callable[..., Any]


def flags() -> tuple[Any, ...]:
    cudnn = torch.backends.cudnn
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        cudnn.deterministic,
        cudnn.benchmark,
        torch.backends.cuda.cudnn_sdp_enabled(),
        os.environ.get(WORKSPACE),
    )


ON = (True, False, True, False, False, ":4096:8")


def losses_watched(monkeypatch: pytest.MonkeyPatch, watch: Callable[[], None]) -> None:
    for task in (translation, language):
        real = task.training_loss

        def watched(*args: Any, real: Any = real, **options: Any) -> torch.Tensor:
            watch()
            return real(*args, **options)

        monkeypatch.setattr(task, "training_loss", watched)


@pytest.mark.extended
@pytest.mark.parametrize("task", ["translation", "language"])
def test_recomputed_layers_train_the_same_run(
    task: str, tiny_recipe: Build, tiny_language: Build, tmp_path: Path
) -> None:
    build = {"translation": tiny_recipe, "language": tiny_language}[task]
    changes = DROPOUTS | {"train_precision": "bf16-mixed"}
    plain = fit(build(**changes), out=tmp_path / "plain")
    again = fit(build(train_activation_checkpointing="true", **changes), out=tmp_path / "again")
    assert_same_run(plain, again)
    stopped = rewound(again, 5, tmp_path / "stopped")
    resume(stopped)
    assert_same_run(plain, stopped)


@pytest.mark.extended
def test_the_mode_is_on_in_the_run_and_back_after_it(
    tiny_recipe: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(WORKSPACE, raising=False)
    seen: list[Any] = []
    losses_watched(monkeypatch, lambda: seen.append(flags()))
    before = flags()
    plain = fit(tiny_recipe(), out=tmp_path / "plain")
    assert set(seen) == {before}
    seen.clear()
    run = fit(tiny_recipe(train_deterministic="true"), out=tmp_path / "run")
    assert set(seen) == {ON}
    assert flags() == before
    assert_same_run(plain, run)  # on a CPU the mode has nothing to change


def test_what_was_set_before_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKSPACE, ":16:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        before = flags()
        with determinism(True):
            assert flags() == (*ON[:-1], ":16:8")  # good as it is
        assert flags() == before
        monkeypatch.setenv(WORKSPACE, ":0:0")
        with determinism(True):
            assert flags() == ON
        assert os.environ[WORKSPACE] == ":0:0"
    finally:
        torch.use_deterministic_algorithms(False)


def refuse() -> None:
    raise RuntimeError(
        "cumsum_cuda_kernel does not have a deterministic implementation, but you set "
        "'torch.use_deterministic_algorithms(True)'. You can turn off determinism just for this "
        "operation, or you can use the 'warn_only=True' option."
    )


def test_a_nondeterministic_operation_is_named(
    tiny_language: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses_watched(monkeypatch, refuse)
    before = flags()
    with pytest.raises(RunError, match=r"^cumsum_cuda_kernel has no .*deterministic=false"):
        fit(tiny_language(train_deterministic="true"), out=tmp_path / "run")
    assert flags() == before


def test_the_message_of_torch_is_recognized() -> None:
    """A real one: the operations that have no such version on a CPU either."""
    with pytest.raises(RunError, match=r"^put_ has no deterministic"), determinism(True):
        torch.zeros(3).put_(torch.tensor([0]), torch.tensor([1.0]), accumulate=False)


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="^else$"), determinism(True):
        raise RuntimeError("else")


@pytest.mark.extended
def test_checkpoints_note_what_bits_depend_on(
    trained: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = trained["language"]
    last = run / "checkpoints" / "last.ckpt"
    noted = torch.load(last, weights_only=True)["normtrain"]["environment"]
    assert noted["threads"] == torch.get_num_threads()
    assert noted.items() >= environment().items()
    here = environment()
    for number, changes in enumerate([{}, {"threads": 64}, {"torch": "9.1.0", "device": "a GPU"}]):
        again = rewound(run, 11, tmp_path / f"again-{number}")
        monkeypatch.setattr(module, "environment", lambda changes=changes: here | changes)
        capsys.readouterr()
        resume(again)
        said = [line for line in capsys.readouterr().err.splitlines() if "last bits" in line]
        assert len(said) == len(changes)
        if "threads" in changes:
            assert f"64 CPU threads instead of {here['threads']}" in said[0]


def test_older_checkpoints_note_less() -> None:
    assert list(changes_since({})) == []
    assert list(changes_since({"kernels": environment()["kernels"]})) == []


RUN = """
import sys
from pathlib import Path
from normtrain.config.recipe import load
from normtrain.training import fit
fit(load(sys.argv[1]), out=Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_two_processes_train_the_same_run(tiny_recipe: Build, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(dump(tiny_recipe(train_deterministic="true", **DROPOUTS)), encoding="utf-8")
    for name in ("first", "second"):
        words = [sys.executable, "-c", RUN, str(recipe), str(tmp_path / name)]
        subprocess.run(words, check=True, capture_output=True, timeout=250)
    assert_same_run(tmp_path / "first", tmp_path / "second")
