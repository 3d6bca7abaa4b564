"""One callback class for both of Lightning's names: ``lightning.pytorch``, ``pytorch_lightning``.

The two packages are separate worlds: a Trainer of one takes a lone callback of the other for a list
of callbacks. What a callback does is therefore written in a class without Lightning, and the class
that people use inherits that and the ``Callback`` of every flavour there is.
"""

from __future__ import annotations

import functools
from importlib import import_module
from typing import Any

from normtrain.errors import RunError

# `lightning` brings `pytorch_lightning` along but not the reverse, so it comes first.
FLAVOURS = ("lightning.pytorch", "pytorch_lightning")


@functools.cache
def callback_bases() -> tuple[type, ...]:
    """The ``Callback`` class of every flavour that can be imported, each once.

    Raises:
        RunError: there is none.
    """
    found: dict[type, None] = {}
    failures = []
    for flavour in FLAVOURS:
        try:
            found[import_module(flavour).Callback] = None
        # A flavour too old for this Python or torch fails in any way; the other one may be well.
        except Exception as error:
            failures.append(f"{flavour}: {type(error).__name__}: {error}")
    if not found:
        raise RunError(
            f"Lightning can't be imported ({'; '.join(failures)}); pip install pytorch-lightning"
        )
    return tuple(found)


@functools.cache
def callback_class(logic: type, name: str) -> Any:
    """The callback class of that name: `logic` first, then the ``Callback`` of every flavour.

    It pickles if the module of `logic` gives it by that name, lazily or not: build it in the
    module's ``__getattr__``, so that importing the module imports no Lightning.

    Args:
        logic: a class with Lightning's hooks as methods, and its documentation.
        name: what the class shall be called, and found by in `logic`'s module.

    Returns:
        The class; the same one every time.

    Raises:
        RunError: no flavour of Lightning can be imported.
    """
    about = {"__module__": logic.__module__, "__qualname__": name, "__doc__": logic.__doc__}
    return type(name, (logic, *callback_bases()), about)
