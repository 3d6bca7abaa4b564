"""Where each weight of ours lies in another format, and moving weights by such a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from normtrain.errors import UserError


@dataclass(frozen=True)
class Slot:
    """One weight of ours and the weights of theirs that it is made of.

    Attributes:
        ours: its name in `normtrain.models.CausalLM`.
        parts: their names and shapes; ours is their concatenation along the rows.
        transposed: whether theirs are ``(in, out)``, where ours are ``(out, in)``.
    """

    ours: str
    parts: tuple[tuple[str, tuple[int, ...]], ...]
    transposed: bool = False


def slot(ours: str, theirs: str, *shape: int, transposed: bool = False) -> Slot:
    """A weight that is one weight there too; ``shape`` is theirs."""
    return Slot(ours, ((theirs, shape),), transposed)


def to_theirs(slots: Iterable[Slot], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their weights from ours; every one is a tensor of its own.

    Raises:
        KeyError: a weight is missing; a checkpoint that was loaded has them all.
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
    """Our weights from theirs, all of which must be known.

    Args:
        slots: where each lies.
        tensors: theirs, by name.
        ignored: patterns of names that may be there and hold nothing trained.
        where: the folder, for messages.

    Raises:
        UserError: a weight is missing, of another shape, or known to no slot.
    """
    wanted = {name: shape for each in slots for name, shape in each.parts}
    if missing := [name for name in wanted if name not in tensors]:
        raise UserError(f"{where} lacks the weight {missing[0]}{_more(missing)}")
    extra = [
        name
        for name in sorted(tensors.keys() - wanted.keys())
        if not any(fnmatchcase(name, pattern) for pattern in ignored)
    ]
    if extra:
        raise UserError(
            f"{where} holds the weight {extra[0]}{_more(extra)}, which this model_type does not "
            "have by its config.json; it can't be left out"
        )
    for name, shape in wanted.items():
        if (found := tuple(tensors[name].shape)) != shape:
            raise UserError(f"{where}: {name} has shape {found}; by config.json it is {shape}")
    made = {}
    for each in slots:
        parts = [tensors[name] for name, _ in each.parts]
        parts = [part.t() for part in parts] if each.transposed else parts
        made[each.ours] = (parts[0] if len(parts) == 1 else torch.cat(parts)).contiguous()
    return made


def _more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
