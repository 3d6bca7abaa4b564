"""The norms as differentiable torch formulas, finite for every finite input.

Shapes: ``x`` is ``(..., d)``; statistics and factors per input vector are ``(..., 1)``; weight and
bias are ``(d,)`` or ``(1,)``, in the statistics dtype (see `stats_dtype`); results have the dtype
of ``x``. ``wide`` is x in the statistics dtype. `torch.compile`, function transforms and double
backward see these formulas; no step depends on a value on the host.

A square overflows float32 from 1.8e19 on, so input vectors are first multiplied by a constant
(`factors`) that is 1 for ordinary ones. The norms are invariant to it except for eps, which is
scaled too where it is not negligible.
"""

from __future__ import annotations

import contextlib
import math
from typing import NamedTuple

import torch
from torch import Tensor


class Limits(NamedTuple):
    """The magnitudes beyond which input vectors are scaled, for a statistics dtype.

    Attributes:
        big: a vector whose largest magnitude exceeds this is scaled down to it.
        small: a vector below this is scaled up, if eps is small enough for it to matter.
        up: the factor for those.
        least: the smallest effective eps; a smaller one is replaced by it.
    """

    big: float
    small: float
    up: float
    least: float


_LIMITS = {
    torch.float32: Limits(2.0**30, 2.0**-40, 2.0**60, 2.0**-100),
    torch.float64: Limits(2.0**200, 2.0**-300, 2.0**400, 2.0**-700),
}
# the ratio of a feature to the statistic above which a vector is scaled to its output's size
_FAR = 2.0**20


def stats_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of the statistics: float64 for float64 input, float32 otherwise."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def limits(x: Tensor) -> Limits:
    """Return the limits for the statistics of `x`."""
    return _LIMITS[stats_dtype(x)]


def without_autocast(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Disable autocast, which would change the dtype of products or results."""
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()


def _largest(wide: Tensor) -> Tensor:
    return torch.linalg.vector_norm(wide.detach(), math.inf, dim=-1, keepdim=True)


def within_range(x: Tensor) -> Tensor:
    """Return the constant that scales each vector so that its squares and sums are finite.

    Args:
        x: ``(..., d)``.

    Returns:
        ``(..., 1)`` in the statistics dtype, without a gradient: 1 for ordinary vectors, else 2^30
        over the largest magnitude if that exceeds 2^30 (2^200 for float64).
    """
    wide = x.detach().to(stats_dtype(x))
    largest, big = _largest(wide), limits(x).big
    return torch.where(largest > big, big / largest, 1.0)


def factors(
    wide: Tensor, eps: float, power: int, first: int | None = None
) -> tuple[Tensor, float | Tensor]:
    """Return the constant each vector is multiplied by, and the eps that goes with it.

    For a vector scaled down, eps is negligible and unchanged; it is scaled with a vector scaled up.

    Args:
        wide: ``(..., d)`` in the statistics dtype.
        eps: added to the statistic, or its smallest value.
        power: exponent of the vector's scale in the statistic: 2 if eps is under the root, else 1.
        first: number of leading features in the statistic; all by default.

    Returns:
        The factor ``(..., 1)``, and eps as a number or ``(..., 1)``.
    """
    span = limits(wide)
    eps = max(eps, span.least)
    partial = first is not None and first < wide.shape[-1]
    seen = wide[..., :first] if partial else wide
    factor = within_range(seen)
    scaled: float | Tensor = eps
    floor = eps ** (1 / power)
    if floor < span.small:
        tiny = _largest(seen).clamp_min(floor) < span.small
        enlarge = torch.where(tiny, span.up, torch.ones_like(factor))
        factor, scaled = factor * enlarge, scaled * enlarge**power
    if partial:
        # Features outside the statistic may be far larger than those in it, and its gradient is a
        # sum over all of them. Such vectors are scaled to the size of the output.
        unit = _largest(seen).clamp(floor, span.big**4).reciprocal()
        beyond = _largest(wide) * unit > _FAR
        factor = torch.where(beyond, unit, factor)
        scaled = torch.where(beyond, (eps * unit**power).clamp_min(span.least), scaled)
    return factor, scaled


def _in_range(
    x: Tensor, eps: float, power: int, first: int | None = None
) -> tuple[Tensor, float | Tensor, Tensor]:
    """Return x in the statistics dtype times its factor, eps, and the factor (see `factors`)."""
    wide = x.to(stats_dtype(x))
    factor, scaled = factors(wide, eps, power, first)
    return wide * factor, scaled, factor


def _power(eps_mode: str) -> int:
    return 2 if eps_mode == "inside" else 1


def _affine(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is not None:
        y = y * weight
    return y if bias is None else y + bias


def _root(square: Tensor) -> Tensor:
    """Return the square root with a zero (not infinite) slope at 0."""
    zero = square == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())


def _inverse(mean_square: Tensor, eps: float | Tensor, eps_mode: str) -> Tensor:
    """Return 1/sqrt(m + eps), or 1/(sqrt(m) + eps) with a zero slope at m = 0."""
    if eps_mode == "inside":
        # the backward of rsqrt cubes its result, which overflows if eps is small
        return (mean_square + eps).sqrt().reciprocal()
    return 1.0 / (_root(mean_square) + eps)


def _partial_inverse(head: Tensor, eps: float | Tensor, eps_mode: str, factor: Tensor) -> Tensor:
    """Return `_inverse` of the mean square of some features, which may be relatively tiny."""
    if eps_mode == "outside":
        # The root's slope does not decrease with these features, and the other features' terms do
        # not compensate as in a full statistic; so their square must not underflow.
        largest = _largest(head)
        unusual = (largest < limits(head).small) | (factor != 1.0)
        own = torch.where((largest > 0) & unusual, largest, 1.0)
        root = _root((head / own).square().mean(-1, keepdim=True)) * own
        return 1.0 / (root + eps)
    return _inverse(head.square().mean(-1, keepdim=True), eps, eps_mode)


def _anchor(wide: Tensor) -> Tensor:
    """Return a number per vector to subtract before its mean, which no centred norm depends on.

    Otherwise the rounding error of a constant vector's mean would look like a deviation.
    """
    return wide[..., :1].detach()


def _centred(wide: Tensor) -> Tensor:
    wide = wide - _anchor(wide)
    return wide - wide.mean(-1, keepdim=True)


def layer_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, eps_mode: str = "inside"
) -> Tensor:
    """Compute LayerNorm: (x - mean) / sqrt(population variance + eps) * weight + bias."""
    wide, scaled, _ = _in_range(x, eps, _power(eps_mode))
    centred = _centred(wide)
    scale = _inverse(centred.square().mean(-1, keepdim=True), scaled, eps_mode)
    return _affine(centred * scale, weight, bias).to(x.dtype)


def detach_norm(x: Tensor, eps: float, eps_mode: str, detach: str) -> Tensor:
    """Compute LayerNorm-simple with its mean, its deviation or both constant in the backward."""
    wide, scaled, _ = _in_range(x, eps, _power(eps_mode))
    wide = wide - _anchor(wide)
    mean = wide.mean(-1, keepdim=True)
    centred = wide - (mean if detach == "std" else mean.detach())
    scale = _inverse(centred.square().mean(-1, keepdim=True), scaled, eps_mode)
    return (centred * (scale if detach == "mean" else scale.detach())).to(x.dtype)


def rms_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    first: int,
    eps_mode: str = "inside",
) -> Tensor:
    """Compute x / sqrt(mean square of the first `first` features + eps) * weight + bias."""
    wide, scaled, factor = _in_range(x, eps, _power(eps_mode), first)
    if first < x.shape[-1]:
        scale = _partial_inverse(wide[..., :first], scaled, eps_mode, factor)
    else:
        scale = _inverse(wide.square().mean(-1, keepdim=True), scaled, eps_mode)
    return _affine(wide * scale, weight, bias).to(x.dtype)


def crms_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, eps_mode: str = "inside"
) -> Tensor:
    """Compute RMSNorm of d + 1 features that sum to zero, of which the last is not stored."""
    wide, scaled, _ = _in_range(x, eps, _power(eps_mode))
    dropped = wide.sum(-1, keepdim=True)
    square = (wide.square().sum(-1, keepdim=True) + dropped.square()) / (x.shape[-1] + 1)
    return _affine(wide * _inverse(square, scaled, eps_mode), weight, bias).to(x.dtype)


def l2_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Compute x / max(length of x, eps) * weight."""
    wide, scaled, _ = _in_range(x, eps, 1)
    length = _root(wide.square().sum(-1, keepdim=True)).clamp_min(scaled)
    return _affine(wide / length, weight, None).to(x.dtype)


def lp_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    constant: float,
    k: int | None = None,
) -> Tensor:
    """Compute (x - mean) / (constant * statistic + eps) * weight + bias, without squares.

    The statistic is the mean of the k largest ``|x - mean|``; of all if k is None.
    """
    wide = x.to(stats_dtype(x))
    wide = wide * within_range(wide)
    centred = _centred(wide)
    size = centred.abs()
    if k is None:
        statistic = size.mean(-1, keepdim=True)
    elif k == 1:
        statistic = size.amax(-1, keepdim=True)
    else:
        statistic = size.topk(k, dim=-1, sorted=False).values.mean(-1, keepdim=True)
    y = centred / (constant * statistic + max(eps, limits(x).least))
    return _affine(y, weight, bias).to(x.dtype)


def ada_norm(x: Tensor, eps: float, c: float, k: float, eps_mode: str = "inside") -> Tensor:
    """Compute AdaNorm: c * (1 - k * y) * y with y = LayerNorm-simple(x), factor constant."""
    y = layer_norm(x.to(stats_dtype(x)), None, None, eps, eps_mode)
    return (c * (1.0 - k * y.detach()) * y).to(x.dtype)


def squash(
    x: Tensor,
    alpha: Tensor,
    shift: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    curve: str,
) -> Tensor:
    """Compute curve(alpha * x + shift) * weight + bias with the curve tanh or erf."""
    inner = alpha * x.to(stats_dtype(x))
    if shift is not None:
        inner = inner + shift
    y = torch.tanh(inner) if curve == "tanh" else torch.erf(inner)
    return _affine(y, weight, bias).to(x.dtype)
