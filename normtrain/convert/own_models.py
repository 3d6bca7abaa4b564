"""Convert what only this package's models have: flags, embeddings, norm rules."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normtrain.convert.mean_removal import centred, put
from normtrain.convert.streams import Stream
from normtrain.models.attention import Attention
from normtrain.models.blocks import Residual
from normtrain.models.embedding import TokenModel
from normtrain.models.positions import Positions


def centred_when_run(model: nn.Module, stream: Stream) -> tuple[str, ...]:
    """Return the inputs and writers of a stream that the model recentres when it runs."""
    mode = getattr(model, "zero_mean", "none") if isinstance(model, TokenModel) else "none"
    if mode == "stream":
        return (*stream.inputs, *stream.writers, *stream.outer_norms)
    return stream.inputs if mode == "embeddings" else ()


def set_zero_mean(model: TokenModel, mode: str) -> None:
    """Set what the model recentres when it runs: ``none``, ``embeddings`` or ``stream``."""
    model.zero_mean = mode
    for module in model.modules():
        if isinstance(module, Residual):
            module.recentre = mode == "stream"


def narrow_embeddings(model: TokenModel, streams: list[Stream]) -> None:
    """Fold the recentring into every embedding and position table, and drop the last feature.

    The norm of the embeddings is folded too, and so is the scale of a model that has one only with
    it. An output matrix stops being tied: it reads the last norm, and takes that norm's gain.
    """
    with torch.no_grad():
        head = model.output_matrix().detach().clone()
    put(model.head, "weight", head, model.head.weight)
    for name in dict.fromkeys(name for stream in streams for name in stream.inputs):
        module = model.get_submodule(name)
        if isinstance(module, Positions):
            _narrow_positions(module, trained=model.head.weight.requires_grad)
    tables = [model.get_submodule(n) for s in streams for n in s.inputs]
    for table in dict.fromkeys(m for m in tables if isinstance(m, nn.Embedding)):
        vectors: Tensor = table.weight.detach()
        if model.embedding_norm is not None:
            with torch.no_grad():
                vectors = model.embedding_norm(vectors)
            if not model.always_scaled:
                vectors = vectors * model.scale
        put(table, "weight", centred(vectors, 1)[:, :-1], table.weight)
        table.embedding_dim -= 1
    model.embedding_norm, model.tied = None, False
    if not model.always_scaled:
        model.scale = 1.0


def _narrow_positions(positions: Positions, *, trained: bool) -> None:
    """A table of vectors with no mean and one feature fewer; no formula gives it, so it is kept."""
    learned = positions.kind == "learned"
    old: Tensor = positions.weight if learned else positions.table
    put(positions, "weight", centred(old, 1)[:, :-1], old)
    if not learned:
        del positions.table
        positions.kind = "learned"
        positions.weight.requires_grad_(trained)


def narrow_attentions(model: TokenModel) -> None:
    """Tell each attention module that the stream has one feature fewer."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.stream -= 1
