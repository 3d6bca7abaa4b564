"""Replace `torch.nn.BatchNorm*` in a model by L1, L-infinity or top-k batch norms."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _LazyNormBase

from normtrain.errors import UserError, unknown_name
from normtrain.norms import batch

# For BatchNorm1d, 2d, 3d and SyncBatchNorm, which takes any number of axes, in this order.
_REPLACEMENTS: dict[str, tuple[type[batch.BatchNormBase], ...]] = {
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
_TORCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class _Site(NamedTuple):
    """A batch norm in a model: its module name, its parent module and its name there."""

    path: str
    parent: nn.Module
    name: str
    norm: _BatchNorm


def replace_batchnorm(
    model: nn.Module, kind: str, *, k: int | None = None, sync: bool | None = None
) -> list[str]:
    """Replace every `torch.nn.BatchNorm1d`, ``2d``, ``3d`` and `SyncBatchNorm` in place.

    The new norms have the weight and bias parameters of the old ones (the same objects, so an
    optimizer keeps them), their running mean and count, eps, momentum, and training mode.
    ``running_scale`` becomes sqrt(running_var + eps) - eps, so that outputs in eval do not change;
    in training, outputs differ as c * statistic differs from the batch's deviation. A module with
    several names stays one module. If an error is raised, the model is unchanged.

    Args:
        model: contains the batch norms, at any depth.
        kind: ``"l1"``, ``"linf"`` or ``"topk"``.
        k: how many of the largest deviations ``"topk"`` averages, by default 10;
            only for ``"topk"``.
        sync: whether statistics are taken over all ranks in training; by default only for a
            `SyncBatchNorm`, with its process group.

    Returns:
        The names of the replaced modules; a shared module under each of its names.

    Raises:
        UserError: the kind is unknown, there is no batch norm, the model itself is one, or one
            cannot be replaced exactly (a subclass of PyTorch's, a lazy one without a size, one
            with hooks).
    """
    classes = _REPLACEMENTS.get(kind)
    if classes is None:
        raise unknown_name("batch norm", kind, _REPLACEMENTS)
    if k is not None and kind != "topk":
        raise UserError(f"k is only used by 'topk', not by {kind!r}; omit it")
    sites = _find(model)
    new: dict[nn.Module, batch.BatchNormBase] = {}
    for site in sites:
        if site.norm not in new:
            options: dict[str, Any] = {} if k is None else {"k": k}
            cls = classes[_TORCH_NORMS.index(type(site.norm))]
            new[site.norm] = _replacement(site.norm, cls, sync, options)
    for site in sites:
        site.parent.register_module(site.name, new[site.norm])
    return [site.path for site in sites]


def _find(model: nn.Module) -> list[_Site]:
    """Return every batch norm in the model, after a check that all can be replaced."""
    if isinstance(model, _BatchNorm):
        raise UserError(
            f"the model is itself a {type(model).__name__}, which cannot be replaced in place; "
            "build the new norm instead"
        )
    sites = []
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, _BatchNorm):
            _check_replaceable(path, module)
            above, _, name = path.rpartition(".")
            sites.append(_Site(path, model.get_submodule(above), name, module))
    if not sites:
        raise UserError("there is no torch.nn.BatchNorm1d, 2d, 3d or SyncBatchNorm in the model")
    return sites


def _check_replaceable(path: str, norm: _BatchNorm) -> None:
    kind = type(norm).__name__
    if isinstance(norm, _LazyNormBase):
        raise UserError(f"{path} is a {kind} of unknown size; run the model once first")
    if type(norm) not in _TORCH_NORMS:
        raise UserError(
            f"{path} is a {kind}, not one of PyTorch's own batch norms, and may do more than "
            "normalize; replace it in your own code"
        )
    if norm._forward_hooks or norm._forward_pre_hooks or norm._backward_hooks:
        raise UserError(f"{path} has hooks that would be lost; remove them before replacing")


def _replacement(
    old: _BatchNorm, cls: type[batch.BatchNormBase], sync: bool | None, options: dict[str, Any]
) -> batch.BatchNormBase:
    """Return a norm of the class with the parameters and statistics of the old one."""
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
    """Return the deviation that, plus eps, is what the old norm divides by in eval."""
    if running_var is None:
        return None
    return ((running_var.to(torch.float64) + eps).sqrt() - eps).to(running_var.dtype)
