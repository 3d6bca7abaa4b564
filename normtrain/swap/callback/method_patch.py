"""Patch methods of one LightningModule for a while, so that copies and pickles stay valid."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from normtrain.swap.callback.trainer_checks import holds_copies

# Lightning's own definitions of its hooks, which do nothing.
_BASES = ("pytorch_lightning.core.", "lightning.pytorch.core.")


def overridden(module: nn.Module, name: str) -> bool:
    """Return whether a LightningModule overrides a hook, in its class or on the instance."""
    if name in vars(module):
        return True
    owner = next((base for base in type(module).__mro__ if name in vars(base)), None)
    return owner is not None and not f"{owner.__module__}.".startswith(_BASES)


def patch(module: nn.Module, name: str, around: Callable[..., Any], *extra: Any) -> None:
    """Replace a module's method by ``around(module, name, before, *extra, …)``.

    The patch is a `functools.partial`: it is copied with the module (and then bound to the copy),
    pickles, and counts as an overridden hook for Lightning.

    Args:
        module: the instance.
        name: the name of the method.
        around: a function at the top level of a module; it calls `original` for the old method.
        extra: more arguments for it.
    """
    before = vars(module).get(name)
    assert not is_patch(before), f"{name} is patched already"
    setattr(module, name, functools.partial(_call, around, module, name, before, *extra))


def _call(around: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return around(*args, **kwargs)


def original(module: nn.Module, name: str, before: Any) -> Callable[..., Any]:
    """Return the method before `patch`: the instance's own attribute if any, else the class's."""
    return before if before is not None else functools.partial(getattr(type(module), name), module)


def is_patch(value: Any) -> bool:
    """Return whether an attribute was set by `patch`."""
    return isinstance(value, functools.partial) and value.func is _call


def unpatch(module: nn.Module, *names: str) -> None:
    """Undo `patch` for these methods; methods that are not patched are not changed."""
    for name in names:
        value = vars(module).get(name)
        if isinstance(value, functools.partial) and is_patch(value):
            before = value.args[3]
            delattr(module, name)
            if before is not None:
                setattr(module, name, before)


def copies(trainer: Any, module: nn.Module) -> Iterator[nn.Module]:
    """Yield the copies of a LightningModule that Lightning's own callbacks hold: averaged weights.

    A module of the same class in any other callback may be another model, such as a teacher.
    """
    for callback in filter(holds_copies, trainer.callbacks):
        for value in vars(callback).values():
            if isinstance(value, nn.Module):
                for inner in value.modules():
                    if type(inner) is type(module) and inner is not module:
                        yield inner
