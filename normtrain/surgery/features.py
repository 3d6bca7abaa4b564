"""What a conversion does to one module's features: recentre them, drop the last, fold a gain in.

Every change is computed in float64 and rounded once to the parameter's dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from normtrain.errors import UserError
from normtrain.models.positions import Positions

Slot = tuple[nn.Module, str, int]
"""A module, the name of one of its parameters, and the axis its features are on."""

# How far from zero, in units of rounding, the mean of what counts as zero-mean may lie.
_ROUNDINGS = 64.0


def is_transposed(module: nn.Module) -> bool:
    """Whether this is the ``(in, out)`` linear map that Hugging Face's GPT-2 calls Conv1D."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _is_plain(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Whether the module computes what torch's class of one of these kinds does."""
    return (
        isinstance(module, kinds)
        and not parametrize.is_parametrized(module)
        and any(type(module).forward is kind.forward for kind in kinds)
    )


def check_linear(module: nn.Module, name: str) -> None:
    """Refuse what is not a plain linear map with floating-point weights.

    Raises:
        UserError: it is something else, quantized, parametrized or wrapped.
    """
    if not (_is_plain(module, (nn.Linear,)) or is_transposed(module)):
        raise UserError(
            f"{name} is a {type(module).__name__}, not a plain linear map, so its output can't be "
            f"recentred exactly; merge adapters and remove parametrizations first"
        )
    if not module.weight.is_floating_point():  # type: ignore[operator]
        raise UserError(f"{name} has quantized weights, which can't be recentred exactly")


def output_slots(model: nn.Module, name: str) -> list[Slot]:
    """Where the output features of a module, or of the parameter of that name, are kept.

    Raises:
        UserError: there is no such module, or its output is not linear in its parameters.
    """
    owner_name, _, last = name.rpartition(".")
    try:
        owner = model.get_submodule(owner_name)
    except AttributeError:
        raise UserError(f"the model has no module {owner_name}") from None
    target = getattr(owner, last, None)
    if isinstance(target, nn.Parameter):
        return [(owner, last, target.ndim - 1)]
    if isinstance(target, Positions):
        kept = "weight" if target.kind == "learned" else "table"
        return [(target, kept, 1)]
    if not isinstance(target, nn.Module):
        raise UserError(f"the model has no module or parameter {name}")
    if isinstance(target, nn.Embedding):
        if target.max_norm is not None or parametrize.is_parametrized(target):
            raise UserError(f"{name} changes its weight when it is read; remove that first")
        return [(target, "weight", 1)]
    if not _is_plain(target, (nn.Conv1d, nn.Conv2d)):
        check_linear(target, name)
    slots: list[Slot] = [(target, "weight", 1 if is_transposed(target) else 0)]
    if target.bias is not None:
        slots.append((target, "bias", 0))
    return slots


def centred(tensor: Tensor, axis: int) -> Tensor:
    """The tensor minus its mean along an axis, float64."""
    wide = tensor.detach().double()
    return wide - wide.mean(axis, keepdim=True)


def is_zero_mean(slots: list[Slot]) -> bool:
    """Whether the features have no mean, up to rounding."""
    for module, name, axis in slots:
        tensor: Tensor = getattr(module, name).detach()
        if tensor.numel() == 0:
            continue
        largest = tensor.double().abs().amax()
        limit = _ROUNDINGS * torch.finfo(tensor.dtype).eps * largest
        if bool((tensor.double().mean(axis).abs() > limit).any()):
            return False
    return True


def recentre(slots: list[Slot]) -> None:
    """Remove the mean over features, in place: the same Parameter objects stay."""
    with torch.no_grad():
        for module, name, axis in slots:
            tensor: Tensor = getattr(module, name)
            tensor.copy_(centred(tensor, axis))


def put(module: nn.Module, name: str, value: Tensor, like: Tensor) -> None:
    """Make ``value`` the module's parameter of that name, in the dtype of `like`, frozen or not."""
    parameter = nn.Parameter(value.to(like.dtype).contiguous(), requires_grad=like.requires_grad)
    if name in module._buffers:
        del module._buffers[name]
    setattr(module, name, parameter)


def recentre_and_drop(slots: list[Slot]) -> None:
    """Remove the mean over features, then the last feature, and tell the module its new size."""
    for module, name, axis in slots:
        tensor: Tensor = getattr(module, name)
        put(module, name, centred(tensor, axis).narrow(axis, 0, tensor.size(axis) - 1), tensor)
    for module in dict.fromkeys(module for module, _, _ in slots):
        for size in ("out_features", "nf", "out_channels", "embedding_dim"):
            if hasattr(module, size):
                setattr(module, size, getattr(module, size) - 1)


def fold(reader: nn.Module, weight: Tensor | None, bias: Tensor | None) -> None:
    """Give a linear module a norm's gain and bias, and let it read d − 1 centred features.

    With n the normed row of d features, W(w * n + b) + a = (W w) n + (W b + a); n sums to zero, so
    its last feature is minus the sum of the others and its column is subtracted from theirs
    (Jiang et al. 2023).

    Args:
        reader: reads the norm's output; changed in place, with new Parameter objects.
        weight: the gain ``(d,)`` or None.
        bias: the offset ``(d,)`` or None.
    """
    axis = 0 if is_transposed(reader) else 1
    old: Tensor = reader.weight  # type: ignore[assignment]
    columns = old.detach().double().movedim(axis, -1)
    if bias is not None and bool((bias != 0).any()):
        offset = columns @ bias.detach().double()
        had: Tensor | None = reader.bias  # type: ignore[assignment]
        put(reader, "bias", offset if had is None else had.detach().double() + offset, old)
    if weight is not None:
        columns = columns * weight.detach().double()
    put(reader, "weight", (columns[..., :-1] - columns[..., -1:]).movedim(-1, axis), old)
    for size in ("in_features", "nx"):
        if hasattr(reader, size):
            setattr(reader, size, getattr(reader, size) - 1)


class ZeroMeanEmbedding(nn.Embedding):
    """An embedding whose vectors are recentred as they are looked up.

    For a matrix that is tied to an output layer, which must keep reading it as it is.
    """

    @classmethod
    def of(cls, embedding: nn.Embedding) -> ZeroMeanEmbedding:
        """The same embedding, sharing its weight."""
        made = cls(
            embedding.num_embeddings,
            embedding.embedding_dim,
            embedding.padding_idx,
            scale_grad_by_freq=embedding.scale_grad_by_freq,
            sparse=embedding.sparse,
            device="meta",
        )
        made.weight = embedding.weight
        return made.train(embedding.training)

    def plain(self) -> nn.Embedding:
        """The ordinary embedding, sharing the weight."""
        made = nn.Embedding(
            self.num_embeddings,
            self.embedding_dim,
            self.padding_idx,
            scale_grad_by_freq=self.scale_grad_by_freq,
            sparse=self.sparse,
            device="meta",
        )
        made.weight = self.weight
        return made.train(self.training)

    def forward(self, input: Tensor) -> Tensor:
        """Vectors ``(..., dim)`` of ids ``(...)``, each minus its mean."""
        vectors = super().forward(input)
        return vectors - vectors.mean(-1, keepdim=True)


def recentre_entry(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """A forward pre-hook that recentres the first argument, ``(..., width)``."""
    if args:
        return (args[0] - args[0].mean(-1, keepdim=True), *args[1:]), kwargs
    name, first = next(iter(kwargs.items()))
    return args, {**kwargs, name: first - first.mean(-1, keepdim=True)}


def recentre_and_drop_entry(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """A forward pre-hook that recentres the first argument and drops its last feature."""
    args, kwargs = recentre_entry(module, args, kwargs)
    if args:
        return (args[0][..., :-1], *args[1:]), kwargs
    name, first = next(iter(kwargs.items()))
    return args, {**kwargs, name: first[..., :-1]}


def entry_hooks(module: nn.Module) -> list[int]:
    """The ids of the hooks of this file that a module has."""
    ours = (recentre_entry, recentre_and_drop_entry)
    return [key for key, hook in module._forward_pre_hooks.items() if hook in ours]
