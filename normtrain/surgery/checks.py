"""What must hold before a model is converted; nothing here changes it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from normtrain.errors import UserError
from normtrain.surgery.counterparts import CENTRING, RMS, kind_of
from normtrain.surgery.features import check_linear, is_zero_mean, output_slots

if TYPE_CHECKING:
    from normtrain.surgery.streams import Stream


def check_streams(model: nn.Module, streams: Sequence[Stream]) -> None:
    """Check that every part that the streams name is there and can be converted.

    Raises:
        UserError: a module is missing, is of a kind that can't be converted exactly, has another
            width, or shares a weight with something off the stream.
    """
    if not streams:
        raise UserError("there is no residual stream to convert")
    for stream in streams:
        for name in (*stream.norms, *stream.outer_norms):
            norm = find(model, name)
            kind_of(norm, name)
            _check_width(norm, name, stream.width)
        for name in stream.writers:
            slots = output_slots(model, name)
            module, kept, axis = slots[0]
            if getattr(module, kept).size(axis) != stream.width:
                raise UserError(
                    f"{name} writes {getattr(module, kept).size(axis)} features into a stream "
                    f"of {stream.width}"
                )
        for name in stream.inputs:
            output_slots(model, name)
        if stream.entry is not None:
            find(model, stream.entry)
    _check_sharing(model, streams)


def find(model: nn.Module, name: str) -> nn.Module:
    """The module of that full name.

    Raises:
        UserError: there is none.
    """
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise UserError(f"the model has no module {name}") from None


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
        weight = find(model, name).weight
        if isinstance(weight, Tensor) and bool((weight != weight.flatten()[0]).any()):
            raise UserError(
                f"{name} writes into the stream with a gain that differs between features, so "
                f"what it adds has a mean that can't be removed exactly"
            )


def _check_sharing(model: nn.Module, streams: Sequence[Stream]) -> None:
    """A writer's weight must not be used elsewhere, where the change would be felt."""
    users: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                users.setdefault(id(parameter), []).append(name)
    for stream in streams:
        for writer in stream.writers:
            for module, kept, _ in output_slots(model, writer):
                others = [u for u in users[id(getattr(module, kept))] if u != writer]
                if others:
                    raise UserError(
                        f"{writer} shares its {kept} with {others[0]}; untie them first"
                    )


def check_readers(model: nn.Module, streams: Sequence[Stream]) -> None:
    """Check that all that reads a norm can take its gain and one feature fewer.

    Raises:
        UserError: a reader is no plain linear map, reads two norms, or lies outside the model.
    """
    seen: set[str] = set()
    for stream in streams:
        if stream.width < 2:
            raise UserError("a stream of one feature has nothing left when one is dropped")
        for norm, readers in stream.norms.items():
            if not readers:
                raise UserError(
                    f"the output of {norm} leaves the model, and would be one feature narrower; "
                    f"convert the model together with its (linear) head"
                )
            for reader in readers:
                if reader in seen:
                    raise UserError(f"{reader} reads two norms, so neither can be folded into it")
                seen.add(reader)
                check_linear(find(model, reader), reader)


def norm_kinds(model: nn.Module, stream: Stream) -> dict[str, str]:
    """Of each norm at a stream, whether it centres or is RMSNorm."""
    names = (*stream.norms, *stream.outer_norms)
    return {name: kind_of(find(model, name), name) for name in names}


def check_centred(model: nn.Module, stream: Stream, centred_when_run: Iterable[str]) -> None:
    """Check that everything written into a stream has no mean.

    Args:
        model: the model.
        stream: one of its streams.
        centred_when_run: writers and inputs whose values the model itself recentres.

    Raises:
        UserError: something has a mean; it is named.
    """
    fine = set(centred_when_run)
    for name in (*stream.writers, *stream.inputs):
        if name not in fine and not is_zero_mean(output_slots(model, name)):
            raise UserError(
                f"{name} adds a mean to the stream, so the RMSNorms that read it do not equal "
                f"LayerNorms; only what was converted from Pre-LN, or trained with a zero mean, "
                f"meets the condition"
            )
    if not fine.issuperset(stream.outer_norms):
        check_outer_norms(model, stream)
    for name in stream.outer_norms:
        norm = find(model, name)
        if name not in fine and norm.bias is not None and not is_zero_mean([(norm, "bias", 0)]):
            raise UserError(f"the bias of {name} adds a mean to the stream")


def all_are(kinds: Iterable[str], wanted: str) -> bool:
    """Whether there is any and all are of that kind."""
    found = set(kinds)
    assert wanted in (CENTRING, RMS)
    return found == {wanted}
