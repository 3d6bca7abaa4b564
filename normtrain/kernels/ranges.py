"""Whether rows are in the range that PyTorch's kernels hold for, and bringing them there."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from normtrain.kernels import formulas


def brought_into_range(x: Tensor) -> Tensor:
    """``x`` itself on the CPU, where rows are looked at afterwards; elsewhere its rows in range."""
    # the squares of float16 cannot leave float32
    if x.is_cpu or x.dtype == torch.float16:
        return x
    return (x * formulas.within_range(x)).to(x.dtype)


def in_range(x: Tensor, rstd: Tensor, mean: Tensor | None = None, most: float = math.inf) -> bool:
    """Whether the fast operations hold for rows on the CPU, from their 1/sigma and mean.

    A row may be too large (its 1/sigma is tiny, 0 or NaN), or so far from zero for its spread that
    `x * rstd - mean * rstd` has lost its digits.

    Args:
        x: the input; elsewhere than on the CPU it has been brought into range.
        rstd: 1/sigma or 1/RMS of each row.
        mean: of each row, where the operation subtracts it.
        most: a bound of 1/sigma, which spares multiplying where the mean is small.
    """
    if not x.is_cpu or rstd.numel() == 0:
        return True
    if not rstd.min().item() > 1 / formulas.limits(x).big:
        return False
    if mean is None:
        return True
    bound = 1 / (16 * torch.finfo(rstd.dtype).eps)
    return _within(mean, bound / most) or _within(mean * rstd, bound)


def _within(t: Tensor, bound: float) -> bool:
    low, high = torch.aminmax(t)
    return -bound < low.item() and high.item() < bound
