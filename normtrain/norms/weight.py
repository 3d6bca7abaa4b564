"""Bounded weight normalization: weights of fixed norm, of which only the direction is learned.

Hoffer, Banner, Golan, Soudry 2018, Norm matters, arXiv:1803.01814:
w_i = rho * v_i / ||v_i||, with one constant rho per layer, its initial norm. Unlike in weight
normalization (Salimans, Kingma 2016) no length is learned, so weights can neither grow nor
shrink. (The authors' `bwn.py` has a learned gain per channel and bounds only the norm of all
gains; this is the paper's form.)
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from normtrain.errors import UserError
from normtrain.kernels.formulas import stats_dtype


def channel_norms(w: Tensor, dim: int | None) -> Tensor:
    """Return the Euclidean norm of each slice along an axis, without overflow or underflow.

    Args:
        w: a tensor of any shape.
        dim: the axis of the channels; None for one channel, the whole tensor.

    Returns:
        ``w``'s shape with 1 in every axis but ``dim``, float32 (float64 for float64).
    """
    direction, peak = _scaled(w, dim)
    return torch.linalg.vector_norm(direction, dim=_others(w, dim), keepdim=True) * peak


def _others(w: Tensor, dim: int | None) -> list[int]:
    return [axis for axis in range(w.dim()) if axis != dim]


def _scaled(w: Tensor, dim: int | None) -> tuple[Tensor, Tensor]:
    """Return each channel over its largest magnitude (1 for zeros), and that magnitude."""
    wide = w.to(stats_dtype(w))
    peak = wide.detach().abs().amax(_others(w, dim), keepdim=True)
    peak = torch.where(peak == 0, 1.0, peak)
    return wide / peak, peak


class BoundedWeight(nn.Module):
    """The parametrization behind `bounded_weight_norm`: v to rho * v / ||v||.

    A channel of zeros stays zero; its gradient is that of a channel of norm 1.

    Args:
        weight: the initial weight; rho becomes the root mean square of its nonzero channel norms,
            so that the norm of the whole weight stays the same.
        dim: the axis of the channels, not negative; None for one channel, the whole tensor.

    Attributes:
        rho: the norm of every channel, a buffer of shape ``()``.
    """

    rho: Tensor

    def __init__(self, weight: Tensor, dim: int | None) -> None:
        super().__init__()
        self.dim = dim
        norms = channel_norms(weight.detach().double(), dim)
        rho = norms.norm() / norms.count_nonzero().clamp(min=1).sqrt()
        self.register_buffer("rho", rho.to(stats_dtype(weight)))

    def forward(self, v: Tensor) -> Tensor:
        """Return the weight of direction ``v``; same shape and dtype."""
        direction, _ = _scaled(v, self.dim)
        norm = torch.linalg.vector_norm(direction, dim=_others(v, self.dim), keepdim=True)
        norm = torch.where(norm == 0, 1.0, norm)
        return (direction / norm * self.rho).to(v.dtype)

    def right_inverse(self, w: Tensor) -> Tensor:
        """Return the weight as its own direction; a channel norm other than rho is lost."""
        return w

    def extra_repr(self) -> str:
        """Return the axis, for ``print(model)``."""
        return f"dim={self.dim}"


def bounded_weight_norm(module: nn.Module, name: str = "weight", dim: int | None = 0) -> nn.Module:
    """Fix the norm of each channel of a weight, so that only directions are trained.

    Every channel gets the same norm rho, the root mean square of the initial channel norms, so the
    Frobenius norm of the weight stays the same. Initialize the weight before and load a state dict
    after: an initializer applied later to ``module.weight`` in place has no effect, while assigning
    to it works (and keeps rho). The optimizer trains the direction v, whose norm has no effect:
    use no weight decay for it. A weight shared with another module is no longer shared: only this
    module's is bounded. rho has the weight's dtype, and is rounded when the module is cast.

    Args:
        module: contains the parameter; changed in place.
        name: the parameter's name.
        dim: the axis of the output channels: 0 for linear, convolution and embedding weights, 1
            for transposed convolutions; None for one norm of the whole tensor.

    Returns:
        The module.

    Raises:
        UserError: there is no such parameter, it is already parametrized, ``dim`` is not one of
            its axes, a channel has a single value, or a channel has no direction (zeros, or
            non-finite values; an embedding's padding row may be zeros and stays so).
    """
    weight = module._parameters.get(name)
    if parametrize.is_parametrized(module, name):
        raise UserError(f"{name!r} is already parametrized; remove that parametrization first")
    if weight is None or nn.parameter.is_lazy(weight):
        raise UserError(
            f"{type(module).__name__} has no parameter {name!r}, or it is not initialized"
        )
    dim = _checked_axis(weight, name, dim)
    if weight.device.type != "meta":
        _check_directions(module, weight, name, dim)
    parametrize.register_parametrization(module, name, BoundedWeight(weight, dim))
    return module


def _checked_axis(weight: Tensor, name: str, dim: int | None) -> int | None:
    """Return ``dim`` as a non-negative axis.

    Raises:
        UserError: there is no such axis, or channels along it have a single value.
    """
    axes = weight.dim()
    if dim is not None:
        if isinstance(dim, bool) or not isinstance(dim, int) or not -axes <= dim < axes:
            raise UserError(
                f"dim must be None or an axis of {name!r}, {-axes} to {axes - 1}, got {dim!r}"
            )
        dim %= axes
    size = math.prod(weight.shape[axis] for axis in _others(weight, dim))
    if size < 2 or weight.numel() == 0:
        raise UserError(
            f"{name!r} of shape {tuple(weight.shape)} has {size} values per channel with "
            f"dim={dim}; at least 2 are needed"
        )
    return dim


def _check_directions(module: nn.Module, weight: Tensor, name: str, dim: int | None) -> None:
    """Check that no channel is zeros (except a padding row) or has non-finite values."""
    if not weight.isfinite().all():
        raise UserError(f"{name!r} has non-finite values; initialize it first")
    zero = (weight == 0).all(dim=tuple(_others(weight, dim))).reshape(-1)
    zeros = set(zero.nonzero().flatten().tolist())
    if isinstance(module, nn.Embedding) and dim == 0:
        zeros -= {module.padding_idx}
    if zeros:
        which = "all of it" if dim is None else f"channel {min(zeros)} of axis {dim}"
        raise UserError(f"{name!r} is zero in {which}, which has no direction; initialize it first")


def remove_bounded_weight_norm(module: nn.Module, name: str = "weight") -> nn.Module:
    """Make the current weight a plain parameter again (the same object as before).

    Args:
        module: the module given to `bounded_weight_norm`; changed in place.
        name: the parameter's name.

    Returns:
        The module.

    Raises:
        UserError: the parameter has no bounded weight norm, or further parametrizations.
    """
    chain: list[nn.Module] = []
    if parametrize.is_parametrized(module, name):
        chain = list(cast(nn.ModuleDict, module.parametrizations)[name].children())
    if not any(isinstance(step, BoundedWeight) for step in chain):
        raise UserError(f"{name!r} of {type(module).__name__} has no bounded weight norm to remove")
    if len(chain) > 1:
        raise UserError(
            f"{name!r} has other parametrizations too, which would be removed as well; use "
            "torch.nn.utils.parametrize.remove_parametrizations to remove all"
        )
    # Copies of a parametrized module share one class made by torch, and removal deletes the
    # property from that class; so this module gets a class of its own first.
    shared = type(module)
    module.__class__ = type(shared.__name__, shared.__bases__, dict(shared.__dict__))
    parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    return module
