"""Put an L1, L-infinity or top-k batch norm where a model has `torch.nn.BatchNorm*`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _LazyNormBase

from normtrain.errors import UserError, unknown_name
from normtrain.norms import batch

# By norm, for BatchNorm1d, 2d, 3d and SyncBatchNorm, which takes any rank.
_OURS: dict[str, tuple[type[batch.BatchNormBase], ...]] = {
    "l1": (batch.L1BatchNorm1d, batch.L1BatchNorm2d, batch.L1BatchNorm3d, batch.L1BatchNorm),
    "linf": (
        batch.LInfBatchNorm1d,
        batch.LInfBatchNorm2d,
        batch.LInfBatchNorm3d,
        batch.LInfBatchNorm,
    ),
    "topk": (
        batch.TopKBatchNorm1d,
        batch.TopKBatchNorm2d,
        batch.TopKBatchNorm3d,
        batch.TopKBatchNorm,
    ),
}
_THEIRS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class _Place(NamedTuple):
    """Where in a model a batch norm hangs."""

    path: str
    parent: nn.Module
    name: str
    norm: _BatchNorm


def replace_batchnorm(
    model: nn.Module, kind: str, *, k: int | None = None, sync: bool | None = None
) -> list[str]:
    """Replace every `torch.nn.BatchNorm1d`, ``2d``, ``3d`` and `SyncBatchNorm` in place.

    The new norms hold the very weight and bias parameters of the old ones (an optimizer goes on
    with them), their running mean and count, eps, momentum, and training mode. ``running_scale``
    becomes sqrt(running_var + eps) - eps, so that the outputs in eval are the old ones; in
    training, outputs differ by how far c * statistic is from the batch's deviation. A module used
    in several places stays one module. Nothing is changed where an error is raised.

    Args:
        model: holds the batch norms; any depth.
        kind: ``"l1"``, ``"linf"`` or ``"topk"``.
        k: how many of the largest deviations ``"topk"`` averages, 10 by default; only for it.
        sync: whether statistics are shared by all ranks in training; by default only those of a
            `SyncBatchNorm`, with its process group.

    Returns:
        The names of the modules replaced, a shared one's under each of its names.

    Raises:
        UserError: the kind is unknown, there is no batch norm, the model itself is one, or one
            can't be replaced without changing what it does (a subclass of PyTorch's, one that
            has seen no input yet, one with hooks).
    """
    classes = _OURS.get(kind)
    if classes is None:
        raise unknown_name("batch norm", kind, _OURS)
    if k is not None and kind != "topk":
        raise UserError(f"k is only used by 'topk', not by {kind!r}; leave it out")
    places = _find(model)
    new: dict[nn.Module, batch.BatchNormBase] = {}
    for place in places:
        if place.norm not in new:
            options: dict[str, Any] = {} if k is None else {"k": k}
            cls = classes[_THEIRS.index(type(place.norm))]
            new[place.norm] = _successor(place.norm, cls, sync, options)
    for place in places:
        place.parent.register_module(place.name, new[place.norm])
    return [place.path for place in places]


def _find(model: nn.Module) -> list[_Place]:
    """Every place of a batch norm in the model, all of them replaceable."""
    if isinstance(model, _BatchNorm):
        raise UserError(
            f"the model is itself a {type(model).__name__}, which can't be replaced in place; "
            "build the new norm instead"
        )
    places = []
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, _BatchNorm):
            _check_replaceable(path, module)
            above, _, name = path.rpartition(".")
            places.append(_Place(path, model.get_submodule(above), name, module))
    if not places:
        raise UserError("there is no torch.nn.BatchNorm1d, 2d, 3d or SyncBatchNorm in the model")
    return places


def _check_replaceable(path: str, norm: _BatchNorm) -> None:
    kind = type(norm).__name__
    if isinstance(norm, _LazyNormBase):
        raise UserError(f"{path} is a {kind} of unknown size; run the model once before replacing")
    if type(norm) not in _THEIRS:
        raise UserError(
            f"{path} is a {kind}, not one of PyTorch's own batch norms, and may do more than "
            "normalise; replace it by hand"
        )
    if norm._forward_hooks or norm._forward_pre_hooks or norm._backward_hooks:
        raise UserError(f"{path} has hooks that would be lost; remove them before replacing")


def _successor(
    old: _BatchNorm, cls: type[batch.BatchNormBase], sync: bool | None, options: dict[str, Any]
) -> batch.BatchNormBase:
    """A norm of the class that goes on where the old one is."""
    if sync is None:
        sync = isinstance(old, nn.SyncBatchNorm)
    if sync and isinstance(old, nn.SyncBatchNorm):
        options = options | {"process_group": old.process_group}
    new = cls(old.num_features, old.eps, old.momentum, device="meta", sync=sync, **options)
    new.affine, new.track_running_stats = old.affine, old.track_running_stats
    new.weight, new.bias = old.weight, old.bias
    new.running_mean = old.running_mean
    new.running_scale = _scale(old.running_var, new.eps)
    new.num_batches_tracked = old.num_batches_tracked
    return new.train(old.training)


def _scale(running_var: Tensor | None, eps: float) -> Tensor | None:
    """The deviation whose sum with eps is what the old norm divides by in eval."""
    if running_var is None:
        return None
    return ((running_var.to(torch.float64) + eps).sqrt() - eps).to(running_var.dtype)
