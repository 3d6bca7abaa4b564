"""Packaging: light imports, one version everywhere, shipped recipes."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import normtrain
from normtrain.config import bundled as recipes
from normtrain.config import recipe
from normtrain.errors import UserError

ROOT = Path(__file__).parents[1]
HEAVY = ["torch", "pytorch_lightning", "lightning", "datasets", "numpy", "pyarrow", "pydantic"]


def python(code: str, *words: str, extra_path: Path | None = None) -> str:
    paths = [str(ROOT)] + ([str(extra_path)] if extra_path else [])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = f"import sys, normtrain; print([name for name in {HEAVY} if name in sys.modules])"
    assert python(code) == "[]\n"


def test_every_public_name_can_be_imported() -> None:
    for name in normtrain.__all__:
        assert getattr(normtrain, name) is not None


@pytest.mark.parametrize("words", [["--help"], ["fit", "--help"], ["recipes", "list"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        "import atexit, sys\n"
        f"heavy = lambda: print('HEAVY', [name for name in {HEAVY} if name in sys.modules])\n"
        "atexit.register(heavy)\n"
        "from normtrain.cli import main\n"
        "main()\n"
    )
    assert python(code, *words).splitlines()[-1] == "HEAVY []"


def test_the_guard_sees_a_heavy_import() -> None:
    code = f"import sys, normtrain.norms; print([n for n in {HEAVY} if n in sys.modules])"
    assert "torch" in python(code)


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_version_is_the_same_everywhere() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\nversion: {normtrain.__version__}\n" in citation
    latest = re.search(r"^## (\S+)", changelog, re.MULTILINE)
    assert latest[1] == normtrain.__version__


def test_every_dependency_has_a_tested_version() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    extras = project()["project"]["optional-dependencies"]
    wanted = project()["project"]["dependencies"] + [
        each for extra in extras.values() for each in extra
    ]
    for requirement in wanted:
        found = re.match(r"([A-Za-z0-9_.-]+?)(?:>=([\d.]+))?(?:; .*)?$", requirement)
        assert found is not None, requirement
        name, least = found[1].lower().replace("_", "-"), found[2] or "0"
        assert name in pinned
        assert numbers(pinned[name]) >= numbers(least)


def numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def test_shipped_recipes_are_found_by_name() -> None:
    assert {path.stem for path in (ROOT / "recipes").glob("*.yaml")} <= set(recipes.names())
    assert recipes.find("envi").is_file()
    assert recipes.summary("envi").startswith("English→Vietnamese")


def test_another_packages_recipes_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[normtrain.recipes]\nother-a = other_recipes:PATH\nother-b = other_recipes:make\n"
        "other-lost = other_recipes:nothing\nenvi = other_recipes:PATH\n"
    )
    (tmp_path / "other.yaml").write_text("# Another.\nmodel: {d_model: 64}\n")
    (tmp_path / "other_recipes.py").write_text(
        f"PATH = {str(tmp_path / 'other.yaml')!r}\n\n\ndef make() -> str:\n    return PATH\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert {"other-a", "other-b", "other-lost", "envi"} <= set(recipes.names())
    assert recipe.load("other-a").model.d_model == 64
    assert recipe.load("other-b").name == "other-b"
    assert recipe.load("envi").model.d_model == 256  # shipped recipes come first
    with pytest.raises(UserError, match=r"other_recipes:nothing"):
        recipes.find("other-lost")


@pytest.mark.slow
def test_the_wheel_carries_recipes_and_data(tmp_path: Path) -> None:
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "-q",
        "-w",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(build, check=True)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    for path in (ROOT / "recipes").glob("*.yaml"):
        assert f"normtrain/recipes_data/{path.name}" in names
    for path in (ROOT / "normtrain").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert path.relative_to(ROOT).as_posix() in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"normtrain"}
    code = "from normtrain.config import bundled; print(bundled.find('envi'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "installed")},
    )
    assert done.stdout.strip() == str(
        tmp_path / "installed" / "normtrain" / "recipes_data" / "envi.yaml"
    )
