"""Map weight names and layouts between this package and another format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from normtrain.errors import UserError


@dataclass(frozen=True)
class Slot:
    """One weight of this package and the weights of the format that it is made of.

    Attributes:
        ours: its name in `normtrain.models.CausalLM`.
        parts: names and shapes in the format; concatenated along the rows they are the weight.
        transposed: whether matrices of the format are ``(in, out)``, instead of ``(out, in)``.
    """

    ours: str
    parts: tuple[tuple[str, tuple[int, ...]], ...]
    transposed: bool = False


def slot(ours: str, theirs: str, *shape: int, transposed: bool = False) -> Slot:
    """Return the slot of a weight that is one weight, of ``shape``, in the format too."""
    return Slot(ours, ((theirs, shape),), transposed)


def to_theirs(slots: Iterable[Slot], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the format; no two share memory.

    Args:
        slots: of the format.
        weights: state dict of a `normtrain.models.CausalLM`.

    Raises:
        KeyError: a weight is missing.
    """
    made = {}
    for each in slots:
        rows = [shape[-1 if each.transposed else 0] for _, shape in each.parts]
        for (name, _), part in zip(each.parts, weights[each.ours].split(rows), strict=True):
            made[name] = (part.t() if each.transposed else part).clone().contiguous()
    return made


def to_ours(
    slots: Sequence[Slot], tensors: Mapping[str, Tensor], ignored: Sequence[str], where: str
) -> dict[str, Tensor]:
    """Return the state dict of a `normtrain.models.CausalLM` from weights of the format.

    Args:
        slots: of the format.
        tensors: weights of the format by name.
        ignored: patterns of names to skip.
        where: the folder, for error messages.

    Raises:
        UserError: a weight is missing, has another shape, or is in no slot.
    """
    wanted = {name: shape for each in slots for name, shape in each.parts}
    if missing := [name for name in wanted if name not in tensors]:
        raise UserError(f"{where}: weight {missing[0]}{_more(missing)} not found")
    extra = [
        name
        for name in sorted(tensors.keys() - wanted.keys())
        if not any(fnmatchcase(name, pattern) for pattern in ignored)
    ]
    if extra:
        raise UserError(
            f"{where}: unexpected weight {extra[0]}{_more(extra)}, which a model of this "
            "config.json does not have"
        )
    for name, shape in wanted.items():
        if (found := tuple(tensors[name].shape)) != shape:
            raise UserError(f"{where}: {name} must have shape {shape} by config.json, got {found}")
    made = {}
    for each in slots:
        parts = [tensors[name] for name, _ in each.parts]
        parts = [part.t() for part in parts] if each.transposed else parts
        made[each.ours] = (parts[0] if len(parts) == 1 else torch.cat(parts)).contiguous()
    return made


def _more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
