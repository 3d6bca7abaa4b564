"""``normtrain swap-check``: the model it finds, what it prints, how it ends."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import assert_failure, assert_misuse
from their_modules import FILES, HF, LIT

ROOT = Path(__file__).parents[2]
Command = Callable[..., Any]


@pytest.fixture
def here(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with modules in it, forgotten afterwards."""
    from normtrain.norms import registry

    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    folder = tmp_path / "here"
    (folder / "package" / "inner").mkdir(parents=True)
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    before = dict(sys.modules)
    yield folder
    for name in set(sys.modules) - set(before):
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def run(command: Command, target: str, *words: str, norm: str = "rmsnorm") -> Any:
    return command("swap-check", target, "--norm", norm, *words)


def as_json(result: Any) -> Any:
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout)


# What makes a model.


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("mine:net", "--input 4,6"),
        ("mine:Net", "--input x=4,6"),
        ("mine:model", "--input 4,6"),
        ("mine:partial", "--input 4,6"),
        ("mine:pair", ""),
        ("mine:named", ""),
        ("mine:Makers.pair", ""),
        ("mine:Makers.text", "--input int:2,5:9 --input shift=8"),
        ("mine.py:pair", ""),
        ("./mine.py:pair", ""),
        ("package.inner.nets:Net", "--input 4,6"),
        ("package/inner/more.py:Net", "--input 4,6"),
        ("theirs:net", ""),
    ],
)
def test_every_kind_of_factory_is_found(
    command: Command, here: Path, target: str, words: str
) -> None:
    result = run(command, target, *words.split())
    assert (result.exit_code, "error" in result.stderr) == (0, False), result.stderr
    head, *lines = result.stdout.splitlines()
    assert head.split() == ["module", "from", "to", "before", "after", "note"]
    checks = [line for line in lines if "  ok  " in line]
    assert len(checks) == 8
    assert lines[-1].startswith("change of the output in eval: 0.")
    assert "a message of theirs" not in result.stdout


def test_the_inputs_are_as_asked_for(command: Command, here: Path) -> None:
    def inputs(target: str, *words: str) -> str:
        return as_json(run(command, target, "--json", *words))["inputs"]

    assert inputs("mine:named") == "x float32 (4, 6), scale float; given with the model"
    assert inputs("mine:pair") == "float32 (4, 6); given with the model"
    assert inputs("mine:pair", "--input", "3,6") == "float32 (3, 6); from --input"
    words = ("--input", "int:2,5:9", "--input", "shift=8")
    assert inputs("mine:Makers.text", *words) == "int64 (2, 5), shift float32 (8,); from --input"


@pytest.mark.parametrize("flavour", ["pytorch_lightning", "lightning.pytorch"])
def test_a_lightning_module_is_configured_and_called(
    command: Command, here: Path, flavour: str
) -> None:
    pytest.importorskip(flavour)
    (here / "lit.py").write_text(LIT.format(flavour=flavour), encoding="utf-8")
    result = run(command, "lit:Lit")
    assert result.exit_code == 0, result.stderr
    assert "inputs: float32 (2, 6); from example_input_array\n" in result.stdout
    assert "note: configure_model of Lit was called on the copy\n" in result.stdout


def test_hugging_faces_dummy_inputs_are_taken(command: Command, here: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    (here / "hf.py").write_text(HF, encoding="utf-8")
    result = as_json(run(command, "hf:tiny", "--norm-at", "*.ln_f=layernorm", "--json"))
    assert result["passed"]
    assert result["inputs"] == "input_ids int64 (3, 5); from dummy_inputs"
    assert {one["name"]: one["new"] for one in result["report"]["replaced"]} == {
        "transformer.h.0.ln_1": "rmsnorm:eps=1e-05",
        "transformer.h.0.ln_2": "rmsnorm:eps=1e-05",
        "transformer.h.1.ln_1": "rmsnorm:eps=1e-05",
        "transformer.h.1.ln_2": "rmsnorm:eps=1e-05",
        "transformer.ln_f": "layernorm:eps=1e-05",
    }


# What is printed.


def test_json_is_one_object_with_report_and_checks(command: Command, here: Path) -> None:
    result = run(command, "mine:pair", "--json", "--init", "fresh")
    found = as_json(result)
    assert sorted(found) == ["change", "checks", "inputs", "notes", "passed", "report", "target"]
    assert (found["target"], found["passed"], found["notes"]) == ("mine:pair", True, [])
    assert found["report"] == {
        "replaced": [
            {
                "name": "norm",
                "old": "LayerNorm",
                "new": "rmsnorm:eps=1e-05",
                "parameters_before": 16,
                "parameters_after": 8,
                "note": found["report"]["replaced"][0]["note"],
            }
        ],
        "skipped": [],
        "notes": [],
        "rules": [["*", "rmsnorm"]],
    }
    assert {check["status"] for check in found["checks"]} == {"ok"}
    assert 0 < found["change"] < 2


@pytest.mark.usefixtures("default_kernels")
def test_the_same_norm_changes_nothing(command: Command, here: Path) -> None:
    assert as_json(run(command, "mine:pair", "--json", norm="layernorm"))["change"] == 0


def test_the_seed_decides_model_and_inputs(command: Command, here: Path) -> None:
    words = ("--input", "4,6", "--json", "--seed")
    first, same, other = (
        as_json(run(command, "mine:Net", *words, seed)) for seed in ("7", "7", "8")
    )
    assert first == same
    assert first["change"] != other["change"]


def test_rules_without_a_norm_for_all_leave_the_others(command: Command, here: Path) -> None:
    result = command("swap-check", "mine:rearmed", "--norm-at", "*.0.norm1=dyt", "--json")
    found = as_json(result)["report"]
    assert [one["name"] for one in found["replaced"]] == ["encoder.layers.0.norm1"]
    assert len(found["skipped"]) == 3


# Checks that fail.


def test_a_fast_path_that_is_armed_again_is_exit_1(command: Command, here: Path) -> None:
    result = run(command, "mine:rearmed", norm="rmsnorm:bias=true")
    assert_failure(result, "1 of the checks failed: eval contexts")
    [line] = [line for line in result.stdout.splitlines() if "FAILED" in line]
    assert line.startswith("eval contexts        FAILED   under ")
    assert "passed over there: encoder.layers.0.norm1" in line


def test_a_norm_of_theirs_whose_gradient_is_nan_is_exit_1(command: Command, here: Path) -> None:
    result = run(command, "theirs:net", "--json", norm="bad-backward")
    assert_failure(result, "failed: backward")
    found = as_json(result)
    assert found["passed"] is False
    [check] = [check for check in found["checks"] if check["status"] == "FAILED"]
    assert check["detail"] == "gradient not finite: 0.weight, 0.bias, 1.weight"


# Misuse.


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("", ["Missing argument 'MODULE:FACTORY'"]),
        ("mine:net", ["give --norm SPEC, --norm-at PATTERN=SPEC or both"]),
        ("mine --norm rmsnorm", ["'mine' should be MODULE:FACTORY, such as"]),
        ("mine.py --norm rmsnorm", ["mine.py alone does not say what makes the model"]),
        ("mine: --norm rmsnorm", ["'mine:' should be MODULE:FACTORY"]),
        ("mine:a-b --norm rmsnorm", ["should be MODULE:FACTORY"]),
        ("my-ne:net --norm rmsnorm", ["'my-ne' is no module's name"]),
        ("mien:net --norm rmsnorm", ["no module mien in this folder", "did you mean mine.py"]),
        ("package.innner:net --norm rmsnorm", ["there is no module package.innner"]),
        ("mine.more:net --norm rmsnorm", ["there is no module mine.more"]),
        ("mien.py:net --norm rmsnorm", ["there is no file mien.py; did you mean mine.py"]),
        ("no/mine.py:net --norm rmsnorm", ["there is no file no/mine.py"]),
        ("package/inner:net --norm rmsnorm", ["there is no file package/inner"]),
        ("mine:nett --norm rmsnorm", ["mine has no nett; there is net"]),
        ("mine:Makers.txt --norm rmsnorm", ["mine:Makers has no txt; there is text"]),
        ("json:Net --norm rmsnorm", ["json (", "has no Net"]),
        ("mine:needs --norm rmsnorm", ["mine:needs needs arguments (size)"]),
        ("mine:number --norm rmsnorm", ["mine:number is a int; it should be a torch module"]),
        ("mine:nn --norm rmsnorm", ["mine:nn is a Python module"]),
        ("mine:nothing --norm rmsnorm", ["mine:nothing gives None; it should give a torch mod"]),
        ("mine:triple --norm rmsnorm", ["mine:triple gives a tuple of 3 (Net, Tensor, int)"]),
        ("mine:fails --norm rmsnorm", ["mine:fails fails: ValueError: no such size (mine.py:"]),
        ("mine:norm_fails --norm rmsnorm", ["mine:norm_fails fails: UserError: unknown norm"]),
        ("mine:quits --norm rmsnorm", ["mine:quits fails, for it ends the program", "mine.py:"]),
        ("missing:net --norm rmsnorm", ["No module named 'no_such_thing' (missing.py:3)"]),
        ("wrong:net --norm rmsnorm", ["importing wrong fails: SyntaxError", "(wrong.py:1)"]),
        ("raises:net --norm rmsnorm", ["AttributeError", "'SIZES'", "(raises.py:5)"]),
        ("raises.py:net --norm rmsnorm", ["importing raises.py fails: Attr", "(raises.py:5)"]),
        ("lazy:net --norm rmsnorm", ["getting net of lazy fails: ImportError: no net (lazy.py:2)"]),
        ("quits:net --norm rmsnorm", ["importing quits fails, for it ends", "(quits.py:2)"]),
        (
            "package/inner/nets.py:Net --norm rmsnorm",
            ["attempted relative import", "(package/inner/nets.py:1); name a file of a package"],
        ),
        ("mine:net --norm rmsnorm", ["nothing to call this Net with: give --input", "dummy_inp"]),
        ("mine:pair --norm rmsnrm", ["unknown norm 'rmsnrm'; did you mean rmsnorm"]),
        ("mine:pair --norm rmsnorm:p=2", ["rmsnorm"]),
        ("mine:pair --norm rmsnorm --norm-at norm", ["must be PATTERN=NORM"]),
        ("mine:pair --norm rmsnorm --norm-at nrm=dyt", ["pattern 'nrm' matches no norm"]),
        ("mine:plain --norm rmsnorm", ["no norm of this Linear was replaced: it holds no norm"]),
        ("mine:done --norm rmsnorm", ["no norm would be replaced: norm: already rmsnorm"]),
        ("mine:pair --norm rmsnorm --init old", ["'old' is not one of 'keep', 'fresh'"]),
        ("mine:pair --norm rmsnorm --seed -1", ["-1 is not in the range"]),
        ("mine:pair --norm rmsnorm --input 2x6", ["--input '2x6' should be a shape such as"]),
        ("mine:pair --norm rmsnorm --input x=2,6 --input x=2,6", ["--input gives x twice"]),
        (
            "mine:pair --norm rmsnorm --input 2,7",
            ["original model itself fails", "float32 (2, 7); from --input", "(mine.py:"],
        ),
        (
            "mine:pair --norm rmsnorm --input y=2,6",
            ["original model itself fails", "unexpected keyword argument 'y'"],
        ),
        ("mine:pair extra --norm rmsnorm", ["unexpected extra argument"]),
    ],
)
def test_misuse_is_two_lines(command: Command, here: Path, words: str, parts: list[str]) -> None:
    result = command("swap-check", *words.split())
    theirs = "a message of theirs\n"
    result.stderr_bytes = result.stderr_bytes.replace(theirs.encode(), b"")
    assert_misuse(result, *parts)


def test_debug_shows_the_traceback_of_their_code(command: Command, here: Path) -> None:
    result = run(command, "mine:fails", "--debug")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert 'raise ValueError("no such size")' in result.stderr


def test_help_says_how(command: Command) -> None:
    result = command("swap-check", "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage: normtrain swap-check [OPTIONS] MODULE:FACTORY\n")
    assert "\n  swap-check  Try other norms in a model of your own.\n" in command("--help").stdout


# Nothing is left behind.


def test_nothing_changes(command: Command, here: Path) -> None:
    def around() -> list[Any]:
        return [
            sorted(path.relative_to(here) for path in here.rglob("*")),
            (sys.path[:], sys.argv[:], sys.dont_write_bytecode),
            (random.getstate(), np.random.get_state()[1].tolist()),
            torch.get_rng_state().tolist(),
        ]

    before = around()
    for target in ("mine:model", "mine.py:model", "mine:fails", "wrong:net"):
        run(command, target, "--input", "4,6")
        assert around() == before
    model = sys.modules["mine"].model
    assert type(model.norm) is torch.nn.LayerNorm
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_module_that_failed_is_not_kept(command: Command, here: Path) -> None:
    assert run(command, "raises.py:net").exit_code == 2
    assert "raises" not in sys.modules


def test_in_a_process_of_its_own_as_a_user_would(here: Path, tmp_path: Path) -> None:
    def swap_check(*words: str) -> Any:
        command = [sys.executable, "-P", "-m", "normtrain", "swap-check", *words]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        return subprocess.run(
            command, capture_output=True, text=True, cwd=here, env=environment, check=False
        )

    files = sorted(here.rglob("*"))
    done = swap_check("mine:pair", "--norm", "rmsnorm", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["passed"]
    assert sorted(here.rglob("*")) == files
    assert swap_check("mine:fails", "--norm", "rmsnorm").returncode == 2
