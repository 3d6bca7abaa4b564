"""Inputs of a model from ``--input`` options such as ``2,16,64`` and ``ids=int:2,16:1000``."""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from normtrain.errors import UserError, described
from normtrain.swap.check.inputs import Inputs

_SHAPE = re.compile(r"[1-9]\d*(,[1-9]\d*)*")


def generate_inputs(model: nn.Module, specs: Sequence[str], seed: int) -> Inputs:
    """Generate random tensors of the given shapes.

    Args:
        model: floats have the dtype of its first parameter.
        specs: ``"2,16,64"`` for standard normal floats, ``"int:2,16:1000"`` for int64 below 1000,
            and ``"name=…"`` of either for a keyword argument.
        seed: seeds the tensors; no global generator is used.

    Raises:
        UserError: a spec is wrong, or a name is given twice.
    """
    dtypes = (p.dtype for p in model.parameters() if p.is_floating_point())
    dtype = next(dtypes, torch.get_default_dtype())
    generator = torch.Generator().manual_seed(seed)
    args: list[Tensor] = []
    kwargs: dict[str, Tensor] = {}
    for spec in specs:
        name, equals, rest = (part.strip() for part in spec.rpartition("="))
        if equals and (not name.isidentifier() or keyword.iskeyword(name)):
            raise UserError(f"--input {spec!r}: {name!r} is not the name of an argument")
        if name in kwargs:
            raise UserError(f"--input gives {name} twice; give it once")
        tensor = _drawn(spec, "".join(rest.split()), dtype, generator)
        if equals:
            kwargs[name] = tensor
        else:
            args.append(tensor)
    return Inputs(tuple(args), kwargs, "from --input")


def _drawn(spec: str, rest: str, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    integer = rest.startswith("int:")
    shape, _, limit = rest.removeprefix("int:").partition(":")
    if _SHAPE.fullmatch(shape) is None or (re.fullmatch(r"[1-9]\d*", limit) is None) == integer:
        raise UserError(
            f"--input must be a shape such as 2,16,64 (floats) or int:2,16:1000 (integers below "
            f"1000), with name= before it for a keyword argument, got {spec!r}"
        )
    sizes = tuple(int(size) for size in shape.split(","))
    try:  # with a device, since the user's code may have set another default
        if integer:
            return torch.randint(int(limit), sizes, generator=generator, device="cpu")
        return torch.randn(sizes, generator=generator, device="cpu", dtype=torch.float32).to(dtype)
    except (RuntimeError, OverflowError, ValueError) as error:
        raise UserError(f"--input {spec!r} cannot be created: {described(error)}") from error
