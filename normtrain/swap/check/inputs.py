"""What a model is called with when nobody trains it: made up, given, or the model's own example."""

from __future__ import annotations

import copy
import keyword
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normtrain.errors import UserError, described

WAYS = (
    "give --input, let the factory return (module, inputs), or set example_input_array (Lightning) "
    "or dummy_inputs (Hugging Face)"
)
_SHAPE = re.compile(r"[1-9]\d*(,[1-9]\d*)*")


@dataclass(frozen=True)
class Inputs:
    """The arguments of one call of a model.

    Attributes:
        args: the positional ones.
        kwargs: the others.
        source: where they are from, to end a message with.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    source: str

    def fresh(self, device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Copies on a device, for a forward that may write into them."""
        args, kwargs = _fresh((self.args, self.kwargs), device)
        return args, kwargs

    def __str__(self) -> str:
        named = [("", value) for value in self.args]
        named += [(f"{name} ", value) for name, value in self.kwargs.items()]
        listed = ", ".join(f"{name}{_shown(value)}" for name, value in named)
        return f"{listed or 'none'}; {self.source}"


def choose_inputs(
    model: nn.Module, specs: Sequence[str] = (), given: Any = None, seed: int = 0
) -> Inputs:
    """What to call the model with: the specs, what was given, or the model's own example.

    Args:
        model: the model; floats that are made up have the dtype of its first parameter.
        specs: shapes, as `made_up` takes them; with any of them, nothing else counts.
        given: a tensor, a tuple or list of arguments, or a dict of named ones; None for the
            ``example_input_array`` of Lightning or the ``dummy_inputs`` of Hugging Face.
        seed: what is made up depends on it alone.

    Raises:
        UserError: a spec is wrong, what was given is none of these, or there is nothing.
    """
    if specs:
        dtypes = [p.dtype for p in model.parameters() if p.is_floating_point()]
        return made_up(specs, dtypes[0] if dtypes else torch.get_default_dtype(), seed)
    if given is not None:
        return _arguments(given, "given with the model")
    kind = type(model).__name__
    for name in ("example_input_array", "dummy_inputs"):
        try:
            value = getattr(model, name, None)
        except Exception as error:  # a property of theirs may fail in any way
            raise UserError(f"the {name} of this {kind} fails: {described(error)}") from error
        if value is None or (name == "dummy_inputs" and not isinstance(value, Mapping)):
            continue
        return _arguments(value, f"from {name}")
    raise UserError(f"there is nothing to call this {kind} with: {WAYS}")


def made_up(specs: Sequence[str], dtype: torch.dtype, seed: int) -> Inputs:
    """Random tensors of the shapes given, each a positional argument or, with a name, a named one.

    Args:
        specs: ``"2,16,64"`` for standard normal floats, ``"int:2,16:1000"`` for int64 below 1000,
            and ``"name=…"`` of either.
        dtype: of the floats.
        seed: the tensors are a function of it; no global generator is touched.

    Raises:
        UserError: a spec can't be read, or a name comes twice.
    """
    generator = torch.Generator().manual_seed(seed)
    args: list[Tensor] = []
    kwargs: dict[str, Tensor] = {}
    for spec in specs:
        name, equals, rest = spec.rpartition("=")
        name = name.strip()
        if equals and (not name.isidentifier() or keyword.iskeyword(name)):
            raise UserError(f"--input {spec!r}: {name!r} can't be the name of an argument")
        if name in kwargs:
            raise UserError(f"--input gives {name} twice; give it once")
        tensor = _drawn(spec, "".join(rest.split()), dtype, generator)
        if equals:
            kwargs[name] = tensor
        else:
            args.append(tensor)
    return Inputs(tuple(args), kwargs, "from --input")


def _drawn(spec: str, rest: str, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    whole = rest.startswith("int:")
    shape, _, limit = rest.removeprefix("int:").partition(":")
    if _SHAPE.fullmatch(shape) is None or (re.fullmatch(r"[1-9]\d*", limit) is None) == whole:
        raise UserError(
            f"--input {spec!r} should be a shape such as 2,16,64 (floats) or int:2,16:1000 (whole "
            f"numbers below 1000), with name= before it for a named argument"
        )
    sizes = tuple(int(size) for size in shape.split(","))
    try:
        # The device is said, since their code may have set another default.
        if whole:
            return torch.randint(int(limit), sizes, generator=generator, device="cpu")
        return torch.randn(sizes, generator=generator, device="cpu", dtype=torch.float32).to(dtype)
    except (RuntimeError, OverflowError, ValueError) as error:
        raise UserError(f"--input {spec!r} can't be made: {described(error)}") from error


def _arguments(value: Any, source: str) -> Inputs:
    if isinstance(value, Tensor):
        return Inputs((value,), {}, source)
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return Inputs((), dict(value), source)
    if isinstance(value, tuple | list):
        return Inputs(tuple(value), {}, source)
    raise UserError(
        f"the inputs {source} are a {type(value).__name__}; they should be a tensor, a tuple or "
        f"list of arguments, or a dict of named ones"
    )


def _fresh(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        moved = value.detach().clone().to(device)
        return moved.requires_grad_(value.requires_grad) if value.is_floating_point() else moved
    if isinstance(value, tuple) and hasattr(value, "_make"):
        return value._make(_fresh(each, device) for each in value)
    if type(value) in (tuple, list):
        return type(value)(_fresh(each, device) for each in value)
    if type(value) is dict:
        return {key: _fresh(each, device) for key, each in value.items()}
    return copy.deepcopy(value)


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_shown, value))})"
    return type(value).__name__
