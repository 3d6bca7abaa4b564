"""The command line: what is passed on, what is printed where, and how it ends."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

import normtrain
from normtrain.cli import cli
from normtrain.config import recipe as recipes
from normtrain.errors import RunError, UserError


class FakeRun(SimpleNamespace):
    """Stands in for ``normtrain.training``: records its calls, raises what it is told to."""

    def __init__(self) -> None:
        super().__init__(calls=[], error=None, folder="runs/made")

    def _called(self, name: str, *args: Any, **kwargs: Any) -> None:
        self.calls.append((name, args, kwargs))
        if self.error is not None:
            raise self.error

    def fit(self, recipe: recipes.Recipe, **kwargs: Any) -> Path:
        self._called("fit", recipe, **kwargs)
        return Path(self.folder)

    def resume(self, run: Any, overrides: Any = (), **kwargs: Any) -> Path:
        self._called("resume", run, list(overrides), **kwargs)
        return Path("runs/resumed")

    def describe(self, recipe: recipes.Recipe) -> str:
        self._called("describe", recipe)
        return "5 parameters\nin 2 layers"

    def evaluate(self, target: Path, **kwargs: Any) -> dict[str, Any]:
        self._called("evaluate", target, **kwargs)
        return {"bleu": 91.237, "signature": "tok:13a", "versions": {"torch": "2"}, "lines": [1]}

    def translate(self, target: Path, lines: Iterable[str], **kwargs: Any) -> Iterator[str]:
        self._called("translate", target, **kwargs)
        kwargs["on_truncated"](2)
        for line in lines:
            yield f"«{line}»"

    def average(self, run: Path, **kwargs: Any) -> str:
        self._called("average", run, **kwargs)
        return "averaged 3"

    def export(self, target: Path, folder: Path, *, format: str) -> str:
        self._called("export", target, folder, format=format)
        return "exported"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeRun:
    fake = FakeRun()
    monkeypatch.setattr(normtrain, "training", fake, raising=False)
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return fake


@pytest.fixture
def call(run: FakeRun) -> Callable[..., Result]:
    def invoke(*words: str, stdin: bytes | None = None) -> Result:
        return CliRunner().invoke(cli, list(words), input=stdin, prog_name="normtrain")

    return invoke


Call = Callable[..., Result]


def test_fit_passes_the_recipe_on_and_prints_the_folder(call: Call, run: FakeRun) -> None:
    words = (
        "fit --recipe envi --norm prmsnorm:p=0.5 --norm-at enc*=none --norm-at dec*=layernorm "
        "--set model.d_model=64 --set optim.lr=1e-4 --seed 3 --precision 32 --out here "
        "--devices 2 --nodes 3 --strategy ddp --timeout 90 --compile"
    )
    result = call(*words.split())
    assert (result.exit_code, result.stdout, result.stderr) == (0, "runs/made\n", "")
    [(name, (recipe,), options)] = run.calls
    assert name == "fit"
    assert options == {
        "init": None,
        "out": Path("here"),
        "devices": 2,
        "nodes": 3,
        "strategy": "ddp",
        "compile": True,
        "timeout": 90,
    }
    model, train = recipe.model, recipe.train
    assert (model.norm, model.d_model, recipe.optim.lr) == ("prmsnorm:p=0.5", 64, 1e-4)
    assert model.norm_rules == (("enc*", "none"), ("dec*", "layernorm"))
    assert (train.seed, train.precision) == (3, "32")


@pytest.mark.parametrize(("here", "world", "rank"), [(4, 8, 5), (1, 2, 1)])
def test_torchrun_sets_devices_and_nodes(
    here: int, world: int, rank: int, call: Call, run: FakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(here))
    monkeypatch.setenv("WORLD_SIZE", str(world))
    monkeypatch.setenv("RANK", str(rank))
    assert call("fit", "--recipe", "envi").stdout == ""  # only the first process prints
    assert (run.calls[0][2]["devices"], run.calls[0][2]["nodes"]) == (here, 2)


def test_resume_needs_nothing_else(call: Call, run: FakeRun, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    result = call("fit", "--resume", "old")
    assert (result.exit_code, result.stdout) == (0, "runs/resumed\n")
    [(_, (folder, overrides), options)] = run.calls
    assert (folder, overrides, options["recipe"]) == (Path("old"), [], None)


def test_resume_passes_on_what_is_asked_to_change(call: Call, run: FakeRun, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    words = (
        "fit --resume old --norm prmsnorm:p=0.5,eps=1e-3 --norm-at *.a=none --seed 2 "
        "--data hf:me/it --precision 32 --set model.d_model=64"
    )
    call(*words.split())
    [(_, (_, overrides), _)] = run.calls
    recipe = recipes.override(recipes.load("envi"), overrides)
    assert recipe.model.norm.startswith("prmsnorm:")
    assert recipe.model.norm_rules == (("*.a", "none"),)
    assert (recipe.train.seed, recipe.train.precision) == (2, "32")
    assert (recipe.data.source, recipe.model.d_model) == ("hf:me/it", 64)


def test_resume_auto_may_start_anew(call: Call, run: FakeRun) -> None:
    call("fit", "--resume", "auto", "--recipe", "envi", "--norm", "none", "--out", "there")
    [(name, (target, overrides), options)] = run.calls
    assert (name, target, overrides, options["out"]) == ("resume", "auto", [], Path("there"))
    assert options["recipe"].model.norm == "none"


def test_dry_run_prints_a_recipe_file(call: Call, run: FakeRun, tmp_path: Path) -> None:
    result = call("fit", "--recipe", "envi", "--set", "model.d_model=64", "--dry-run")
    assert [name for name, _, _ in run.calls] == ["describe"]
    assert result.stdout.endswith("# 5 parameters\n# in 2 layers\n")
    (tmp_path / "again.yaml").write_text(result.stdout, encoding="utf-8")
    assert recipes.load(tmp_path / "again.yaml") == run.calls[0][1][0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("fit", "give --recipe NAME"),
        ("fti", "'fti'. Did you mean 'fit'?"),
        ("recipes lst", "Did you mean 'list'?"),
        ("fit --recpie envi", "--recipe"),
        ("fit --recipe envy", "unknown recipe 'envy'; did you mean envi"),
        ("fit --recipe no/such.yaml", "no/such.yaml does not exist"),
        ("fit --recipe envi --norm rmsnrm", "unknown norm 'rmsnrm'; did you mean rmsnorm"),
        ("fit --recipe envi --norm-at enc", "PATTERN=NORM"),
        ("fit --recipe envi --set d_model=3", "did you mean model.d_model?"),
        ("fit --recipe envi --set model.d_model=x", "model.d_model must be"),
        ("fit --recipe envi --strategy fsdp", "'fsdp' is not one of"),
        ("fit --recipe envi --devices 0", "0 is not in the range"),
        ("fit --recipe envi extra", "extra"),
        ("fit --resume nowhere", "no such run folder"),
        ("fit --resume . --out there", "--out is for a new run"),
        ("fit --resume . --dry-run", "--dry-run shows a new run"),
        ("evaluate nowhere", "'nowhere' does not exist"),
        ("translate . -o no/where", "no is not a folder"),
        ("average .", "-o"),
        ("recipes copy envi mine", "must end in .yaml"),
        ("recipes copy envi no/mine.yaml", "no is not a folder"),
        ("norms show rms", "did you mean rmsnorm"),
    ],
)
def test_misuse_is_two_lines_at_most(call: Call, run: FakeRun, words: str, message: str) -> None:
    result = call(*words.split())
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) <= 2
    assert run.calls == []


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("no such thing"), 2, "error: no such thing\n"),
        (RunError("the disk is full"), 1, "error: the disk is full\n"),
        (UserError("no such \x1b[31m thing"), 2, "error: no such \\x1b[31m thing\n"),
        (OSError(28, "No space left on device", "runs/x"), 1, "error: runs/x: No space left"),
        (EOFError(), 1, "internal error: EOFError (run again with --debug)\n"),
        (RuntimeError("one\ntwo"), 1, "internal error: RuntimeError: one (run again"),
        (BrokenPipeError(32, "Broken pipe"), 1, "error: Broken pipe\n"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (KeyboardInterrupt("stopped; resume with: x"), 130, "stopped; resume with: x\n"),
    ],
)
def test_failures_are_one_line_and_an_exit_code(
    call: Call, run: FakeRun, error: BaseException, code: int, message: str
) -> None:
    run.error = error
    result = call("fit", "--recipe", "envi")
    assert result.exit_code == code
    assert result.stdout == ""
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "error", "code"),
    [
        ("--debug fit --recipe envi", UserError("no"), 2),
        ("fit --recipe envi --debug", KeyError("x"), 1),
    ],
)
def test_debug_shows_the_traceback(
    call: Call, run: FakeRun, words: str, error: Exception, code: int
) -> None:
    run.error = error
    result = call(*words.split())
    assert result.exit_code == code
    assert "Traceback" in result.stderr
    assert type(error).__name__ in result.stderr


def test_evaluate_prints_a_table_or_json(call: Call, run: FakeRun) -> None:
    table = call("evaluate", ".", "--split", "valid", "--data", "iwslt15", "--beam", "2")
    assert table.stdout == "bleu            91.24\nsignature       tok:13a\nversions.torch  2\n"
    [(_, (target,), options)] = run.calls
    assert target == Path(".")
    assert {key: options[key] for key in ("split", "data", "beam", "length_penalty")} == {
        "split": "valid",
        "data": "iwslt15",
        "beam": 2,
        "length_penalty": None,
    }
    machine = call("evaluate", ".", "--json")
    assert json.loads(machine.stdout)["bleu"] == 91.237
    assert machine.stdout.count("\n") == 1


LINES = "\ufeffone\r\n\n  tab\there \x85 nel\u2028ls\nlast".encode()
TRANSLATED = "«one»\n«»\n«  tab\there \x85 nel\u2028ls»\n«last»\n".encode()


def test_translate_keeps_lines_from_stdin(call: Call, run: FakeRun) -> None:
    result = call("translate", ".", "--beam", "3", "--length-penalty", "1", stdin=LINES)
    assert result.exit_code == 0
    assert result.stdout_bytes == TRANSLATED
    options = run.calls[0][2]
    assert (options["beam"], options["length_penalty"]) == (3, 1.0)
    assert result.stderr == "line 2 is longer than the model accepts and was truncated\n"


def test_translate_a_file_into_a_file(call: Call, tmp_path: Path) -> None:
    source = tmp_path / "in.txt"
    source.write_bytes(LINES)
    result = call("translate", ".", "in.txt", "-o", "in.txt")  # its own source: read whole first
    assert (result.exit_code, result.stdout) == (0, "")
    assert source.read_bytes() == TRANSLATED


def test_a_failed_translation_leaves_the_old_file(call: Call, tmp_path: Path) -> None:
    (tmp_path / "out.txt").write_text("old")
    result = call("translate", ".", "-o", "out.txt", stdin=b"good\n\xff\n")
    assert result.exit_code == 2
    assert "stdin, line 2 is not UTF-8" in result.stderr
    assert (tmp_path / "out.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out.txt"]


def test_average_and_export_pass_on_and_print(call: Call, run: FakeRun) -> None:
    assert call("average", ".", "--last", "3", "-o", "a.ckpt").stdout == "averaged 3\n"
    assert call("export", ".", "made").stdout == "exported\n"
    assert run.calls == [
        ("average", (Path("."),), {"last": 3, "output": Path("a.ckpt")}),
        ("export", (Path("."), Path("made")), {"format": "native"}),
    ]


def test_recipes_are_listed_shown_and_copied(call: Call, tmp_path: Path) -> None:
    listed = call("recipes", "list").stdout.splitlines()
    assert {"envi", "envi-iwslt15"} <= {line.split()[0] for line in listed}
    shown = call("recipes", "show", "envi").stdout
    assert shown.startswith("# English→Vietnamese")
    assert any(line.startswith("envi  ") and line.split(maxsplit=1)[1] in shown for line in listed)
    assert call("recipes", "copy", "envi", "mine.yaml").stdout == "mine.yaml\n"
    assert (tmp_path / "mine.yaml").read_text(encoding="utf-8") == shown
    again = call("recipes", "copy", "envi", "mine.yaml")
    assert (again.exit_code, "mine.yaml exists; --force" in again.stderr) == (2, True)
    assert call("recipes", "copy", "envi", "mine.yaml", "--force").exit_code == 0
    resolved = call("recipes", "show", "mine.yaml", "--resolved").stdout
    assert resolved.startswith("name: mine\n")


@pytest.mark.parametrize(
    ("command", "flag"), [("", "-h"), ("fit", "--help"), ("recipes copy", "-h")]
)
def test_help_everywhere(call: Call, command: str, flag: str) -> None:
    result = call(*command.split(), flag)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: normtrain {command}".rstrip())


def test_version(call: Call) -> None:
    assert call("--version").stdout == f"normtrain {normtrain.__version__}\n"


def test_a_closed_pipe_is_silent() -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "normtrain", "recipes", "show", "envi"]
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, cwd=root, check=False)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_path_that_is_not_utf_8_goes_out_as_it_came_in(call: Call, run: FakeRun) -> None:
    run.folder = "runs/\udcff"
    result = call("fit", "--recipe", "envi")
    assert (result.exit_code, result.stdout_bytes) == (0, b"runs/\xff\n")
