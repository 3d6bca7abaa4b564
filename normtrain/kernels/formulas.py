"""The norms as plain torch formulas, finite for every finite input.

Shapes: ``x`` is ``(..., d)``; per-row statistics and factors are ``(..., 1)``; weight and bias
are ``(d,)`` or ``(1,)``. Weight and bias come in the statistics dtype (see `stats_dtype`), and
results have the dtype of ``x``. These formulas are what `torch.compile`, function transforms and
double backward see; no step of them depends on a value on the host.

A square overflows float32 from 1.8e19 on, so rows are first multiplied by a constant (`factors`)
that is 1 for ordinary ones. The norms are blind to it, but for eps, which is scaled along where
it is not negligible.
"""

from __future__ import annotations

import contextlib
import math
from typing import NamedTuple

import torch
from torch import Tensor


class Limits(NamedTuple):
    """Where rows stop being ordinary in a statistics dtype.

    Attributes:
        big: rows whose largest magnitude exceeds this are shrunk to it.
        small: rows below this are enlarged, if eps allows them to matter.
        up: the factor for those.
        least: the smallest eps that counts; a smaller one is taken for this.
    """

    big: float
    small: float
    up: float
    least: float


_LIMITS = {
    torch.float32: Limits(2.0**30, 2.0**-40, 2.0**60, 2.0**-100),
    torch.float64: Limits(2.0**200, 2.0**-300, 2.0**400, 2.0**-700),
}
# how many times the statistic a feature may be before its row counts as lopsided
_FAR = 2.0**20


def stats_dtype(x: Tensor) -> torch.dtype:
    """The dtype statistics are computed in: float64 for float64 input, float32 otherwise."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def limits(x: Tensor) -> Limits:
    """The limits that hold for the statistics of `x`."""
    return _LIMITS[stats_dtype(x)]


def without_autocast(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Autocast would narrow the products in here or widen results, so it is switched off."""
    kind = x.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return contextlib.nullcontext()


def _largest(wide: Tensor) -> Tensor:
    return torch.linalg.vector_norm(wide.detach(), math.inf, dim=-1, keepdim=True)


def within_range(x: Tensor) -> Tensor:
    """The constant that brings a row into the range where its square and sums are finite.

    Args:
        x: ``(..., d)``.

    Returns:
        ``(..., 1)`` in the statistics dtype, without a gradient: 1 for ordinary rows, and 2^30
        over the largest magnitude where that exceeds 2^30 (2^200 for float64).
    """
    wide = x.detach().to(stats_dtype(x))
    largest, big = _largest(wide), limits(x).big
    return torch.where(largest > big, big / largest, 1.0)


def factors(
    wide: Tensor, eps: float, power: int, first: int | None = None
) -> tuple[Tensor, float | Tensor]:
    """The constant each row is multiplied by, and the eps that goes with it.

    Against a shrunk row eps is negligible and stays; it is scaled with a row that is enlarged.

    Args:
        wide: ``(..., d)`` in the statistics dtype.
        eps: added to the statistic, or its least value.
        power: of the row's scale that the statistic has: 2 where eps is under the root, else 1.
        first: how many leading features the statistic sees; all by default.

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
        # The features outside may be far larger than those the statistic is taken from, and its
        # gradient is a sum over all of them. Such rows are brought to the size of the output.
        unit = _largest(seen).clamp(floor, span.big**4).reciprocal()
        beyond = _largest(wide) * unit > _FAR
        factor = torch.where(beyond, unit, factor)
        scaled = torch.where(beyond, (eps * unit**power).clamp_min(span.least), scaled)
    return factor, scaled


def _power(eps_mode: str) -> int:
    return 2 if eps_mode == "inside" else 1


def _affine(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is not None:
        y = y * weight
    return y if bias is None else y + bias


def _root(square: Tensor) -> Tensor:
    """The square root with a zero (not infinite) slope at 0."""
    zero = square == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())


def _inverse(mean_square: Tensor, eps: float | Tensor, eps_mode: str) -> Tensor:
    """1/sqrt(m + eps), or 1/(sqrt(m) + eps) with a zero slope at m = 0."""
    if eps_mode == "inside":
        # The backward of rsqrt cubes it, which overflows where eps is small.
        return (mean_square + eps).sqrt().reciprocal()
    return 1.0 / (_root(mean_square) + eps)


def _partial_inverse(head: Tensor, eps: float | Tensor, eps_mode: str, factor: Tensor) -> Tensor:
    """`_inverse` of the mean square of some features, however small against the others."""
    if eps_mode == "outside":
        # The root's slope does not fall with the features, as the others' sum over the row would
        # make up for in full rows; so their square must not be lost.
        largest = _largest(head)
        unusual = (largest < limits(head).small) | (factor != 1.0)
        own = torch.where((largest > 0) & unusual, largest, 1.0)
        root = _root((head / own).square().mean(-1, keepdim=True)) * own
        return 1.0 / (root + eps)
    return _inverse(head.square().mean(-1, keepdim=True), eps, eps_mode)


def _anchor(wide: Tensor) -> Tensor:
    """A number of each row to subtract ahead of its mean, whose rounding a constant row would
    otherwise keep as a spread; shifting a row changes no norm that centres."""
    return wide[..., :1].detach()


def _centred(wide: Tensor) -> Tensor:
    wide = wide - _anchor(wide)
    return wide - wide.mean(-1, keepdim=True)


def plain_layer_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, eps_mode: str = "inside"
) -> Tensor:
    """LayerNorm of the last axis: (x - mean) / sqrt(population variance + eps) * weight + bias."""
    wide = x.to(stats_dtype(x))
    factor, scaled = factors(wide, eps, _power(eps_mode))
    wide = wide * factor
    centred = _centred(wide)
    scale = _inverse(centred.square().mean(-1, keepdim=True), scaled, eps_mode)
    return _affine(centred * scale, weight, bias).to(x.dtype)


def plain_detach_norm(x: Tensor, eps: float, eps_mode: str, detach: str) -> Tensor:
    """LayerNorm-simple with the mean, the deviation or both constant in the backward.

    Args:
        x: ``(..., d)``.
        eps: added to the variance or to its root.
        eps_mode: ``"inside"`` or ``"outside"``.
        detach: ``"mean"``, ``"std"`` or ``"both"``.

    Returns:
        ``(..., d)`` in the dtype of ``x``.
    """
    wide = x.to(stats_dtype(x))
    factor, scaled = factors(wide, eps, _power(eps_mode))
    wide = wide * factor
    wide = wide - _anchor(wide)
    mean = wide.mean(-1, keepdim=True)
    centred = wide - (mean if detach == "std" else mean.detach())
    scale = _inverse(centred.square().mean(-1, keepdim=True), scaled, eps_mode)
    return (centred * (scale if detach == "mean" else scale.detach())).to(x.dtype)


def plain_rms_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    first: int,
    eps_mode: str = "inside",
) -> Tensor:
    """x / sqrt(mean square of the first `first` features + eps) * weight + bias."""
    wide = x.to(stats_dtype(x))
    factor, scaled = factors(wide, eps, _power(eps_mode), first)
    wide = wide * factor
    if first < x.shape[-1]:
        scale = _partial_inverse(wide[..., :first], scaled, eps_mode, factor)
    else:
        scale = _inverse(wide.square().mean(-1, keepdim=True), scaled, eps_mode)
    return _affine(wide * scale, weight, bias).to(x.dtype)


def plain_crms_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, eps_mode: str = "inside"
) -> Tensor:
    """RMSNorm of d + 1 features that sum to zero, of which the last is not stored."""
    wide = x.to(stats_dtype(x))
    factor, scaled = factors(wide, eps, _power(eps_mode))
    wide = wide * factor
    dropped = wide.sum(-1, keepdim=True)
    square = (wide.square().sum(-1, keepdim=True) + dropped.square()) / (x.shape[-1] + 1)
    return _affine(wide * _inverse(square, scaled, eps_mode), weight, bias).to(x.dtype)


def plain_l2_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x / max(length of x, eps) * weight."""
    wide = x.to(stats_dtype(x))
    factor, scaled = factors(wide, eps, 1)
    wide = wide * factor
    length = _root(wide.square().sum(-1, keepdim=True)).clamp_min(scaled)
    return _affine(wide / length, weight, None).to(x.dtype)


def plain_lp_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    constant: float,
    k: int | None = None,
) -> Tensor:
    """(x - mean) / (constant * statistic + eps) * weight + bias, without any square.

    Args:
        x: ``(..., d)``.
        weight: gain ``(d,)`` or None.
        bias: offset ``(d,)`` or None.
        eps: added to the statistic.
        constant: what the statistic is multiplied by.
        k: the statistic is the mean of the k largest ``|x - mean|``; of all of them by default.

    Returns:
        ``(..., d)`` in the dtype of ``x``.
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


def plain_ada_norm(x: Tensor, eps: float, c: float, k: float, eps_mode: str = "inside") -> Tensor:
    """AdaNorm: c * (1 - k * y) * y with y = LayerNorm-simple(x) and the factor held constant."""
    y = plain_layer_norm(x.to(stats_dtype(x)), None, None, eps, eps_mode)
    return (c * (1.0 - k * y.detach()) * y).to(x.dtype)


def plain_squash(
    x: Tensor,
    alpha: Tensor,
    shift: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    curve: str,
) -> Tensor:
    """tanh or erf of alpha * x + shift, times weight plus bias; no row is too large for it."""
    inner = alpha * x.to(stats_dtype(x))
    if shift is not None:
        inner = inner + shift
    y = torch.tanh(inner) if curve == "tanh" else torch.erf(inner)
    return _affine(y, weight, bias).to(x.dtype)
