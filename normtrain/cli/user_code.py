"""Load a model from the user's own module or file."""

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


@contextmanager
def user_environment(module: str) -> Iterator[None]:
    """Run user code as from its own folder, without arguments and without side effects.

    The module's folder and the current one come first on ``sys.path``, no bytecode is written, and
    what the code prints goes to stderr.

    Args:
        module: the module's name, or the path of its file.
    """
    path, arguments, bytecode = sys.path[:], sys.argv[:], sys.dont_write_bytecode
    folders = [str(Path(module).resolve().parent)] if _is_file(module) else []
    sys.path[:0] = [*folders, str(Path.cwd())]
    sys.argv[:] = [module]
    sys.dont_write_bytecode = True
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        sys.path[:], sys.argv[:], sys.dont_write_bytecode = path, arguments, bytecode


def split_target(target: str) -> tuple[str, str]:
    """Split ``MODULE:FACTORY``.

    Raises:
        UserError: one of them is missing.
    """
    module, _, factory = target.rpartition(":")
    if not module or not all(part.isidentifier() for part in factory.split(".")):
        raise UserError(f"expected {EXAMPLE}, got {target!r}")
    return module, factory


def find_factory(module: str, factory: str) -> Any:
    """Import a module and return an attribute of it; call it within `user_environment`.

    Args:
        module: a module's name, or the path of a ``.py`` file.
        factory: the attribute's name, which may be dotted.

    Raises:
        UserError: the module or attribute is not found, or the module's code fails.
    """
    found: Any = _import(module)
    for part in factory.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            names = [name for name in dir(found) if not name.startswith("_")]
            raise UserError(f"{module} has no {part}{_hint(part, names)}") from error
        except Exception as error:  # a module's __getattr__ may raise anything
            raise UserError(f"getting {part} of {module} fails: {described(error)}") from error
    return found


def make_model(factory: Any, name: str) -> tuple[Any, Any]:
    """Call a factory; do it within `user_environment`.

    Args:
        factory: a function or class that takes no arguments, or a model.
        name: its name in messages.

    Returns:
        A `torch.nn.Module`, and the inputs that came with it (None if none did).

    Raises:
        UserError: it needs arguments, its code fails, or it returns no model.
    """
    from torch import nn

    made = factory
    if not isinstance(factory, nn.Module):
        if not callable(factory):
            raise UserError(f"{name} must be a model, a function or a class, got {factory!r:.80}")
        if required := _required(factory):
            raise UserError(
                f"{name} needs arguments ({', '.join(required)}); give a function without arguments"
            )
        made = _run(factory, f"{name} fails")
    if isinstance(made, nn.Module):
        return made, None
    if isinstance(made, tuple | list) and len(made) == 2 and isinstance(made[0], nn.Module):
        return made[0], made[1]
    raise UserError(
        f"{name} must return a torch module, or a pair of one and its inputs, got {made!r:.80}"
    )


def _is_file(module: str) -> bool:
    return module.endswith(".py") or "/" in module


def _import(module: str) -> ModuleType:
    if _is_file(module):
        path = Path(module)
        if not path.is_file() or path.suffix != ".py":
            raise UserError(f"{module} is not a .py file{_near_files(path.parent, path.name)}")
        return _run(lambda: _import_file(path.resolve()), f"importing {module} fails")
    importlib.invalidate_caches()
    try:
        return _run(lambda: importlib.import_module(module), f"importing {module} fails")
    except UserError as error:
        missing = getattr(error.__cause__, "name", None)
        # What the module itself imports may be missing too, which is another matter.
        if isinstance(error.__cause__, ModuleNotFoundError) and f"{module}.".startswith(
            f"{missing}."
        ):
            folder, name = Path.cwd().joinpath(*module.split(".")[:-1]), module.split(".")[-1]
            near = _near_files(folder, f"{name}.py")
            raise UserError(f"module {module} not found{near}") from error.__cause__
        raise


def _import_file(path: Path) -> ModuleType:
    # Under its own name if that is free, so that others who import it get the same module.
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
    return _hint(name, sorted(path.name for path in folder.glob("*.py")))


def _hint(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; did you mean {', '.join(near)}?" if near else ""


def _required(factory: Any) -> list[str]:
    """Return the names of the arguments that a call needs."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        return []
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in variadic]


def _run(call: Callable[[], Any], what: str) -> Any:
    """Run user code; raise its failure as one line."""
    try:
        return call()
    except SystemExit as error:
        raise UserError(
            f"{what} because it ends the program: {described(error)}; move the script's code under "
            f"if __name__ == '__main__'"
        ) from error
    except Exception as error:
        relative = isinstance(error, ImportError) and "no known parent" in str(error)
        hint = "; name it as a module, package.file, from above the package" if relative else ""
        raise UserError(f"{what}: {described(error)}{hint}") from error
