"""Find recipes: shipped ones by name, other packages' by entry point, files by path.

The shipped recipes live in the repository's ``recipes/``. A wheel carries them as
``normtrain/recipes_data``; in an editable install or a checkout they are beside the package.
"""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path

from normtrain.errors import UserError, unknown_name

GROUP = "normtrain.recipes"
"""Entry-point group of other packages: ``name = "module:attribute"``, where the attribute is the
path of a YAML file, or a function without arguments that returns it."""


def folder() -> Path:
    """Return the folder of the shipped recipes, in a wheel or in a checkout.

    Raises:
        UserError: the installation lacks it.
    """
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "recipes_data", package.parent / "recipes"):
        if candidate.is_dir():
            return candidate
    raise UserError("the shipped recipes are missing from this installation; install it again")


def names() -> list[str]:
    """Return the names of all recipes, sorted."""
    shipped = {path.stem for path in folder().glob("*.yaml")}
    return sorted(shipped | {point.name for point in metadata.entry_points(group=GROUP)})


def find(name: str) -> Path:
    """Return the YAML file of a named recipe; shipped ones come before other packages'.

    Raises:
        UserError: there is no such recipe, or another package's cannot be found.
    """
    known = names()
    if name not in known:
        hint = f"; for a file, write ./{name}" if Path(name).is_file() else ""
        raise UserError(f"{unknown_name('recipe', name, known)}{hint}")
    shipped = folder() / f"{name}.yaml"
    if shipped.is_file():
        return shipped
    point = next(iter(metadata.entry_points(group=GROUP, name=name)))
    try:
        target = point.load()
        return Path(target() if callable(target) else target)
    except Exception as error:  # other packages' code can raise anything
        raise UserError(f"recipe {name!r} ({point.value}) cannot be found: {error}") from error


def read(name_or_path: str | Path) -> tuple[str, str, str]:
    """Read a recipe's text by name or from a file.

    A `Path`, and text with a folder separator or ending in ``.yaml`` or ``.yml``, is a file.

    Returns:
        The text, its name in messages, and the recipe's name or the file's stem.

    Raises:
        UserError: unknown name, missing or unreadable file, not UTF-8 text.
    """
    path = Path(name_or_path)
    is_file = isinstance(name_or_path, Path) or path.suffix.lower() in {".yaml", ".yml"}
    is_file = is_file or any(sep in str(name_or_path) for sep in (os.sep, os.altsep or os.sep))
    where = f"recipe file {path}" if is_file else f"recipe {name_or_path}"
    path = path if is_file else find(str(name_or_path))
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{where} is not UTF-8 text; a recipe is a YAML file") from None
    except FileNotFoundError:
        raise UserError(f"{where} does not exist; 'normtrain recipes list' shows names") from None
    except IsADirectoryError:
        raise UserError(f"{where} is a folder; give the YAML file in it") from None
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror}") from error
    return text, where, path.stem if is_file else str(name_or_path)


def summary(name: str) -> str:
    """Return the first comment line of a named recipe's file, or an empty string."""
    first = read(name)[0].partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""
