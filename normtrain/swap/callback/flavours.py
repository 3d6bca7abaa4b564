"""One callback class for both of Lightning's names: ``lightning.pytorch``, ``pytorch_lightning``.

A Trainer of one package does not accept callbacks of the other. The hooks of a callback are
therefore written in a class without Lightning, and the public class inherits that and the
``Callback`` of every installed flavour.
"""

from __future__ import annotations

import functools
from importlib import import_module
from typing import Any

from normtrain.errors import RunError

# `lightning` includes `pytorch_lightning` but not the reverse, so it comes first.
FLAVOURS = ("lightning.pytorch", "pytorch_lightning")


@functools.cache
def callback_bases() -> tuple[type, ...]:
    """Return the ``Callback`` class of every flavour that can be imported, each once.

    Raises:
        RunError: none can be imported.
    """
    found: dict[type, None] = {}
    failures = []
    for flavour in FLAVOURS:
        try:
            found[import_module(flavour).Callback] = None
        # A flavour too old for this Python or torch may raise anything.
        except Exception as error:
            failures.append(f"{flavour}: {type(error).__name__}: {error}")
    if not found:
        raise RunError(
            f"Lightning cannot be imported ({'; '.join(failures)}); pip install pytorch-lightning"
        )
    return tuple(found)


@functools.cache
def callback_class(logic: type, name: str) -> Any:
    """Create a callback class that inherits `logic` and the ``Callback`` of every flavour.

    Build it in the ``__getattr__`` of the module of `logic`: importing that module then imports no
    Lightning, and the class can be pickled.

    Args:
        logic: a class with Lightning's hooks as methods, and the docstring.
        name: the name of the class, also in the module of `logic`.

    Returns:
        The class; the same one for every call.

    Raises:
        RunError: no flavour of Lightning can be imported.
    """
    about = {"__module__": logic.__module__, "__qualname__": name, "__doc__": logic.__doc__}
    return type(name, (logic, *callback_bases()), about)
