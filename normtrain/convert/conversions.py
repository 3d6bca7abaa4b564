"""Exact conversions of Pre-LN models: to Pre-RMSNorm, to Pre-CRMSNorm, and back to LayerNorm.

A norm that centres its input ignores the mean of the residual stream. So the mean can be removed
from everything that writes into the stream, and on zero-mean vectors LayerNorm equals RMSNorm. The
last feature of a zero-mean vector follows from the others, which are what CRMSNorm stores
(Jiang, Gu, Zhu, Pan 2023, Pre-RMSNorm and Pre-CRMSNorm Transformers, arXiv:2305.14858).

Each conversion checks everything before it changes anything. Outputs are equal in eval mode; in
training mode dropout makes a converted model differ. Parameters that change shape
are new objects: build optimizers, EMA copies and data-parallel wrappers after converting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from normtrain.convert import own_models
from normtrain.convert.counterparts import CENTRING, RMS, crms_of, label, layer_norm_of, rms_of
from normtrain.convert.linear_layers import entry_hooks, recentre_and_drop_entry, recentre_entry
from normtrain.convert.mean_removal import (
    ZeroMeanEmbedding,
    fold,
    output_slots,
    recentre,
    recentre_and_drop,
)
from normtrain.convert.preconditions import (
    check_centred,
    check_outer_norms,
    check_readers,
    check_streams,
    norm_kinds,
    unnamed,
)
from normtrain.convert.report import ConversionReport
from normtrain.convert.streams import Stream, streams_of
from normtrain.errors import UserError
from normtrain.models.embedding import TokenModel
from normtrain.norms import DetachNorm

_DETACHED = "detachnorm's forward is kept, but not what it holds constant in the backward"


def to_rmsnorm(model: nn.Module, *, streams: Sequence[Stream] | None = None) -> ConversionReport:
    """Convert a Pre-LN model into the Pre-RMSNorm model with the same outputs, in place.

    Means over features are taken out of the weights that write into the residual streams, and
    every LayerNorm there becomes an RMSNorm with the same eps, gain and bias. An embedding that
    is tied to an output matrix keeps its values, and its vectors are recentred when looked up.
    A model trained with ``zero_mean: stream`` has that recentring folded into its weights.

    Args:
        model: a model of this package, one of Hugging Face's GPT-2, OPT, GPT-NeoX, ViT or
            Whisper, or any other with its streams.
        streams: its residual streams; by default what `streams_of` finds.

    Returns:
        What was changed.

    Raises:
        UserError: the conversion would not be exact; the module and the reason are named, and
            the model is unchanged.
    """
    streams = _checked(model, streams)
    folding = isinstance(model, TokenModel) and model.zero_mean == "stream"
    kinds = _readable(model, streams)
    if set(kinds.values()) == {RMS} and not folding:
        raise UserError(
            "every norm on the model's streams is RMSNorm already; there is nothing to convert"
        )
    report = _report(model, "rmsnorm", streams)
    for stream in streams:
        for name in stream.writers:
            recentre(output_slots(model, name))
            report.recentred.append(name)
        _recentre_outer_biases(model, stream)
        if not isinstance(model, TokenModel):
            _recentre_inputs(model, stream, report)
    if isinstance(model, TokenModel):
        own_models.set_zero_mean(model, "embeddings")
        report.notes.append("token and position vectors are recentred when looked up")
    _replace(model, _all_norms(streams), rms_of, report)
    return _finished(model, report)


def to_crmsnorm(model: nn.Module, *, streams: Sequence[Stream] | None = None) -> ConversionReport:
    """Convert a Pre-LN or zero-mean Pre-RMSNorm model into the equal Pre-CRMSNorm model, in place.

    The residual streams keep d − 1 of d features. Gains and biases of the norms are folded into
    what reads them; tied output matrices are untied; sinusoidal positions become a stored table.

    Args:
        model: as for `to_rmsnorm`, or a model that `to_rmsnorm` made.
        streams: its residual streams; by default what `streams_of` finds.

    Returns:
        What was changed.

    Raises:
        UserError: the conversion would not be exact; the module and the reason are named, and
            the model is unchanged.
    """
    streams = _checked(model, streams)
    _readable(model, streams)
    check_readers(model, streams)
    report = _report(model, "crmsnorm", streams)
    tied = [n for s in streams for n in s.inputs if _is_tied(model, _named(model, n))]
    if isinstance(model, TokenModel):
        own_models.narrow_embeddings(model, list(streams))
        own_models.narrow_attentions(model)
        own_models.set_zero_mean(model, "none")
        report.notes.append("embeddings and positions are tables of one feature fewer, untied")
    for stream in streams:
        for norm, readers in stream.norms.items():
            old = model.get_submodule(norm)
            for reader in readers:
                fold(model.get_submodule(reader), old.weight, old.bias)  # type: ignore[arg-type]
                report.folded[reader] = norm
        for name in stream.writers:
            recentre_and_drop(output_slots(model, name))
            report.recentred.append(name)
        _recentre_outer_biases(model, stream)
    if not isinstance(model, TokenModel):
        _narrow_inputs(model, streams, tied, report)
    _replace(model, [n for s in streams for n in s.norms], crms_of, report)
    outer = [n for s in streams for n in s.outer_norms]
    _replace(model, outer, lambda old: crms_of(old, keep=True), report)
    return _finished(model, report)


def to_layernorm(model: nn.Module, *, streams: Sequence[Stream] | None = None) -> ConversionReport:
    """Convert a Pre-RMSNorm model whose streams have no mean back into the equal Pre-LN model.

    Args:
        model: what `to_rmsnorm` made, or a model trained with ``zero_mean: stream``.
        streams: its residual streams; by default what `streams_of` finds.

    Returns:
        What was changed.

    Raises:
        UserError: a norm is not RMSNorm, or a module adds a mean to a stream, which LayerNorm
            would remove; it is named, and the model is unchanged.
    """
    streams = _checked(model, streams)
    for stream in streams:
        kinds = norm_kinds(model, stream)
        if first := next((name for name, kind in kinds.items() if kind == CENTRING), None):
            raise UserError(
                f"{first} ({label(model.get_submodule(first))}) centres already; only RMSNorm "
                f"converts to LayerNorm"
            )
        _check_centred(model, stream)
    report = _report(model, "layernorm", streams)
    ours = isinstance(model, TokenModel)
    _replace(model, _all_norms(streams), lambda old: layer_norm_of(old, own=ours), report)
    if isinstance(model, TokenModel):
        own_models.set_zero_mean(model, "none")  # the LayerNorms do it
    for stream in streams:
        for name in stream.inputs:
            if isinstance(module := _named(model, name), ZeroMeanEmbedding):
                model.set_submodule(name, module.plain())
        if stream.entry is not None:
            _set_entry_hook(model.get_submodule(stream.entry), None)
    return _finished(model, report)


def _checked(model: nn.Module, streams: Sequence[Stream] | None) -> Sequence[Stream]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {model!r}")
    known = streams_of(model) if streams is None or isinstance(model, TokenModel) else None
    streams = [streams] if isinstance(streams, Stream) else streams
    if streams is not None and known is not None and list(streams) != known:
        raise UserError(f"the streams of a {type(model).__name__} are known; leave streams out")
    inner = [n for n, m in model.named_modules() if n and isinstance(m, TokenModel)]
    if inner:
        raise UserError(f"the model to convert is the {inner[0]} of this module; pass that")
    streams = known if streams is None else streams
    assert streams is not None
    check_streams(model, streams)
    return streams


def _readable(model: nn.Module, streams: Sequence[Stream]) -> dict[str, str]:
    """Return the class of each norm, after checking that its stream can be converted."""
    kinds: dict[str, str] = {}
    for stream in streams:
        check_outer_norms(model, stream)
        found = norm_kinds(model, stream)
        if RMS in found.values():
            try:
                _check_centred(model, stream)
            except UserError as error:
                first = next(name for name, kind in found.items() if kind == RMS)
                raise UserError(
                    f"{first} ({label(model.get_submodule(first))}) reads the mean of its stream, "
                    f"which the conversion would remove: {error}"
                ) from error
        kinds |= found
    return kinds


def _check_centred(model: nn.Module, stream: Stream) -> None:
    fine = [name for name in stream.inputs if isinstance(_named(model, name), ZeroMeanEmbedding)]
    check_centred(model, stream, [*fine, *own_models.centred_when_run(model, stream)])
    if stream.entry is not None and not entry_hooks(model.get_submodule(stream.entry)):
        raise UserError(f"what enters {stream.entry} has a mean")


def _named(model: nn.Module, name: str) -> object:
    owner, _, last = name.rpartition(".")
    return getattr(model.get_submodule(owner), last)


def _report(model: nn.Module, to: str, streams: Sequence[Stream]) -> ConversionReport:
    """Return a report that names norms off the streams, and modules that no stream names."""
    on = {*_all_norms(streams), "embedding_norm"}
    left = {
        name: label(module)
        for name, module in model.named_modules()
        if name and name not in on and "Norm" in type(module).__name__
    }
    report = ConversionReport(to, left=left)
    if forgotten := unnamed(model, streams):
        report.notes.append(
            f"no stream names {', '.join(forgotten)}, which have a stream's width: check that "
            f"none of them adds to it"
        )
    return report


def _all_norms(streams: Sequence[Stream]) -> list[str]:
    return [name for stream in streams for name in (*stream.norms, *stream.outer_norms)]


def _replace(
    model: nn.Module,
    names: list[str],
    build: Callable[[nn.Module], nn.Module],
    report: ConversionReport,
) -> None:
    made: dict[nn.Module, nn.Module] = {}
    for name in names:
        old = model.get_submodule(name)
        made.setdefault(old, build(old))  # a norm used twice stays one module
        report.replaced[name] = (label(old), label(made[old]))
        if isinstance(old, DetachNorm) and (note := _DETACHED) not in report.notes:
            report.notes.append(note)
        model.set_submodule(name, made[old])


def _recentre_outer_biases(model: nn.Module, stream: Stream) -> None:
    for norm in map(model.get_submodule, stream.outer_norms):
        if isinstance(norm.bias, nn.Parameter):
            recentre([(norm, "bias", 0)])


def _recentre_inputs(model: nn.Module, stream: Stream, report: ConversionReport) -> None:
    """Remove the mean of a stream's input, in the weights where that is possible."""
    for name in stream.inputs:
        module = _named(model, name)
        if isinstance(module, nn.Embedding) and _is_tied(model, module):
            if not isinstance(module, ZeroMeanEmbedding):
                model.set_submodule(name, ZeroMeanEmbedding.of(module))
            report.notes.append(f"{name} is tied, so its vectors are recentred when looked up")
        else:
            recentre(output_slots(model, name))
            report.recentred.append(name)
    if stream.entry is not None:
        _set_entry_hook(model.get_submodule(stream.entry), recentre_entry)
        report.notes.append(f"what enters {stream.entry} is recentred when the model runs")


def _narrow_inputs(
    model: nn.Module, streams: Sequence[Stream], tied: list[str], report: ConversionReport
) -> None:
    done: set[int] = set()
    for stream in streams:
        for name in stream.inputs:
            if isinstance(module := _named(model, name), ZeroMeanEmbedding):
                model.set_submodule(name, module := module.plain())
            if id(module) not in done:
                done.add(id(module))
                recentre_and_drop(output_slots(model, name))
                report.recentred.append(name)
        if stream.entry is not None:
            _set_entry_hook(model.get_submodule(stream.entry), recentre_and_drop_entry)
            report.notes.append(
                f"what enters {stream.entry} is recentred, and its last feature dropped, when "
                f"the model runs"
            )
    if tied:
        report.notes.append(f"{', '.join(tied)} is no longer tied to an output matrix")
        if getattr(model, "config", None) is not None:
            model.config.tie_word_embeddings = False  # type: ignore[union-attr]


def _is_tied(model: nn.Module, table: object) -> bool:
    return isinstance(table, nn.Embedding) and any(
        parameter is table.weight
        for module in model.modules()
        if module is not table
        for parameter in module._parameters.values()
    )


def _set_entry_hook(module: nn.Module, hook: Callable[..., Any] | None) -> None:
    """Replace what an earlier conversion does to the first argument of a module."""
    for key in entry_hooks(module):
        del module._forward_pre_hooks[key]
        module._forward_pre_hooks_with_kwargs.pop(key, None)
    if hook is not None:
        module.register_forward_pre_hook(hook, with_kwargs=True)


def _finished(model: nn.Module, report: ConversionReport) -> ConversionReport:
    if isinstance(model, TokenModel):
        model.norms_replaced()
    low = {
        str(p.dtype).removeprefix("torch.")
        for p in model.parameters()
        if p.dtype in (torch.bfloat16, torch.float16)
    }
    if low:
        report.notes.append(
            f"weights are {' and '.join(sorted(low))}: the outputs agree to that precision only"
        )
    return report
