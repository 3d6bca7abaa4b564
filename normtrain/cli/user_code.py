"""Getting a model out of somebody's own module or file, found as Python itself finds it."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

from normtrain.errors import UserError, described

EXAMPLE = "MODULE:FACTORY, such as mine:build_model or train.py:Net"


class _NoSuchModule(UserError):
    """What was named is not there, unlike what it imports."""


@contextmanager
def at_home(module: str) -> Iterator[None]:
    """Run somebody's code as from its own folder, with no arguments, leaving no trace of it.

    The current folder comes first on the path, and a file's folder before it; no bytecode is
    written; what is printed goes to stderr.

    Args:
        module: the module's name, or the path of its file.
    """
    path, words, bytecode = sys.path[:], sys.argv[:], sys.dont_write_bytecode
    folders = [str(Path(module).resolve().parent)] if _is_file(module) else []
    sys.path[:0] = [*folders, str(Path.cwd())]
    sys.argv[:] = [module]
    sys.dont_write_bytecode = True
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        sys.path[:], sys.argv[:], sys.dont_write_bytecode = path, words, bytecode


def split_target(target: str) -> tuple[str, str]:
    """The module and the factory of ``MODULE:FACTORY``.

    Raises:
        UserError: one of them is missing.
    """
    module, colon, factory = target.rpartition(":")
    if not colon and _is_file(target):
        raise UserError(f"{target} alone does not say what makes the model; give {EXAMPLE}")
    if not module or not all(part.isidentifier() for part in factory.split(".")):
        raise UserError(f"{target!r} should be {EXAMPLE}")
    return module, factory


def find_factory(module: str, factory: str) -> Any:
    """Import a module and look up what makes the model; call it within `at_home`.

    Args:
        module: a module's name, or the path of a ``.py`` file.
        factory: a name in it; dots lead to what is within.

    Raises:
        UserError: there is no such module or name, or the module's code fails.
    """
    found: Any = _imported(module)
    file, seen = _where(found), module
    for part in factory.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise UserError(f"{seen}{file} has no {part}{_near_names(found, part)}") from error
        except Exception as error:  # what is made on demand may fail in any way
            raise UserError(f"getting {part} of {seen} fails: {described(error)}") from error
        seen, file = f"{seen}.{part}" if ":" in seen else f"{seen}:{part}", ""
    return found


def make_model(factory: Any, name: str) -> tuple[Any, Any]:
    """Have a factory make a model; call it within `at_home`.

    Args:
        factory: a function or class that is called without arguments, or a model.
        name: what it is called in messages.

    Returns:
        A `torch.nn.Module`, and the inputs that came with it (None if none did).

    Raises:
        UserError: it can't be called without arguments, its code fails, or it gives no model.
    """
    from torch import nn

    made = factory if isinstance(factory, nn.Module) else _made(factory, name)
    if isinstance(made, nn.Module):
        return made, None
    if isinstance(made, tuple | list) and len(made) == 2 and isinstance(made[0], nn.Module):
        return made[0], made[1]
    raise UserError(
        f"{name} gives {_kind(made)}; it should give a torch module, or a pair of one and its "
        f"inputs"
    )


def _kind(value: Any) -> str:
    if isinstance(value, tuple | list):
        inner = ", ".join(type(each).__name__ for each in value[:3])
        return f"a {type(value).__name__} of {len(value)} ({inner}{', …' * (len(value) > 3)})"
    if isinstance(value, ModuleType):
        return "a Python module"
    return "None" if value is None else f"a {type(value).__name__}"


def _is_file(module: str) -> bool:
    return module.endswith(".py") or "/" in module


def _imported(module: str) -> ModuleType:
    if not _is_file(module):
        return _theirs(lambda: _by_name(module), f"importing {module} fails")
    path = Path(module)
    if not path.is_file():
        raise UserError(f"there is no file {module}{_near_files(path.parent, path.name)}")
    if path.suffix != ".py":
        raise UserError(f"{module} is no .py file; give {EXAMPLE}")
    return _theirs(lambda: _by_path(path.resolve()), f"importing {module} fails")


def _by_name(module: str) -> ModuleType:
    if not all(part.isidentifier() for part in module.split(".")):
        raise UserError(f"{module!r} is no module's name; give {EXAMPLE}")
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # What it imports itself may be missing too, which is another matter.
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        folder = Path.cwd().joinpath(*module.split(".")[:-1])
        near = _near_files(folder, f"{module.split('.')[-1]}.py")
        raise _NoSuchModule(
            f"there is no module {module} in this folder or among the installed packages{near}"
        ) from error


def _by_path(path: Path) -> ModuleType:
    # Under its own name where that is free, so that others who import it get the same module.
    name = path.stem if path.stem not in sys.modules else f"_normtrain_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _near_files(folder: Path, name: str) -> str:
    there = sorted(path.name for path in folder.glob("*.py")) if folder.is_dir() else []
    near = difflib.get_close_matches(name, there, n=3, cutoff=0.5)
    return f"; did you mean {', '.join(near)}?" if near else ""


def _near_names(found: Any, part: str) -> str:
    known = [each for each in dir(found) if not each.startswith("_")]
    near = difflib.get_close_matches(part, known, n=3, cutoff=0.5)
    near = near or [each for each in known if _defined_in(found, each)][:5]
    return f"; there is {', '.join(near)}" if near else ""


def _where(module: ModuleType) -> str:
    """The file of a module, in brackets, where it is not in this folder."""
    file = getattr(module, "__file__", None)
    return "" if file is None or Path(file).is_relative_to(Path.cwd()) else f" ({file})"


def _defined_in(module: Any, name: str) -> bool:
    """Whether a name of a module is of something callable that is written there."""
    value = getattr(module, name, None)
    home = getattr(value, "__module__", None)
    return callable(value) and home is not None and home == getattr(module, "__name__", "")


def _made(factory: Any, name: str) -> Any:
    """What a function or class gives when called."""
    if not callable(factory):
        raise UserError(
            f"{name} is {_kind(factory)}; it should be a torch module, or a function or class "
            f"that makes one"
        )
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):
        signature = None  # not every builtin tells; then the call does
    if signature is not None:
        required = [
            parameter.name
            for parameter in signature.parameters.values()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        ]
        if required:
            raise UserError(
                f"{name} needs arguments ({', '.join(required)}); give a function without any "
                f"that makes the model"
            )
    return _theirs(factory, f"{name} fails")


def _theirs(run: Callable[[], Any], what: str) -> Any:
    """What a piece of somebody's code gives; its failure in one line."""
    try:
        return run()
    except _NoSuchModule:
        raise
    except SystemExit as error:
        raise UserError(
            f"{what}, for it ends the program: {described(error)}; keep what is for the command "
            f"line under if __name__ == '__main__'"
        ) from error
    except Exception as error:
        hint = ""
        if isinstance(error, ImportError) and "no known parent" in str(error):
            hint = "; name a file of a package as a module, package.file, from above the package"
        raise UserError(f"{what}: {described(error)}{hint}") from error
