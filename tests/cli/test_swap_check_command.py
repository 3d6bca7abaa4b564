"""``normtrain swap-check``: how it finds the model, what it prints, its exit codes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import assert_failure, assert_misuse
from user_modules import FILES

ROOT = Path(__file__).parents[2]
Command = Callable[..., Any]


@pytest.fixture
def here(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with modules in it that are forgotten afterwards."""
    from normtrain.norms import registry

    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    folder = tmp_path / "here"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    before = dict(sys.modules)
    yield folder
    for name in set(sys.modules) - set(before):
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def run(command: Command, target: str, *words: str, norm: str = "rmsnorm") -> Any:
    return command("swap-check", target, "--norm", norm, *words)


@pytest.mark.parametrize(
    ("target", "words", "inputs"),
    [
        ("mine:Net", "--input x=4,6", "x float32 (4, 6); from --input"),
        ("mine:model", "--input 4,6", "float32 (4, 6); from --input"),
        ("mine:partial", "--input 4,6", "float32 (4, 6); from --input"),
        ("mine:named", "", "x float32 (4, 6), scale float; given with the model"),
        ("mine:Makers.pair", "", "float32 (4, 6); given with the model"),
        ("./mine.py:pair", "--input 3,6", "float32 (3, 6); from --input"),
        ("package.inner.nets:Net", "--input 4,6", "float32 (4, 6); from --input"),
    ],
)
def test_a_model_is_found_and_checked(
    command: Command, here: Path, target: str, words: str, inputs: str
) -> None:
    state = sys.path[:], sys.argv[:], sys.dont_write_bytecode, torch.get_rng_state().tolist()
    files = sorted(here.rglob("*"))
    result = run(command, target, *words.split())
    assert (result.exit_code, "error" in result.stderr) == (0, False), result.stderr
    head, *lines = result.stdout.splitlines()
    assert head.split() == ["module", "from", "to", "before", "after", "note"]
    assert f"inputs: {inputs}" in lines
    assert sum("  ok  " in line for line in lines) == 5
    assert "a message of user code" not in result.stdout
    after = sys.path[:], sys.argv[:], sys.dont_write_bytecode, torch.get_rng_state().tolist()
    assert (after, sorted(here.rglob("*"))) == (state, files)


def test_json_the_seed_and_the_rules(command: Command, here: Path) -> None:
    words = ("--input", "4,6", "--json", "--init", "fresh", "--seed")
    first, same, other = (run(command, "mine:Net", *words, seed).stdout for seed in ("7", "7", "8"))
    assert first == same
    found = json.loads(first)
    assert sorted(found) == ["change", "checks", "inputs", "notes", "passed", "report", "target"]
    assert (found["target"], found["passed"]) == ("mine:Net", True)
    assert found["report"]["rules"] == [["*", "rmsnorm"]]
    assert found["change"] != json.loads(other)["change"]
    result = command("swap-check", "mine:rearmed", "--norm-at", "*.0.norm1=dyt", "--json")
    report = json.loads(result.stdout)["report"]
    assert [one["name"] for one in report["replaced"]] == ["encoder.layers.0.norm1"]


@pytest.mark.parametrize(
    ("target", "norm", "failed"),
    [
        ("mine:rearmed", "rmsnorm:bias=true", "eval forward"),
        ("custom:net", "bad-backward", "train backward, eval backward"),
    ],
)
def test_a_failed_check_is_exit_code_1(
    command: Command, here: Path, target: str, norm: str, failed: str
) -> None:
    result = run(command, target, norm=norm)
    assert_failure(result, f"checks failed: {failed}")
    assert any(line.startswith("eval") and "FAILED" in line for line in result.stdout.splitlines())


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("", ["Missing argument 'MODULE:FACTORY'"]),
        ("mine:net", ["give --norm SPEC, --norm-at PATTERN=SPEC or both"]),
        ("mine.py --norm rmsnorm", ["expected MODULE:FACTORY", "'mine.py'"]),
        ("mine:a-b --norm rmsnorm", ["expected MODULE:FACTORY"]),
        ("mien:net --norm rmsnorm", ["module mien not found", "did you mean mine.py"]),
        ("mine.more:net --norm rmsnorm", ["module mine.more not found"]),
        ("mien.py:net --norm rmsnorm", ["mien.py is not a .py file; did you mean mine.py"]),
        ("mine:nett --norm rmsnorm", ["mine has no nett; did you mean net"]),
        ("mine:needs --norm rmsnorm", ["mine:needs needs arguments (size)"]),
        ("mine:number --norm rmsnorm", ["mine:number must be a model", "got 3"]),
        ("mine:nothing --norm rmsnorm", ["mine:nothing must return a torch module", "None"]),
        ("mine:fails --norm rmsnorm", ["mine:fails fails: ValueError: no such size (mine.py:"]),
        ("mine:quits --norm rmsnorm", ["mine:quits fails because it ends the program"]),
        ("missing:net --norm rmsnorm", ["No module named 'no_such_thing' (missing.py:3)"]),
        ("wrong:net --norm rmsnorm", ["importing wrong fails: SyntaxError", "(wrong.py:1)"]),
        ("raises.py:net --norm rmsnorm", ["importing raises.py fails: Attr", "(raises.py:5)"]),
        ("lazy:net --norm rmsnorm", ["getting net of lazy fails: ImportError: no net"]),
        ("package/inner/nets.py:Net --norm rmsnorm", ["relative import", "name it as a module"]),
        ("mine:net --norm rmsnorm", ["no inputs found for this Net"]),
        ("mine:pair --norm rmsnrm", ["did you mean rmsnorm"]),
        ("mine:pair --norm rmsnorm --norm-at norm", ["must be PATTERN=NORM"]),
        ("mine:pair --norm rmsnorm --norm-at nrm=dyt", ["pattern 'nrm' matches no norm"]),
        ("mine:pair --norm rmsnorm --init old", ["'old' is not one of 'keep', 'fresh'"]),
        ("mine:pair --norm rmsnorm --seed -1", ["-1 is not in the range"]),
        ("mine:pair --norm rmsnorm --input 2x6", ["--input must be a shape", "'2x6'"]),
        ("mine:pair --norm rmsnorm --input 2,7", ["original model itself fails", "(mine.py:"]),
    ],
)
def test_misuse_is_two_lines(command: Command, here: Path, words: str, parts: list[str]) -> None:
    result = command("swap-check", *words.split())
    result.stderr_bytes = result.stderr_bytes.replace(b"a message of user code\n", b"")
    assert_misuse(result, *parts)
    assert "raises" not in sys.modules


def test_debug_shows_the_traceback_of_user_code(command: Command, here: Path) -> None:
    result = run(command, "mine:fails", "--debug")
    assert result.exit_code == 2
    assert 'raise ValueError("no such size")' in result.stderr


@pytest.mark.extended
def test_in_a_process_of_its_own(here: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    files = sorted(here.rglob("*"))
    for target, code in (("mine:pair", 0), ("mine:fails", 2)):
        command = [sys.executable, "-P", "-m", "normtrain", "swap-check", target, "--norm"]
        done = subprocess.run(
            [*command, "rmsnorm", "--json"],
            capture_output=True, text=True, cwd=here, env=environment, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
    assert sorted(here.rglob("*")) == files
