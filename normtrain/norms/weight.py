"""Bounded weight normalization: weights of a fixed norm, of which only the direction is learned.

Hoffer, Banner, Golan, Soudry 2018, Norm matters, arXiv:1803.01814:
w_i = rho * v_i / ||v_i||, with one constant rho a layer, its initial norm. Unlike weight
normalization (Salimans, Kingma 2016) no length is learned, so weights can neither grow nor
shrink. (The authors' `bwn.py` keeps a learned gain a channel and bounds only the gains' norm; this
is the paper's form.)
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
    """The Euclidean norm of each slice along an axis, for values of any finite size.

    Args:
        w: any shape.
        dim: the axis of the channels; None takes the whole tensor as one.

    Returns:
        ``w``'s shape with 1 in every axis but ``dim``, float32 (float64 for float64).
    """
    direction, peak = _scaled(w, dim)
    return torch.linalg.vector_norm(direction, dim=_others(w, dim), keepdim=True) * peak


def _others(w: Tensor, dim: int | None) -> list[int]:
    return [axis for axis in range(w.dim()) if axis != dim]


def _scaled(w: Tensor, dim: int | None) -> tuple[Tensor, Tensor]:
    """Each channel divided by its largest magnitude (1 for zeros), and that; squares then fit."""
    wide = w.to(stats_dtype(w))
    peak = wide.detach().abs().amax(_others(w, dim), keepdim=True)
    peak = torch.where(peak == 0, 1.0, peak)
    return wide / peak, peak


class BoundedWeight(nn.Module):
    """The parametrization behind `bounded_weight_norm`: v to rho * v / ||v||.

    A channel of zeros stays one; the gradient that reaches it is that of a channel of norm 1.

    Args:
        weight: the initial weight; rho becomes the root mean square of its nonzero channel norms,
            so that the whole keeps its norm.
        dim: the axis of the channels, not negative; None takes the whole tensor as one.

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
        """The weight of direction ``v``; same shape and dtype."""
        direction, _ = _scaled(v, self.dim)
        norm = torch.linalg.vector_norm(direction, dim=_others(v, self.dim), keepdim=True)
        norm = torch.where(norm == 0, 1.0, norm)
        return (direction / norm * self.rho).to(v.dtype)

    def right_inverse(self, w: Tensor) -> Tensor:
        """A direction of the weight: itself. Its norm is not kept where it is not rho."""
        return w

    def extra_repr(self) -> str:
        """The axis, for ``print(model)``."""
        return f"dim={self.dim}"


def bounded_weight_norm(module: nn.Module, name: str = "weight", dim: int | None = 0) -> nn.Module:
    """Fix the norm of each channel of a weight for good: only directions train.

    Every channel gets the same norm rho, the root mean square of the initial channel norms; so
    the weight's own (Frobenius) norm stays what it was. Initialise before, and load a state dict
    after: an initialiser run later on ``module.weight`` in place changes nothing, but assigning
    to it works (and keeps rho). An optimizer sees the direction v, whose norm has no effect:
    give it no weight decay. A weight that another module shares stops being shared: only this
    module's is bounded. rho has the weight's dtype, and is rounded when the module is cast.

    Args:
        module: holds the parameter; changed in place.
        name: the parameter's name.
        dim: the axis of the output channels: 0 for linear, convolution and embedding weights, 1
            for transposed convolutions; None for one norm of the whole tensor.

    Returns:
        The module.

    Raises:
        UserError: there is no such parameter, it is parametrized already, ``dim`` is not one of
            its axes, a channel is a single number, or a channel has no direction (zeros or not
            finite; an embedding's padding row may be zeros and stays so).
    """
    weight = module._parameters.get(name)
    if parametrize.is_parametrized(module, name):
        raise UserError(f"{name!r} is parametrized already; remove that first")
    if weight is None or nn.parameter.is_lazy(weight):
        raise UserError(f"{type(module).__name__} has no parameter {name!r} with values")
    dim = _checked_axis(weight, name, dim)
    if weight.device.type != "meta":
        _check_directions(module, weight, name, dim)
    parametrize.register_parametrization(module, name, BoundedWeight(weight, dim))
    return module


def _checked_axis(weight: Tensor, name: str, dim: int | None) -> int | None:
    """``dim``, not negative.

    Raises:
        UserError: it is not an axis, or leaves channels of one number.
    """
    axes = weight.dim()
    if dim is not None:
        if isinstance(dim, bool) or not isinstance(dim, int) or not -axes <= dim < axes:
            raise UserError(
                f"dim must be None or an axis of {name!r}, {-axes} to {axes - 1}, not {dim!r}"
            )
        dim %= axes
    size = math.prod(weight.shape[axis] for axis in _others(weight, dim))
    if size < 2 or weight.numel() == 0:
        raise UserError(
            f"{name!r} of shape {tuple(weight.shape)} has {size} numbers a channel with dim={dim}; "
            "a direction needs at least 2"
        )
    return dim


def _check_directions(module: nn.Module, weight: Tensor, name: str, dim: int | None) -> None:
    """Refuse a weight with a channel that is zeros (but for a padding row) or not finite."""
    if not weight.isfinite().all():
        raise UserError(f"{name!r} has values that are not finite; initialise it first")
    zero = (weight == 0).all(dim=tuple(_others(weight, dim))).reshape(-1)
    zeros = set(zero.nonzero().flatten().tolist())
    if isinstance(module, nn.Embedding) and dim == 0:
        zeros -= {module.padding_idx}
    if zeros:
        which = "all of it" if dim is None else f"channel {min(zeros)} of axis {dim}"
        raise UserError(f"{name!r} is zero in {which}, which has no direction; initialise it first")


def remove_bounded_weight_norm(module: nn.Module, name: str = "weight") -> nn.Module:
    """Make the weight as it is now a plain parameter again (the same object as before).

    Args:
        module: what `bounded_weight_norm` was given; changed in place.
        name: the parameter's name.

    Returns:
        The module.

    Raises:
        UserError: the parameter has no bounded norm, or has other parametrizations too.
    """
    chain: list[nn.Module] = []
    if parametrize.is_parametrized(module, name):
        chain = list(cast(nn.ModuleDict, module.parametrizations)[name].children())
    if not any(isinstance(step, BoundedWeight) for step in chain):
        raise UserError(f"{name!r} of {type(module).__name__} has no bounded weight norm to remove")
    if len(chain) > 1:
        raise UserError(
            f"{name!r} has other parametrizations too, which would go as well; "
            "torch.nn.utils.parametrize.remove_parametrizations removes all"
        )
    # Copies of a parametrized module share one class that torch made for them, and removing takes
    # the property off that class; so this module gets one of its own first.
    shared = type(module)
    module.__class__ = type(shared.__name__, shared.__bases__, dict(shared.__dict__))
    parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    return module
