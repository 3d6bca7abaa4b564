"""Changing methods of one LightningModule for a while, so that copies and pickles stay right."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from normtrain.swap.callback.swap_checks import holds_copies

# Lightning's own definitions of its hooks, which do nothing.
_BASES = ("pytorch_lightning.core.", "lightning.pytorch.core.")


def overridden(module: nn.Module, name: str) -> bool:
    """Whether a LightningModule has a hook of its own, in its class or on the instance."""
    if name in vars(module):
        return True
    owner = next((base for base in type(module).__mro__ if name in vars(base)), None)
    return owner is not None and not f"{owner.__module__}.".startswith(_BASES)


def patch(module: nn.Module, name: str, around: Callable[..., Any], *extra: Any) -> None:
    """Put ``around(module, name, before, *extra, …)`` in the place of a module's method.

    `around` must be a function at the top of a module and calls `original` for what was there. As
    a `functools.partial` it is copied with the module (and then bound to the copy), pickles, and is
    what Lightning takes for an overridden hook.

    Args:
        module: the instance.
        name: the method's.
        around: what is called instead.
        extra: arguments for it.
    """
    before = vars(module).get(name)
    assert not is_patch(before), f"{name} is patched already"
    setattr(module, name, functools.partial(_call, around, module, name, before, *extra))


def _call(around: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return around(*args, **kwargs)


def original(module: nn.Module, name: str, before: Any) -> Callable[..., Any]:
    """The method as it was: the instance's own attribute if it had one, else the class's."""
    return before if before is not None else functools.partial(getattr(type(module), name), module)


def is_patch(value: Any) -> bool:
    """Whether an attribute is what `patch` puts there."""
    return isinstance(value, functools.partial) and value.func is _call


def unpatch(module: nn.Module, *names: str) -> None:
    """Give methods back as they were before `patch`; those not patched stay as they are."""
    for name in names:
        value = vars(module).get(name)
        if isinstance(value, functools.partial) and is_patch(value):
            before = value.args[3]
            delattr(module, name)
            if before is not None:
                setattr(module, name, before)


def copies(trainer: Any, module: nn.Module) -> Iterator[nn.Module]:
    """The copies of a LightningModule that Lightning's own callbacks make: averaged weights.

    A model of the same class in somebody's callback may be another one, a teacher for example.
    """
    for callback in filter(holds_copies, trainer.callbacks):
        for value in vars(callback).values():
            if isinstance(value, nn.Module):
                for inner in value.modules():
                    if type(inner) is type(module) and inner is not module:
                        yield inner
