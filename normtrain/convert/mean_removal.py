"""Remove the mean of a module's output features, drop the last one, fold a norm's gain.

Every change is computed in float64 and rounded once to the parameter's dtype.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from normtrain.convert.linear_layers import (
    check_linear,
    check_unchanged,
    find_module,
    is_position_table,
    is_transposed,
    runs_as,
)
from normtrain.errors import UserError
from normtrain.models.positions import Positions

_AnyEmbedding = TypeVar("_AnyEmbedding", bound=nn.Embedding)
Slot = tuple[nn.Module, str, int]
"""A module, the name of one of its parameters, and the axis its features are on."""

OUTPUT_SIZES = ("out_features", "nf", "out_channels", "embedding_dim")
"""Attributes of modules that say how many features they give."""

# A mean within this many rounding units of the average magnitude counts as zero: recentring and
# rounding leaves at most half a unit, weights that were never recentred have many.
_ROUNDINGS = 2.0


def output_slots(model: nn.Module, name: str) -> list[Slot]:
    """Return the parameters that hold the output features of a module or a parameter.

    Raises:
        UserError: there is no such module, or its output is not linear in its parameters.
    """
    owner_name, _, last = name.rpartition(".")
    owner = find_module(model, owner_name)
    target = getattr(owner, last, None)
    if isinstance(target, nn.Parameter):
        return [(owner, last, target.ndim - 1)]
    if isinstance(target, Positions):
        kept = "weight" if target.kind == "learned" else "table"
        return [(target, kept, 1)]
    if not isinstance(target, nn.Module):
        raise UserError(f"the model has no module or parameter {name}")
    if isinstance(target, nn.Embedding):
        _check_embedding(target, name)
        return [(target, "weight", 1)]
    if isinstance(target, nn.Conv1d | nn.Conv2d) and runs_as(target, [nn.Conv1d, nn.Conv2d]):
        if target.groups != 1:
            raise UserError(f"{name} is a grouped convolution, whose output cannot be recentred")
        check_unchanged(target, name)
    else:
        check_linear(target, name)
    slots: list[Slot] = [(target, "weight", 1 if is_transposed(target) else 0)]
    if target.bias is not None:
        slots.append((target, "bias", 0))
    return slots


def _check_embedding(table: nn.Embedding, name: str) -> None:
    """Refuse an embedding that does more than look vectors up."""
    if not (runs_as(table, [nn.Embedding, ZeroMeanEmbedding]) or is_position_table(table)):
        raise UserError(
            f"{name} is a {type(table).__name__}, which may do more than look vectors up; put a "
            f"plain embedding in its place"
        )
    if table.max_norm is not None:
        raise UserError(f"{name} changes its weight when it is read (max_norm); set it to None")
    check_unchanged(table, name)


def centred(tensor: Tensor, axis: int) -> Tensor:
    """Return the tensor minus its mean along an axis, in float64."""
    wide = tensor.detach().double()
    return wide - wide.mean(axis, keepdim=True)


def is_zero_mean(slots: list[Slot]) -> bool:
    """Return whether the features have zero mean, up to the rounding of their dtype."""
    for module, name, axis in slots:
        tensor: Tensor = getattr(module, name).detach()
        wide = tensor.double()
        limit = _ROUNDINGS * torch.finfo(tensor.dtype).eps * wide.abs().mean(axis)
        if bool((wide.mean(axis).abs() > limit).any()):
            return False
    return True


def recentre(slots: list[Slot]) -> None:
    """Remove the mean over features, in place: the same Parameter objects stay."""
    with torch.no_grad():
        for module, name, axis in slots:
            tensor: Tensor = getattr(module, name)
            tensor.copy_(centred(tensor, axis))


def put(module: nn.Module, name: str, value: Tensor, like: Tensor) -> None:
    """Set a parameter, with the dtype and ``requires_grad`` of `like`."""
    parameter = nn.Parameter(value.to(like.dtype).contiguous(), requires_grad=like.requires_grad)
    if name in module._buffers:
        del module._buffers[name]
    setattr(module, name, parameter)


def recentre_and_drop(slots: list[Slot]) -> None:
    """Remove the mean over features, then the last feature; update the module's sizes."""
    for module, name, axis in slots:
        tensor: Tensor = getattr(module, name)
        put(module, name, centred(tensor, axis).narrow(axis, 0, tensor.size(axis) - 1), tensor)
    for module in dict.fromkeys(module for module, _, _ in slots):
        _one_fewer(module, *OUTPUT_SIZES)


def _one_fewer(module: nn.Module, *sizes: str) -> None:
    for size in sizes:
        if hasattr(module, size):
            setattr(module, size, getattr(module, size) - 1)


def fold(reader: nn.Module, weight: Tensor | None, bias: Tensor | None) -> None:
    """Fold a norm's gain and bias into a linear module that then reads d − 1 features.

    With n the normalized vector of d features, W(w * n + b) + a = (W w) n + (W b + a); n sums to
    zero, so its last feature is minus the sum of the others and its column is subtracted from
    theirs (Jiang et al. 2023).

    Args:
        reader: reads the norm's output; changed in place, with new Parameter objects.
        weight: the gain ``(d,)`` or None.
        bias: the offset ``(d,)`` or None.
    """
    axis = 0 if is_transposed(reader) else 1
    old: Tensor = reader.weight  # type: ignore[assignment]
    columns = old.detach().double().movedim(axis, -1)
    if bias is not None:
        offset = columns @ bias.detach().double()
        had: Tensor | None = reader.bias  # type: ignore[assignment]
        if had is None:
            put(reader, "bias", offset, old)
        else:
            put(reader, "bias", had.detach().double() + offset, had)
    if weight is not None:
        columns = columns * weight.detach().double()
    put(reader, "weight", (columns[..., :-1] - columns[..., -1:]).movedim(-1, axis), old)
    _one_fewer(reader, "in_features", "nx")


class ZeroMeanEmbedding(nn.Embedding):
    """An embedding whose vectors are recentred when looked up.

    For a matrix that is tied to an output layer, which reads it unchanged.
    """

    @classmethod
    def of(cls, embedding: nn.Embedding) -> ZeroMeanEmbedding:
        """Return the same embedding, sharing its weight."""
        return _share(embedding, cls)

    def plain(self) -> nn.Embedding:
        """Return an ordinary embedding, sharing the weight."""
        return _share(self, nn.Embedding)

    def forward(self, input: Tensor) -> Tensor:
        """Return vectors ``(..., dim)`` of ids ``(...)``, each minus its mean."""
        vectors = super().forward(input)
        return vectors - vectors.mean(-1, keepdim=True)


def _share(embedding: nn.Embedding, kind: type[_AnyEmbedding]) -> _AnyEmbedding:
    made = kind(
        embedding.num_embeddings,
        embedding.embedding_dim,
        embedding.padding_idx,
        scale_grad_by_freq=embedding.scale_grad_by_freq,
        sparse=embedding.sparse,
        device="meta",
    )
    made.weight = embedding.weight
    return made.train(embedding.training)
