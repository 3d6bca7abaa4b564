"""Choose the implementation of each norm operation.

Norm modules call an operation here and do not know what runs it. A user requests a backend by
`normtrain.kernels.choice`.

No operation returns NaN or Inf, forward or backward, for a finite input whose exact result its
dtype can hold. The formulas and the fused kernels scale out-of-range input vectors themselves.
PyTorch's kernels are checked afterwards by the statistics they return (on a CPU, where reading one
number per vector is cheap) or get input already in range (on a GPU, where reading a value would
stall the device).
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from normtrain.kernels import aten, formulas, fused
from normtrain.kernels.backend import DTYPES, Backend
from normtrain.kernels.choice import current
from normtrain.kernels.table import DETACH, KINDS, Scalars

_MIN_EPS = {kind: row.min_eps for kind, row in KINDS.items()}
_scalars = functools.lru_cache(maxsize=256)(Scalars)
_MODES = torch._C._TorchDispatchModeKey
_transforms_active, _tracing = torch._C._are_functorch_transforms_active, torch._C._is_tracing
_ORDINARY = (Tensor, nn.Parameter)


def needs_plain_ops(x: Tensor) -> bool:
    """Return whether a compiler, transform, tracer or tensor subclass has to see torch operations.

    An opaque function would also keep `torch.compile` from fusing the norm with its neighbours.
    """
    return (
        torch.compiler.is_compiling()
        or type(x) not in _ORDINARY
        or x.is_meta
        or _transforms_active()
        or forward_ad._current_level >= 0
        or _tracing()
    )


def _is_fake() -> bool:
    """Return whether tensors are fake, or symbols of a graph being traced."""
    modes = (_MODES.FAKE, _MODES.PROXY, _MODES.FUNCTIONAL)
    return fused.modes_active() > 0 and any(
        torch._C._get_dispatch_mode(mode) is not None for mode in modes
    )


def _supported(p: Tensor | None, x: Tensor) -> bool:
    """Return whether the fused kernels take a parameter."""
    return p is None or (
        type(p) in _ORDINARY
        and (p.is_cpu if x.is_cpu else p.device == x.device)
        and p.dtype in DTYPES
        and p.is_contiguous()
    )


def fused_backend(
    x: Tensor,
    kind: str,
    eps: float,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    alpha: Tensor | None = None,
) -> Backend | None:
    """Return the backend whose fused kernels run a norm, or None if none does.

    Args:
        x: input ``(..., d)``.
        kind: key of `KINDS`.
        eps: see `FusedNorm.min_eps`.
        weight: gain or None.
        bias: offset or None.
        alpha: slope or None.
    """
    choice = current()
    found = choice.cpu if x.is_cpu else choice.gpu
    if found is None or needs_plain_ops(x) or eps < _MIN_EPS[kind] or not found.serves(x):
        return None
    # PyTorch's own kernel gives results bitwise identical to torch.nn.LayerNorm
    if weight is not None and kind == "layer" and choice.requested == "auto":
        return None
    if _is_fake() or found.name not in KINDS[kind].saved:
        return None
    if not (_supported(weight, x) and _supported(bias, x) and _supported(alpha, x)):
        return None
    return found if x.shape[-1] else None


def _use_aten(x: Tensor, eps_mode: str, eps: float, first: int | None = None) -> bool:
    """Return whether an implementation of PyTorch operations runs instead of the formula."""
    return (
        current().requested != "plain"
        and eps_mode == "inside"
        and not (needs_plain_ops(x) or _is_fake())
        and eps >= formulas.limits(x).small ** 2
        and (x.is_cpu or first in (None, x.shape[-1]))
    )


def _needs_graph(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _to_stats_dtype(x: Tensor, parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.to(formulas.stats_dtype(x))


def fused_norm(
    x: Tensor,
    kind: str,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    alpha: Tensor | None = None,
    *,
    eps: float = 0.0,
    count: int = 0,
    a: float = 0.0,
    b: float = 0.0,
) -> Tensor:
    """Run a norm of the table by a fused kernel, or by its formula where no kernel can run.

    Args:
        x: input ``(..., d)``.
        kind: key of `normtrain.kernels.table.KINDS`.
        weight: gain ``(d,)`` or None; ``(1,)`` is supported by l2.
        bias: offset ``(d,)`` or None.
        alpha: slope ``(1,)`` of tanh.
        eps: as in `Scalars`, and so on for the others.
        count: as in `Scalars`.
        a: as in `Scalars`.
        b: as in `Scalars`.

    Returns:
        ``(..., d)`` in the dtype of ``x``, whatever the autocast state and parameter dtypes.
    """
    if backend := fused_backend(x, kind, eps, weight, bias, alpha):
        return fused.run(backend, kind, x, (weight, bias, alpha), _scalars(eps, count, a, b))
    with formulas.without_autocast(x):
        return fused.apply_formula(kind, x, (weight, bias, alpha), Scalars(eps, count, a, b))


def layer_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, eps_mode: str = "inside"
) -> Tensor:
    """Apply LayerNorm to the last axis.

    Args:
        x: input ``(..., d)``.
        weight: gain ``(d,)`` or None.
        bias: offset ``(d,)`` or None.
        eps: added to the variance (inside) or to the standard deviation (outside).
        eps_mode: ``"inside"`` or ``"outside"``.

    Returns:
        ``(..., d)`` in the dtype of ``x``, whatever the autocast state and parameter dtypes.
    """
    if eps_mode == "inside" and (backend := fused_backend(x, "layer", eps, weight, bias)):
        return fused.run(backend, "layer", x, (weight, bias, None), _scalars(eps))
    with formulas.without_autocast(x):
        weight, bias = _to_stats_dtype(x, weight), _to_stats_dtype(x, bias)
        y = aten.layer_norm(x, weight, bias, eps) if _use_aten(x, eps_mode, eps) else None
        return formulas.layer_norm(x, weight, bias, eps, eps_mode) if y is None else y


def rms_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    eps_mode: str = "inside",
    first: int | None = None,
) -> Tensor:
    """Apply RMSNorm to the last axis, or pRMSNorm with the statistic of the leading features.

    Args:
        x: input ``(..., d)``.
        weight: gain ``(d,)`` or None.
        bias: offset ``(d,)`` or None.
        eps: added to the mean square (inside) or to its root (outside).
        eps_mode: ``"inside"`` or ``"outside"``.
        first: number of leading features in the mean square; all by default.

    Returns:
        ``(..., d)`` in the dtype of ``x``, whatever the autocast state and parameter dtypes.
    """
    first = x.shape[-1] if first is None else first
    if eps_mode == "inside" and (backend := fused_backend(x, "rms", eps, weight, bias)):
        return fused.run(backend, "rms", x, (weight, bias, None), _scalars(eps, first))
    with formulas.without_autocast(x):
        weight, bias = _to_stats_dtype(x, weight), _to_stats_dtype(x, bias)
        if _use_aten(x, eps_mode, eps, first):
            near = aten.scaled_into_range(x)
            wide, rstd = aten.rms_statistic(near, eps, first)
            if aten.in_range(near, rstd):
                if _needs_graph(x, weight, bias):
                    return aten.RMSNormFunction.apply(near, weight, bias, wide, rstd, eps, first)
                return aten.rms_output(wide, rstd, weight, bias, x.dtype)
        return formulas.rms_norm(x, weight, bias, eps, first, eps_mode)


def ada_norm(x: Tensor, eps: float, c: float, k: float, eps_mode: str = "inside") -> Tensor:
    """Apply AdaNorm: ``c * (1 - k * y) * y``, y = LayerNorm-simple(x), the factor detached.

    Args:
        x: input ``(..., d)``.
        eps: added to the variance (inside) or to the standard deviation (outside).
        c: scale, not 0.
        k: slope of the factor.
        eps_mode: ``"inside"`` or ``"outside"``.

    Returns:
        ``(..., d)`` in the dtype of ``x``.
    """
    if eps_mode == "inside" and (backend := fused_backend(x, "ada", eps)):
        return fused.run(backend, "ada", x, (None, None, None), _scalars(eps, 0, c, k))
    with formulas.without_autocast(x):
        if _use_aten(x, eps_mode, eps):
            near = aten.scaled_into_range(x)
            scaled, mean, rstd = aten.ada_statistics(near, eps, c)
            if aten.in_range(near, rstd, mean, eps**-0.5):
                if _needs_graph(x):
                    return aten.AdaNormFunction.apply(near, scaled, mean, rstd, eps, c, k)
                return aten.ada_output(scaled, c, k, x.dtype)
        return formulas.ada_norm(x, eps, c, k, eps_mode)


def detach_norm(x: Tensor, eps: float, eps_mode: str, detach: str) -> Tensor:
    """Apply LayerNorm-simple with the mean, the deviation or both constant in the backward.

    Args:
        x: input ``(..., d)``.
        eps: added to the variance (inside) or to the standard deviation (outside).
        eps_mode: ``"inside"`` or ``"outside"``.
        detach: ``"mean"``, ``"std"`` or ``"both"``.

    Returns:
        ``(..., d)`` in the dtype of ``x``.
    """
    if eps_mode == "inside":
        return fused_norm(x, "detach", eps=eps, count=DETACH.index(detach))
    with formulas.without_autocast(x):
        return formulas.detach_norm(x, eps, eps_mode, detach)


def crms_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, eps_mode: str = "inside"
) -> Tensor:
    """Apply RMSNorm to vectors of sum zero stored without their last feature.

    Args:
        x: input ``(..., d)``, the first d of d + 1 features; the last is minus their sum.
        weight: gain ``(d,)`` or None.
        bias: offset ``(d,)`` or None.
        eps: added to the mean square of the d + 1 features (inside) or to its root (outside).
        eps_mode: ``"inside"`` or ``"outside"``.

    Returns:
        ``(..., d)`` in the dtype of ``x``.
    """
    if eps_mode == "inside":
        return fused_norm(x, "crms", weight, bias, eps=eps)
    with formulas.without_autocast(x):
        weight, bias = _to_stats_dtype(x, weight), _to_stats_dtype(x, bias)
        return formulas.crms_norm(x, weight, bias, eps, eps_mode)


def l2_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Compute ``x / max(length of x, eps) * weight`` over the last axis.

    Args:
        x: input ``(..., d)``.
        weight: gain ``(1,)`` or ``(d,)``, or None.
        eps: the smallest divisor.

    Returns:
        ``(..., d)`` in the dtype of ``x``.
    """
    return fused_norm(x, "l2", weight, eps=eps)


def lp_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    constant: float,
    k: int | None = None,
) -> Tensor:
    """Compute ``(x - mean) / (constant * statistic + eps) * weight + bias`` over the last axis.

    Args:
        x: input ``(..., d)``.
        weight: gain ``(d,)`` or None.
        bias: offset ``(d,)`` or None.
        eps: added to the scaled statistic.
        constant: factor of the statistic.
        k: the statistic is the mean of the k largest ``|x - mean|``; of all by default.

    Returns:
        ``(..., d)`` in the dtype of ``x``.
    """
    if k is None:
        return fused_norm(x, "l1", weight, bias, eps=eps, a=constant)
    with formulas.without_autocast(x):
        weight, bias = _to_stats_dtype(x, weight), _to_stats_dtype(x, bias)
        return formulas.lp_norm(x, weight, bias, eps, constant, k)


def squash(
    x: Tensor,
    alpha: Tensor,
    shift: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    curve: str,
) -> Tensor:
    """Compute ``curve(alpha * x + shift) * weight + bias``, an S-shaped curve instead of a norm.

    Args:
        x: input ``(..., d)``.
        alpha: slope ``(1,)``.
        shift: offset of the argument ``(1,)`` or None.
        weight: gain ``(d,)`` or None.
        bias: offset ``(d,)`` or None.
        curve: ``"tanh"`` or ``"erf"``.

    Returns:
        ``(..., d)`` in the dtype of ``x``.
    """
    if curve == "tanh" and shift is None:
        return fused_norm(x, "tanh", weight, bias, alpha)
    with formulas.without_autocast(x):
        alpha, shift = alpha.to(formulas.stats_dtype(x)), _to_stats_dtype(x, shift)
        weight, bias = _to_stats_dtype(x, weight), _to_stats_dtype(x, bias)
        return formulas.squash(x, alpha, shift, weight, bias, curve)
