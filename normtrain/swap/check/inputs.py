"""The inputs that a checked model is called with: given, or the model's own example."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from normtrain.errors import UserError, described


@dataclass(frozen=True)
class Inputs:
    """The arguments of one call of a model, and where they come from."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    source: str

    def copied(self, device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return copies on a device, for a forward that may write into them."""

        def copied(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return copy.deepcopy(value)
            return value.detach().clone().to(device).requires_grad_(value.requires_grad)

        return tree_map(copied, (self.args, self.kwargs))

    def __str__(self) -> str:
        named = [_text(value) for value in self.args]
        named += [f"{name} {_text(value)}" for name, value in self.kwargs.items()]
        return f"{', '.join(named) or 'none'}; {self.source}"


def choose_inputs(model: nn.Module, given: Any = None) -> Inputs:
    """Return the inputs given, or the model's own example.

    Args:
        model: the model.
        given: an `Inputs`, a tensor, a tuple or list of arguments, or a dict of keyword arguments;
            None for ``example_input_array`` (Lightning) or ``dummy_inputs`` (Hugging Face).

    Raises:
        UserError: the inputs have another type, or there are none.
    """
    if given is not None:
        return given if isinstance(given, Inputs) else _arguments(given, "given with the model")
    cls = type(model).__name__
    for name in ("example_input_array", "dummy_inputs"):
        try:
            value = getattr(model, name, None)
        except Exception as error:  # the user's property may raise anything
            raise UserError(f"the {name} of this {cls} fails: {described(error)}") from error
        if isinstance(value, Mapping) or (value is not None and name == "example_input_array"):
            return _arguments(value, f"from {name}")
    raise UserError(
        f"no inputs found for this {cls}: give --input, return (module, inputs) from the factory, "
        f"or set example_input_array (Lightning) or dummy_inputs (Hugging Face)"
    )


def _arguments(value: Any, source: str) -> Inputs:
    if isinstance(value, Tensor):
        return Inputs((value,), {}, source)
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return Inputs((), dict(value), source)
    if isinstance(value, tuple | list):
        return Inputs(tuple(value), {}, source)
    raise UserError(
        f"the inputs {source} must be a tensor, a tuple or list of arguments, or a dict of keyword "
        f"arguments, got a {type(value).__name__}"
    )


def _text(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_text, value))})"
    return type(value).__name__
