"""Check that a model can be converted exactly; nothing here changes it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from normtrain.convert.counterparts import kind_of
from normtrain.convert.linear_layers import check_linear, check_values, find_module, is_transposed
from normtrain.convert.mean_removal import OUTPUT_SIZES, is_zero_mean, output_slots
from normtrain.errors import UserError
from normtrain.models.positions import Positions

if TYPE_CHECKING:
    from normtrain.convert.streams import Stream


def check_streams(model: nn.Module, streams: Sequence[Stream]) -> None:
    """Check that every part that the streams name is there and can be converted.

    Raises:
        UserError: a module is missing, cannot be converted exactly, has another width, is
            named twice, or shares a weight with a module off the stream.
    """
    if not streams:
        raise UserError("there is no residual stream to convert")
    check_values(model)
    for stream in streams:
        for name in (*stream.norms, *stream.outer_norms):
            norm = find_module(model, name)
            kind_of(norm, name)
            _check_width(norm, name, stream.width)
            if _eps_unknown(norm):
                raise UserError(f"{name} takes its eps from its input's dtype; give it a number")
        for name in (*stream.writers, *stream.inputs):
            module, kept, axis = output_slots(model, name)[0]
            if (wide := getattr(module, kept).size(axis)) != stream.width:
                raise UserError(f"{name} writes {wide} features into a stream of {stream.width}")
        if stream.entry is not None:
            find_module(model, stream.entry)
    _check_named_once(model, streams)
    _check_sharing(model, streams)


def _eps_unknown(norm: nn.Module) -> bool:
    return isinstance(norm, nn.RMSNorm) and norm.eps is None and norm.weight is None


def _check_named_once(model: nn.Module, streams: Sequence[Stream]) -> None:
    """Check that no writer is named twice: it would lose two features."""
    seen: dict[int, str] = {}
    for name in (name for stream in streams for name in stream.writers):
        module = find_module(model, name)
        if id(module) in seen:
            raise UserError(
                f"{name} and {seen[id(module)]} are one module, which cannot be converted"
            )
        seen[id(module)] = name


def _check_width(norm: nn.Module, name: str, width: int) -> None:
    shape: Sequence[int] = norm.normalized_shape  # type: ignore[assignment]
    if tuple(shape) != (width,):
        raise UserError(f"{name} norms {tuple(shape)}, but its stream has {width} features")


def check_outer_norms(model: nn.Module, stream: Stream) -> None:
    """Check that norms whose output is added to a stream scale all features alike.

    Raises:
        UserError: one has a gain that differs between features.
    """
    for name in stream.outer_norms:
        weight = find_module(model, name).weight
        if isinstance(weight, Tensor) and bool((weight != weight.flatten()[0]).any()):
            raise UserError(
                f"{name} writes into the stream with a gain that differs between features, so "
                f"what it adds has a mean that cannot be removed exactly"
            )


def _check_sharing(model: nn.Module, streams: Sequence[Stream]) -> None:
    """Check that no weight of a writer is used by another module."""
    users: dict[int, list[tuple[nn.Module, str]]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            users.setdefault(id(parameter), []).append((module, name))
    for stream in streams:
        for writer in (*stream.writers, *stream.inputs):
            slots = output_slots(model, writer)
            if isinstance(slots[0][0], nn.Embedding | Positions):
                continue  # a tied embedding is recentred as it is looked up
            for module, kept, _ in slots:
                sharing = users[id(getattr(module, kept))]
                others = [name for user, name in sharing if user is not module]
                if others:
                    raise UserError(
                        f"{writer} shares its {kept} with {others[0]}; untie them first"
                    )


def check_readers(model: nn.Module, streams: Sequence[Stream]) -> None:
    """Check that the readers of each norm can take its gain and one feature fewer.

    Raises:
        UserError: a reader is not a plain linear layer, reads two norms, or lies outside the model.
    """
    seen: dict[int, str] = {}
    for stream in streams:
        if stream.width < 2:
            raise UserError("a stream must have at least 2 features, got 1")
        for norm, readers in stream.norms.items():
            if not readers:
                raise UserError(
                    f"the output of {norm} leaves the model, and would be one feature narrower; "
                    f"convert the model together with its (linear) head"
                )
            for reader in readers:
                module = find_module(model, reader)
                if id(module) in seen:
                    raise UserError(f"{reader} reads two norms, so neither can be folded into it")
                seen[id(module)] = reader
                check_linear(module, reader)
                weight: Tensor = module.weight  # type: ignore[assignment]
                wide = weight.size(0 if is_transposed(module) else 1)
                if wide != stream.width:
                    raise UserError(
                        f"{reader} reads {wide} features, but {norm} gives {stream.width}"
                    )


def norm_kinds(model: nn.Module, stream: Stream) -> dict[str, str]:
    """Return whether each norm of a stream centres its input or is RMSNorm."""
    names = (*stream.norms, *stream.outer_norms)
    return {name: kind_of(find_module(model, name), name) for name in names}


def check_centred(model: nn.Module, stream: Stream, centred_when_run: Iterable[str]) -> None:
    """Check that everything written into a stream has no mean.

    Args:
        model: the model.
        stream: one of its streams.
        centred_when_run: writers and inputs whose values the model itself recentres.

    Raises:
        UserError: a module has a mean; it is named.
    """
    known = set(centred_when_run)
    for name in (*stream.writers, *stream.inputs):
        if name not in known and not is_zero_mean(output_slots(model, name)):
            raise UserError(
                f"{name} adds a mean to the stream, so the RMSNorms that read it do not equal "
                f"LayerNorms; only a model converted from Pre-LN (and neither trained since nor "
                f"rounded to a narrower dtype and back) or trained with zero_mean has none"
            )
    if not known.issuperset(stream.outer_norms):
        check_outer_norms(model, stream)
    for name in stream.outer_norms:
        norm = find_module(model, name)
        if name not in known and norm.bias is not None and not is_zero_mean([(norm, "bias", 0)]):
            raise UserError(f"the bias of {name} adds a mean to the stream")


_WRITES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding)


def unnamed(model: nn.Module, streams: Sequence[Stream]) -> list[str]:
    """Return modules whose output has the width of a stream, though no stream names them.

    A writer left out would keep its mean without an error. With an ``entry``, modules before and
    after it cannot be told apart, and none is returned.
    """
    if any(stream.entry is not None for stream in streams):
        return []
    named = {name for s in streams for name in (*s.writers, *s.inputs, *s.norms, *s.outer_norms)}
    named |= {reader for s in streams for readers in s.norms.values() for reader in readers}
    modules = {id(find_module(model, n)) for n in named if n in dict(model.named_modules())}
    widths = {stream.width for stream in streams}
    return [
        name
        for name, module in model.named_modules()
        if id(module) not in modules
        and (isinstance(module, _WRITES) or is_transposed(module))
        and any(getattr(module, size, None) in widths for size in OUTPUT_SIZES)
    ]
