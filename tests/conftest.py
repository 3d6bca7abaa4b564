"""Shared by all tests: a cache of their own, a tiny corpus, a recipe that trains in a second."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tools.campaigns.tiny import TINY_TEXT, tiny_settings, write_corpus, write_text

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores: threads of torch, here and in the processes that tests start, would
    # wait for each other. Before torch is imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


# How long an example takes depends on what else the machine does.
hypothesis.settings.register_profile("normtrain", deadline=None)
hypothesis.settings.load_profile("normtrain")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Use one worker a core when the command names no path; ``-n 0`` turns that off."""
    option = config.option
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    worker = "PYTEST_XDIST_WORKER" in os.environ
    if whole and not worker and not option.collectonly and option.capture != "no":
        option.numprocesses = "auto" if option.numprocesses is None else option.numprocesses


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the quick tier, unless ``-m`` or a test's own name (``file.py::test``) selects."""
    if config.option.markexpr or any("::" in argument for argument in config.args):
        return
    hidden = [item for item in items if any(map(item.get_closest_marker, ("extended", "slow")))]
    if hidden:
        config.hook.pytest_deselected(items=hidden)
        items[:] = [item for item in items if item not in set(hidden)]


@pytest.fixture
def default_kernels() -> Any:
    """For what holds by default alone: the bits of `torch.nn.LayerNorm`, whatever is forced."""
    from normtrain import kernels

    with kernels.use("auto"):
        yield


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from normtrain.logs import show_messages

    patch = pytest.MonkeyPatch()
    patch.setenv("NORMTRAIN_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.setenv("HF_HUB_OFFLINE", "1")
    show_messages()  # pytest configures logging, so nothing would be shown by default
    yield
    patch.undo()


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train, valid and test in two languages."""
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train, valid and test text."""
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="session")
def tiny_recipe(corpus_folder: Path) -> Callable[..., Any]:
    """Builds a tiny recipe on the tiny corpus: ``tiny_recipe(norm="adanorm", train_ema=0.9)``."""

    def build(norm: str = "rmsnorm", recipe: str = "envi", **changes: Any) -> Any:
        from normtrain.config.recipe import resolve

        settings = tiny_settings(**changes)
        return resolve(recipe, norm=norm, data=str(corpus_folder), overrides=settings)

    return build


@pytest.fixture(scope="session")
def tiny_language(text_folder: Path) -> Callable[..., Any]:
    """Builds a tiny language recipe on the tiny text: ``tiny_language(data_tokenizer="word")``."""

    def build(norm: str = "rmsnorm", recipe: str = "lm", **changes: Any) -> Any:
        from normtrain.config.recipe import resolve

        settings = tiny_settings(TINY_TEXT, **changes)
        return resolve(recipe, norm=norm, data=str(text_folder), overrides=settings)

    return build


class OnDemand(dict[str, Path]):
    """Runs by name, each trained when a test first asks for it. Read only."""

    def __init__(self, train: Callable[[str], Path]) -> None:
        super().__init__()
        self.train = train

    def __missing__(self, name: str) -> Path:
        self[name] = self.train(name)
        return self[name]


@pytest.fixture(scope="session")
def learned(
    tiny_recipe: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Finished runs that have learnt something: ``plain``, ``ema`` and ``bf16``."""
    settings = {
        "data_max_tokens": 240,
        "model_d_model": 32,
        "model_d_ff": 64,
        "optim_lr": 0.02,
        "train_max_steps": 160,
        "train_val_every": 80,
        "train_val_beam": 2,
        "train_checkpoint_every": 40,
        "train_log_every": 20,
    }
    kinds = {"plain": {}, "ema": {"train_ema": 0.95}, "bf16": {"train_precision": "bf16-true"}}
    folder = tmp_path_factory.mktemp("learned")

    def train(kind: str) -> Path:
        from normtrain.training import fit

        return fit(tiny_recipe(**settings, **kinds[kind]), out=folder / kind)

    return OnDemand(train)


@pytest.fixture(scope="session")
def trained(
    tiny_recipe: Callable[..., Any],
    tiny_language: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """Finished runs of 12 steps with every checkpoint: ``translation`` and ``language``."""
    folder = tmp_path_factory.mktemp("trained")
    builds = {"translation": tiny_recipe, "language": tiny_language}

    def train(task: str) -> Path:
        from normtrain.training import fit

        return fit(builds[task](), out=folder / task)

    return OnDemand(train)


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs ``normtrain`` with the words given, in an empty folder, in this process."""
    from click.testing import CliRunner

    from normtrain.cli import cli

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def invoke(*words: object, stdin: bytes | None = None) -> Any:
        return CliRunner().invoke(cli, [str(w) for w in words], input=stdin, prog_name="normtrain")

    return invoke


@pytest.fixture
def copy(learned: dict[str, Path], tmp_path: Path) -> Path:
    """A finished run that a test may damage."""
    return shutil.copytree(learned["plain"], tmp_path / "copy")


def fit_words(corpus: Path, out: Path, **changes: Any) -> list[str]:
    settings = [word for setting in tiny_settings(**changes) for word in ("--set", setting)]
    return ["fit", "--recipe", "envi", "--data", str(corpus), "--out", str(out), *settings]


def assert_misuse(result: Any, *parts: str) -> None:
    """Exit 2, one or two lines that hold all the parts, nothing on stdout."""
    assert result.exit_code == 2, result.stderr
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) <= 2, result.stderr
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in result.stderr


def assert_failure(result: Any, *parts: str) -> None:
    """Exit 1, and the failure in the last line."""
    assert result.exit_code == 1, result.stderr
    assert "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    for part in parts:
        assert part in last


def assert_nothing_left(folder: Path) -> None:
    assert sorted(folder.rglob("*")) == []
