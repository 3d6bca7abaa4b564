"""The library wing stands by itself: what it imports, and the order of the packages."""

import ast
import collections
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "normtrain"

ALONE = """
import importlib.metadata, sys

MISSING = {"datasets", "tokenizers", "transformers", "sacrebleu", "pydantic", "rich", "tensorboard"}

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

found = importlib.metadata.Distribution.from_name

def from_name(name):
    if name in MISSING:
        raise importlib.metadata.PackageNotFoundError(name)
    return found(name)

sys.meta_path.insert(0, Missing())
importlib.metadata.Distribution.from_name = from_name

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from normtrain import NormMonitor, NormSwap, build_norm, swap_norms

class Task(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))

    def training_step(self, batch, batch_idx):
        return self.net(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

task, monitor = Task(), NormMonitor(every=1)
quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
trainer = pl.Trainer(
    accelerator="cpu", max_steps=2, enable_checkpointing=False,
    callbacks=[NormSwap("rmsnorm"), monitor], **quiet,
)
trainer.fit(task, DataLoader(torch.randn(8, 4), batch_size=4))
assert type(task.net[1]).__name__ == "RMSNorm", task
assert set(monitor.last) == {"net.1"}
assert swap_norms(nn.Sequential(nn.LayerNorm(4)), "adanorm").replaced
assert build_norm("rmsnorm", 4)(torch.ones(2, 4)).shape == (2, 4)
rooms = ("data", "config", "tasks", "training", "study", "hf", "cli", "models")
loaded = [name for name in sys.modules if name.startswith(tuple(f"normtrain.{r}" for r in rooms))]
assert not loaded, loaded
"""


@pytest.mark.extended
def test_the_library_works_without_what_only_the_trainer_needs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALONE],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


# A package imports only from those behind it; the library begins at "monitor".
ORDER = [
    *("__main__", "cli", "study", "training", "tasks", "hf", "data", "config"),
    *("monitor", "swap", "convert", "models", "bench", "norms", "kernels"),
]
# Files that a task folder or several packages may share the name of.
SHARED = {"__init__.py", "base.py"} | {
    f"{name}.py"
    for name in ("config", "data", "module", "metrics", "evaluate", "card", "corpora", "encoding")
    + ("tokenizer",)
}


def _modules() -> dict[str, Path]:
    def name(file: Path) -> str:
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        return ".".join(parts).removesuffix(".__init__")

    return {name(file): file for file in PACKAGE.rglob("*.py")}


MODULES = _modules()
TREES = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in MODULES.items()}


def _rank(module: str) -> int:
    package = module.split(".")[1] if "." in module else ""
    return ORDER.index(package) if package in ORDER else len(ORDER)


def _imports(module: str) -> Iterator[str]:
    """The modules of this package that a module imports, at its top or in a function."""
    for node in ast.walk(TREES[module]):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module for name in inner]
        yield from (name for name in names if name in MODULES and name != module)


IMPORTS = {name: set(_imports(name)) for name in MODULES}


def test_no_import_goes_upward() -> None:
    # The lazy names of `normtrain` itself may come from any package.
    upward = [
        f"{module} imports {other}"
        for module, others in IMPORTS.items()
        for other in others
        if module != "normtrain" and _rank(other) < _rank(module)
    ]
    assert not upward


def test_no_modules_import_each_other_in_a_circle() -> None:
    remaining = {module: set(others) for module, others in IMPORTS.items()}
    while free := [module for module, others in remaining.items() if not others]:
        for module in free:
            del remaining[module]
        for others in remaining.values():
            others.difference_update(free)
    # What only imports a circle is none of it.
    while ends := set(remaining) - set().union(*remaining.values()):
        for module in ends:
            del remaining[module]
    assert not remaining, sorted(remaining)


def test_names_of_files_and_classes_are_not_used_again() -> None:
    files = collections.Counter(file.name for file in MODULES.values())
    assert not {name: n for name, n in files.items() if n > 2 and name not in SHARED}
    classes = collections.Counter(
        node.name
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert not {name: n for name, n in classes.items() if n > 1}


@pytest.mark.parametrize("folder", ["normtrain", "tests", "tools", "benchmarks"])
def test_files_are_below_400_lines(folder: str) -> None:
    files = (PACKAGE.parent / folder).rglob("*.py")
    long = {f.name: n for f in files if (n := len(f.read_text().splitlines())) >= 400}
    assert not long
