"""What the normalizers of this package share: checked sizes, eps, and their own spec string."""

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
"""A larger eps would count against rows so large that they are brought into range first."""


def positive(name: str, value: float) -> float:
    """Return `value` as a float.

    Raises:
        UserError: it is not a finite number above 0.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{name} must be a number above 0, not {value!r}")
    if not (math.isfinite(value) and value > 0):
        raise UserError(f"{name} must be above 0, not {value!r}")
    return float(value)


def number(name: str, value: float) -> float:
    """Return `value` as a float.

    Raises:
        UserError: it is not a finite number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{name} must be a finite number, not {value!r}")
    return float(value)


def one_of(name: str, value: str, known: Sequence[str]) -> str:
    """Return `value` if it is among the known words.

    Raises:
        UserError: it is not.
    """
    if value not in known:
        words = ", ".join(map(repr, known[:-1]))
        raise UserError(f"{name} must be {words} or {known[-1]!r}, not {value!r}")
    return value


def flag(name: str, value: bool) -> bool:
    """Return `value`.

    Raises:
        UserError: it is not True or False; "no" would count as true.
    """
    if not isinstance(value, bool):
        raise UserError(f"{name} must be True or False, not {value!r}")
    return value


class NormBase(nn.Module):
    """A normalizer of the last axis: ``(..., dim)`` to the same shape and dtype.

    Args:
        dim: size of the last axis, at least 1.
        eps: what keeps a row of zeros finite, above 0; None for a norm that needs none.
        eps_mode: ``"inside"`` adds eps under the square root, ``"outside"`` to the root; None for
            a norm without such a root.

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
                raise UserError(f"eps must be at most {LARGEST_EPS:g}, not {eps!r}")
        if eps_mode is not None:
            self.eps_mode = one_of("eps_mode", eps_mode, EPS_MODES)
        self.register_parameter("weight", None)
        self.register_parameter("bias", None)

    @property
    def normalized_shape(self) -> tuple[int, ...]:
        """The normalised axes' sizes, as `torch.nn.LayerNorm` reports them."""
        return (self.dim,)

    @property
    def spec(self) -> str:
        """The canonical spec string that builds this module again: plain, fit for checkpoints."""
        return str(NormSpec(*spec_of(self)))

    def add_parameters(self, *, weight: bool, bias: bool, device: Any, dtype: Any) -> None:
        """Create ``weight`` (ones) and ``bias`` (zeros) of shape ``(dim,)`` where asked for."""
        for name, wanted in (("weight", weight), ("bias", bias)):
            if flag("affine" if name == "weight" else name, wanted):
                data = torch.empty(self.dim, device=device, dtype=dtype)
                self.register_parameter(name, nn.Parameter(data))
        self.reset_parameters()

    def weight_and_bias(self) -> tuple[Tensor | None, Tensor | None]:
        """Both, in a fifth of the time that two look-ups by `torch.nn.Module` take."""
        own = self._parameters
        # a parametrization keeps them elsewhere
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
        """Refuse integers, and a last axis that is not ``dim`` (a size of 1 would broadcast).

        Raises:
            ValueError: it is one of these.
        """
        if not x.is_floating_point():
            raise ValueError(f"{type(self).__name__} needs floating-point input, not {x.dtype}")
        if x.ndim == 0 or x.shape[-1] != self.dim:
            raise ValueError(
                f"{type(self).__name__}({self.dim}) needs inputs (..., {self.dim}), "
                f"not {tuple(x.shape)}"
            )

    def extra_repr(self) -> str:
        """The size and every option, for ``print(model)``."""
        _, options = spec_of(self)
        return ", ".join([str(self.dim), *(f"{key}={value}" for key, value in options.items())])
