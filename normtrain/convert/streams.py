"""Describe the residual streams of a model: what writes into each, which norms read it.

An exact conversion needs to know every writer and every reader of a stream. `streams_of` knows
the models of this package and several families of Hugging Face transformers; for any other model
describe its streams and pass them to the conversion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from normtrain.convert import hf_streams
from normtrain.errors import UserError
from normtrain.models import CausalLM, Seq2Seq
from normtrain.models.blocks import DecoderLayer, EncoderLayer, Residual, Stack
from normtrain.models.positions import Positions


@dataclass(frozen=True)
class Stream:
    """One residual stream of a Pre-LN model: ``x`` of ``(..., width)``, summed over all writers.

    Names are full names in the model. The stream must be read through the norms alone.

    Attributes:
        width: its number of features.
        norms: each norm that reads the stream, with the linear modules that read the norm's
            output; no modules where the output leaves the model.
        writers: linear modules whose outputs are added to the stream, layer by layer.
        inputs: what makes the stream's first value: embeddings, linear or convolution modules,
            or parameters such as position vectors, all added up.
        outer_norms: norms that a writer's output passes before it is added (sandwich).
        entry: a module whose first argument is the stream's first value, to be recentred there
            when the model runs, where ``inputs`` cannot be changed (they are nonlinear).
    """

    width: int
    norms: Mapping[str, tuple[str, ...]]
    writers: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    outer_norms: tuple[str, ...] = ()
    entry: str | None = None

    def __post_init__(self) -> None:
        """Refuse a string where several names are expected."""
        for names in (self.writers, self.inputs, self.outer_norms, *self.norms.values()):
            if isinstance(names, str):
                raise TypeError(f"a stream expects a sequence of names, got {names!r}")


def streams_of(model: nn.Module) -> list[Stream]:
    """Return the residual streams of a model whose class is known.

    Raises:
        UserError: the class is unknown, or the model is not Pre-LN; the module and the reason
            are named.
    """
    # A subclass may read its streams elsewhere.
    if type(model) is Seq2Seq:
        return _seq2seq(model)
    if type(model) is CausalLM:
        added = isinstance(model.positions, Positions)  # rotary positions leave the stream alone
        inputs = ("embedding", "positions") if added else ("embedding",)
        return [_stack(model.decoder, "decoder", ("head",), inputs)]
    family = type(model).__module__.partition("transformers.models.")[2].partition(".")[0]
    describe: Callable[[nn.Module], list[dict[str, Any]]] | None = hf_streams.FAMILIES.get(family)
    kind = type(model).__name__
    for inner in ("module", "_orig_mod"):  # data-parallel wrappers; torch.compile
        if isinstance(getattr(model, inner, None), nn.Module):
            raise UserError(f"a {kind} wraps the model; convert its .{inner} before wrapping it")
    if describe is None:
        raise UserError(
            f"the residual streams of a {kind} are not known; describe them with "
            f"normtrain.convert.Stream and pass streams=[...] (known: normtrain's models and "
            f"Hugging Face's {', '.join(hf_streams.FAMILIES)})"
        )
    if not hasattr(model, "base_model_prefix") or not hf_streams.is_whole(model, family):
        raise UserError(f"a {kind} is a part of a model; convert the whole one")
    return [Stream(**{**plain, "writers": tuple(plain["writers"])}) for plain in describe(model)]


def _seq2seq(model: Seq2Seq) -> list[Stream]:
    readers = tuple(
        f"decoder.layers.{i}.cross_attention.key_value" for i in range(len(model.decoder.layers))
    )
    source = ("source_embedding", "source_positions")
    target = ("target_embedding", "target_positions")
    return [
        _stack(model.encoder, "encoder", readers, source),
        _stack(model.decoder, "decoder", ("head",), target),
    ]


_SUBLAYERS = {  # residual: (what reads its norm, what writes its branch)
    "attention_residual": ("attention.query_key_value", "attention.output"),
    "cross_attention_residual": ("cross_attention.query", "cross_attention.output"),
    "feed_forward_residual": ("feed_forward.inner", "feed_forward.outer"),
}


def _stack(stack: Stack, name: str, readers: tuple[str, ...], inputs: tuple[str, ...]) -> Stream:
    """Return the stream of a stack."""
    norms: dict[str, tuple[str, ...]] = {}
    writers, outer = [], []
    width = int(getattr(stack.norm, "dim", 0))
    for i, layer in enumerate(stack.layers):
        assert isinstance(layer, EncoderLayer | DecoderLayer)
        for residual, (reader, writer) in _SUBLAYERS.items():
            if not hasattr(layer, residual):
                continue
            full = f"{name}.layers.{i}"
            module = getattr(layer, residual)
            assert isinstance(module, Residual)
            if module.placement == "post":
                raise UserError(
                    f"{full}.{residual} is post-norm: its norm writes the stream, so the stream's "
                    f"mean cannot be removed; only pre-norm models convert exactly"
                )
            norms[f"{full}.{residual}.norm"] = (f"{full}.{reader}",)
            writers.append(f"{full}.{writer}")
            if module.placement == "sandwich":
                outer.append(f"{full}.{residual}.norm_out")
    norms[f"{name}.norm"] = readers
    return Stream(width, norms, tuple(writers), inputs, tuple(outer))
