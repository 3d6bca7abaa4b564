"""Base class of the norms: checked arguments, ``weight`` and ``bias``, and the spec string."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from normtrain.errors import UserError
from normtrain.norms.registry import checked_dim
from normtrain.norms.spec import NormSpec, spec_of

EPS_MODES = ("inside", "outside")
LARGEST_EPS = 1e6
"""A larger eps would change the output for vectors that are scaled down to avoid overflow."""


def positive(name: str, value: float) -> float:
    """Return `value` as a float.

    Args:
        name: the option's name, for the message.
        value: a finite number > 0.

    Raises:
        UserError: the value is not a finite number > 0.
    """
    if number(name, value) <= 0:
        raise UserError(f"{name} must be > 0, got {value!r}")
    return float(value)


def not_negative(name: str, value: float) -> float:
    """Return `value` as a float.

    Args:
        name: the option's name, for the message.
        value: a finite number >= 0.

    Raises:
        UserError: the value is not a finite number >= 0.
    """
    if number(name, value) < 0:
        raise UserError(f"{name} must be >= 0, got {value!r}")
    return float(value)


def whole(name: str, value: int, least: int = 1) -> int:
    """Return `value`.

    Args:
        name: the option's name, for the message.
        value: a whole number >= `least`.
        least: the smallest value accepted.

    Raises:
        UserError: the value is not such a number.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return value


def number(name: str, value: float) -> float:
    """Return `value` as a float.

    Args:
        name: the option's name, for the message.
        value: a finite number.

    Raises:
        UserError: the value is not a finite number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{name} must be a finite number, got {value!r}")
    return float(value)


def one_of(name: str, value: str, known: Sequence[str]) -> str:
    """Return `value`.

    Args:
        name: the option's name, for the message.
        value: one of `known`.
        known: the accepted values, at least two.

    Raises:
        UserError: the value is not one of `known`.
    """
    if value not in known:
        words = ", ".join(map(repr, known[:-1]))
        raise UserError(f"{name} must be {words} or {known[-1]!r}, got {value!r}")
    return value


def flag(name: str, value: bool) -> bool:
    """Return `value`.

    Args:
        name: the option's name, for the message.
        value: True or False; other types are rejected, as the string "no" would be true.

    Raises:
        UserError: the value is not True or False.
    """
    if not isinstance(value, bool):
        raise UserError(f"{name} must be True or False, got {value!r}")
    return value


class NormBase(nn.Module):
    """Base class of the norms over the last axis: ``(..., dim)`` to the same shape and dtype.

    Each option of a registered norm is an attribute of the same name, from which `spec` and
    ``repr`` are made.

    Args:
        dim: size of the last axis, at least 1.
        eps: > 0, keeps the output for a vector of zeros finite; None for a norm without eps.
        eps_mode: ``"inside"`` adds eps under the square root, ``"outside"`` to the root; None for
            a norm without a square root.

    Raises:
        UserError: dim, eps or eps_mode is out of range.
    """

    eps: float
    eps_mode: str
    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, dim: int, eps: float | None = None, eps_mode: str | None = None) -> None:
        super().__init__()
        self.dim = checked_dim(dim)
        if eps is not None:
            self.eps = positive("eps", eps)
            if self.eps > LARGEST_EPS:
                raise UserError(f"eps must be at most {LARGEST_EPS:g}, got {eps!r}")
        if eps_mode is not None:
            self.eps_mode = one_of("eps_mode", eps_mode, EPS_MODES)
        self.register_parameter("weight", None)
        self.register_parameter("bias", None)

    @property
    def normalized_shape(self) -> tuple[int, ...]:
        """Sizes of the normalized axes, as in `torch.nn.LayerNorm`."""
        return (self.dim,)

    @property
    def spec(self) -> str:
        """Canonical spec string: `build_norm` makes an equal module of it."""
        return str(NormSpec(*spec_of(self)))

    def add_parameters(self, *, weight: bool, bias: bool, device: Any, dtype: Any) -> None:
        """Create ``weight`` (ones) and ``bias`` (zeros) of shape ``(dim,)``, then reset.

        Args:
            weight: whether to create ``weight``.
            bias: whether to create ``bias``.
            device: device of the parameters.
            dtype: dtype of the parameters.

        Raises:
            UserError: ``weight`` or ``bias`` is not True or False.
        """
        for name, wanted in (("weight", weight), ("bias", bias)):
            if flag("affine" if name == "weight" else name, wanted):
                data = torch.empty(self.dim, device=device, dtype=dtype)
                self.register_parameter(name, nn.Parameter(data))
        self.reset_parameters()

    def weight_and_bias(self) -> tuple[Tensor | None, Tensor | None]:
        """Return ``weight`` and ``bias``, five times faster than by attribute access."""
        own = self._parameters
        # A parametrized parameter is not in `_parameters`.
        if "weight" in own and "bias" in own:
            return own["weight"], own["bias"]
        return self.weight, self.bias

    def reset_parameters(self) -> None:
        """Set ``weight`` to ones and ``bias`` to zeros."""
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def check(self, x: Tensor) -> None:
        """Check the dtype and the last axis (a size of 1 would broadcast).

        Args:
            x: the input, ``(..., dim)``.

        Raises:
            ValueError: the input is not floating-point, or its last axis is not ``dim``.
        """
        if not x.is_floating_point():
            raise ValueError(f"{type(self).__name__} needs floating-point input, got {x.dtype}")
        if x.ndim == 0 or x.shape[-1] != self.dim:
            raise ValueError(
                f"{type(self).__name__}({self.dim}) needs inputs (..., {self.dim}), "
                f"got {tuple(x.shape)}"
            )

    def extra_repr(self) -> str:
        """Return the size and every option, for ``print(model)``."""
        _, options = spec_of(self)
        return ", ".join([str(self.dim), *(f"{key}={value}" for key, value in options.items())])
