"""Run folders: their names, one owner, and which one ``--resume auto`` means."""

import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from normtrain.config import recipe as recipes
from normtrain.errors import UserError
from normtrain.training.folder import RunFolder, new_folder, newest_run

Build = Callable[..., Any]


def test_the_default_name_tells_recipe_norm_and_time(
    tiny_recipe: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = tiny_recipe(norm="prmsnorm:p=0.5")
    made = [new_folder(recipe, None).path for _ in range(3)]
    assert len(set(made)) == 3
    for path in made:
        assert path.parent == Path("runs")
        assert re.fullmatch(r"envi-prmsnorm-p=0\.5-\d{8}-\d{6}(-\d)?", path.name)
        assert RunFolder(path).recipe() == recipe
        assert sorted(os.listdir(path)) == ["checkpoints", "recipe.yaml"]


def test_of_runs_started_at_the_same_time_one_gets_the_folder(
    tiny_recipe: Build, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    ready, outcomes = threading.Barrier(4), []

    def start(norm: str) -> None:
        recipe = tiny_recipe(norm=norm)
        ready.wait()
        try:
            outcomes.append((norm, new_folder(recipe, out)))
        except UserError as error:
            outcomes.append((norm, error))

    norms = ("none", "rmsnorm", "layernorm", "adanorm")
    threads = [threading.Thread(target=start, args=(norm,)) for norm in norms]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [winner] = [norm for norm, outcome in outcomes if isinstance(outcome, RunFolder)]
    assert RunFolder(out).recipe().model.norm == winner
    assert not list(out.glob(".*.tmp"))


def test_a_lock_has_one_holder_and_names_it(tiny_recipe: Build, tmp_path: Path) -> None:
    folder = new_folder(tiny_recipe(), tmp_path / "run")
    with folder.locked():
        again = RunFolder(folder.path)
        with pytest.raises(UserError, match=rf"process {os.getpid()}"), again.locked():
            raise AssertionError("held twice")
    with folder.locked():
        pass


def test_a_lock_of_a_killed_process_is_taken_over(tiny_recipe: Build, tmp_path: Path) -> None:
    folder = new_folder(tiny_recipe(), tmp_path / "run")
    (folder.path / ".lock").write_text("999999999")
    with folder.locked():
        assert (folder.path / ".lock").read_text() == str(os.getpid())


def test_auto_means_the_newest_run_of_the_recipe(tiny_recipe: Build, tmp_path: Path) -> None:
    def run(name: str, age: int, **changes: Any) -> RunFolder:
        folder = new_folder(tiny_recipe(**changes), tmp_path / name)
        folder.last.write_bytes(b"")
        os.utime(folder.last, (1_000_000 - age, 1_000_000 - age))
        return folder

    run("old", 30)
    newer = run("newer", 20)
    layer = run("layer", 10, norm="layernorm")
    new_folder(tiny_recipe(), tmp_path / "without-checkpoint")
    broken = run("broken", 0)
    broken.recipe_file.write_text("model: [")

    def newest(recipe: recipes.Recipe | None) -> Path | None:
        found = newest_run(recipe, tmp_path)
        return None if found is None else found.path

    assert newest(tiny_recipe()) == newer.path
    assert newest(tiny_recipe(norm="layernorm")) == layer.path
    assert newest(tiny_recipe(norm="none")) is None
    assert newest(None) == layer.path
    assert newest_run(None, tmp_path / "nowhere") is None
