"""FSDP2: weights, gradients and optimizer state sharded over the ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from normtrain.models.blocks import DecoderLayer, EncoderLayer


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a model's weights over the ranks of ``mesh``; a layer gathers its own when it runs.

    Weights outside of layers (embeddings, output matrix, last norms) stay gathered from the forward
    pass until the end of the backward pass.
    """
    if isinstance(model, FSDPModule):
        return
    for module in model.modules():
        if isinstance(module, EncoderLayer | DecoderLayer):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "hidden")


def sync_gradients(model: nn.Module, now: bool) -> None:
    """Set whether the next backward pass reduces gradients over ranks; needed once a step."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now)


def hold_whole(model: nn.Module, whole: bool) -> None:
    """Gather all of a sharded model's weights on every rank, or shard them again.

    Ranks that decode, or whose parts of a split differ in size, run the model a different number of
    times, so they cannot gather a layer's weights together each time.
    """
    if not isinstance(model, FSDPModule):
        return
    model.set_reshard_after_forward(not whole)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            if whole:
                module.unshard()
            else:
                module.reshard()
    if whole:
        # `forward` calls `hidden`, and a pass within a pass would shard the weights again.
        vars(model).pop("hidden", None)
    else:
        register_fsdp_forward_method(model, "hidden")
        # As torch does for a root module: its weights are needed again immediately.
        model.set_reshard_after_forward(False, recurse=False)


def whole_tensor(x: Tensor) -> Tensor:
    """Return the full tensor of one that may be sharded."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def scale_gradients(parameters: Any, factor: Tensor | float) -> None:
    """Multiply the gradients of some parameters in place, sharded or not."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if any(isinstance(g, DTensor) for g in gradients):  # local shards: all have the same factor
        gradients = [g.to_local() if isinstance(g, DTensor) else g for g in gradients]
    torch._foreach_mul_(gradients, factor)
