"""The one place where the implementation of a norm operation is chosen.

Every norm module calls an operation here and knows nothing of what runs. `chosen` names the
choice, so that benchmarks and ``norms show`` can print it; what a user asks for is in
`normtrain.kernels.choice`.

No operation returns NaN or infinity, forward or backward, for a finite input whose exact result
its dtype can hold. The plain formulas and the fused kernels bring every row into range themselves.
PyTorch's kernels are checked by the statistics they give (on the CPU, where that costs a look at
one number a row) or get rows already in range (elsewhere, where a look would stall the device).
"""

from __future__ import annotations

import functools
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from normtrain.kernels import formulas, fused, reference
from normtrain.kernels.choice import current
from normtrain.kernels.ranges import brought_into_range, in_range
from normtrain.kernels.rows import DETACH, Numbers, smallest_eps

_FAST = {"layer_norm": "aten", "rms_norm": "function", "ada_norm": "function"}

# the kind of fused kernel that an operation has; others have none
_FUSED = {
    "layer_norm": "layer",
    "detach_norm": "detach",
    "rms_norm": "rms",
    "ada_norm": "ada",
    "crms_norm": "crms",
    "l2_norm": "l2",
    "lp_norm": "l1",
    "squash": "tanh",
}
_LEAST = {op: smallest_eps(kind) for op, kind in _FUSED.items()}
_numbers = functools.lru_cache(maxsize=256)(Numbers)
_MODES = torch._C._TorchDispatchModeKey
_transforms_active, _tracing = torch._C._are_functorch_transforms_active, torch._C._is_tracing


# how many of them there are
_watched = torch._C._len_torch_dispatch_stack

_ORDINARY = (Tensor, nn.Parameter)


def interpreted(x: Tensor) -> bool:
    """Whether someone else interprets the calls: then the formulas are what he can work on."""
    # An opaque function would keep the compiler from fusing; it does better with the formula.
    return (
        torch.compiler.is_compiling()
        or type(x) not in _ORDINARY
        or x.is_meta
        or _transforms_active()
        or forward_ad._current_level >= 0
        or _tracing()
    )


def _faked() -> bool:
    """Whether tensors stand for others (fake ones, symbols of a graph being traced)."""
    modes = (_MODES.FAKE, _MODES.PROXY, _MODES.FUNCTIONAL)
    return any(torch._C._get_dispatch_mode(mode) is not None for mode in modes)


def _transformed(x: Tensor) -> bool:
    """Whether nothing may look at values."""
    return interpreted(x) or (_watched() > 0 and _faked())


def _fits(p: Tensor, x: Tensor, backend: ModuleType) -> bool:
    """Whether a backend's kernels take a parameter."""
    return (
        type(p) in _ORDINARY
        and (p.is_cpu if x.is_cpu else p.device == x.device)
        and p.dtype in backend.DTYPES
        and p.is_contiguous()
    )


def fused_backend(
    x: Tensor,
    op: str,
    eps: float,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    alpha: Tensor | None = None,
) -> ModuleType | None:
    """The fused kernels that run an operation; None where others do.

    Args:
        x: the input; its type, dtype and device decide.
        op: the operation's name in this module.
        eps: too small a one is left to the formulas.
        weight: the gain, and so on; what is not there is None.
        bias: see there.
        alpha: see there.
    """
    choice, on_cpu = current(), x.is_cpu
    found = choice.cpu if on_cpu else choice.gpu
    if found is None or interpreted(x) or eps < _LEAST[op] or not found.serves(x):
        return None
    # PyTorch's own kernel keeps the bits of torch.nn.LayerNorm
    if weight is not None and op == "layer_norm" and choice.wanted == "auto":
        return None
    if _watched() and _faked():
        return None
    if (
        (weight is not None and not _fits(weight, x, found))
        or (bias is not None and not _fits(bias, x, found))
        or (alpha is not None and not _fits(alpha, x, found))
    ):
        return None
    return found if x.shape[-1] else None


def chosen(
    x: Tensor,
    op: str,
    eps_mode: str = "inside",
    eps: float = 1e-5,
    first: int | None = None,
    weight: Tensor | None = None,
) -> str:
    """Name what runs for an operation.

    Args:
        x: the input; its type, dtype and device decide.
        op: the operation's name in this module.
        eps_mode: ``"inside"`` or ``"outside"`` the square root.
        eps: a very small one needs a backward that the fast operations do not have.
        first: how many leading features the statistic sees; all by default.
        weight: the gain, which matters to ``layer_norm``.

    Returns:
        ``"native"`` or ``"triton"`` (fused kernels), ``"plain"`` (differentiable torch formulas),
        ``"aten"`` (PyTorch's own kernel) or ``"function"`` (ATen calls with a backward derived by
        hand); the last two on ordinary rows only.
    """
    if eps_mode == "inside":
        found = fused_backend(x, op, eps, weight)
        if found is not None:
            return found.__name__.rpartition(".")[2]
    return _unfused(x, op, eps_mode, eps, first)


def _unfused(
    x: Tensor, op: str, eps_mode: str = "inside", eps: float = 1e-5, first: int | None = None
) -> str:
    """`chosen` among PyTorch's operations."""
    if current().wanted == "plain" or eps_mode == "outside" or _transformed(x):
        return "plain"
    if eps < formulas.limits(x).small ** 2:
        return "plain"
    if not x.is_cpu and first not in (None, x.shape[-1]):
        return "plain"
    return _FAST.get(op, "plain")


def _needs_graph(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _wide(x: Tensor, parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.to(reference.stats_dtype(x))


def layer_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, eps_mode: str = "inside"
) -> Tensor:
    """LayerNorm over the last axis.

    Args:
        x: ``(..., d)``.
        weight: gain ``(d,)`` or None.
        bias: offset ``(d,)`` or None.
        eps: added to the variance (inside) or to the standard deviation (outside).
        eps_mode: ``"inside"`` or ``"outside"``.

    Returns:
        ``(..., d)`` in the dtype of ``x``, whatever autocast or the parameters say.
    """
    if eps_mode == "inside" and (by := fused_backend(x, "layer_norm", eps, weight, bias)):
        return fused.run(by, "layer", x, weight, bias, None, _numbers(eps))
    with reference.without_autocast(x):
        weight, bias = _wide(x, weight), _wide(x, bias)
        y = None
        if _unfused(x, "layer_norm", eps_mode, eps) == "aten":
            y = _aten_layer_norm(x, weight, bias, eps)
        return formulas.plain_layer_norm(x, weight, bias, eps, eps_mode) if y is None else y


def _aten_layer_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor | None:
    """PyTorch's kernel, or None where a row is out of its range."""
    d = x.shape[-1]
    if weight is None:
        # The CPU kernel takes 1.7 times as long without a gain as with one, and a wide gain also
        # makes it keep wide statistics for narrow input.
        weight = torch.ones(d, dtype=reference.stats_dtype(x), device=x.device)
    if not x.is_cpu:
        wide = brought_into_range(x).to(weight.dtype)
        return torch.native_layer_norm(wide, (d,), weight, bias, eps)[0].to(x.dtype)
    y, mean, rstd = torch.native_layer_norm(x, (d,), weight, bias, eps)
    return y if in_range(x, rstd, mean, eps**-0.5) else None


def rms_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    eps_mode: str = "inside",
    first: int | None = None,
) -> Tensor:
    """RMSNorm over the last axis, or pRMSNorm with the statistic of the first features.

    Args:
        x: ``(..., d)``.
        weight: gain ``(d,)`` or None.
        bias: offset ``(d,)`` or None.
        eps: added to the mean square (inside) or to its root (outside).
        eps_mode: ``"inside"`` or ``"outside"``.
        first: how many leading features the mean square is taken over; all of them by default.

    Returns:
        ``(..., d)`` in the dtype of ``x``, whatever autocast or the parameters say.
    """
    first = x.shape[-1] if first is None else first
    if eps_mode == "inside" and (by := fused_backend(x, "rms_norm", eps, weight, bias)):
        return fused.run(by, "rms", x, weight, bias, None, _numbers(eps, first))
    with reference.without_autocast(x):
        weight, bias = _wide(x, weight), _wide(x, bias)
        if _unfused(x, "rms_norm", eps_mode, eps, first) == "function":
            near = brought_into_range(x)
            wide, rstd = reference.rms_statistic(near, eps, first)
            if in_range(near, rstd):
                if _needs_graph(x, weight, bias):
                    return reference.RMSNormFunction.apply(
                        near, weight, bias, wide, rstd, eps, first
                    )
                return reference.scaled_rows(wide, rstd, weight, bias, x.dtype)
        return formulas.plain_rms_norm(x, weight, bias, eps, first, eps_mode)


def ada_norm(x: Tensor, eps: float, c: float, k: float, eps_mode: str = "inside") -> Tensor:
    """AdaNorm, ``c * (1 - k * y) * y`` with y = LayerNorm-simple(x) and the factor constant.

    Args:
        x: ``(..., d)``.
        eps: added to the variance (inside) or to the standard deviation (outside).
        c: scale, not 0.
        k: slope of the factor.
        eps_mode: ``"inside"`` or ``"outside"``.

    Returns:
        ``(..., d)`` in the dtype of ``x``.
    """
    if eps_mode == "inside" and (by := fused_backend(x, "ada_norm", eps)):
        return fused.run(by, "ada", x, None, None, None, _numbers(eps, 0, c, k))
    with reference.without_autocast(x):
        if _unfused(x, "ada_norm", eps_mode, eps) == "function":
            near = brought_into_range(x)
            stats = reference.ada_statistics(near, eps, c)
            if in_range(near, stats[2], stats[1], eps**-0.5):
                if _needs_graph(x):
                    return reference.AdaNormFunction.apply(near, *stats, eps, c, k)
                return reference.ada_output(stats[0], c, k, x.dtype)
        return formulas.plain_ada_norm(x, eps, c, k, eps_mode)


def detach_norm(x: Tensor, eps: float, eps_mode: str, detach: str) -> Tensor:
    """LayerNorm-simple whose mean, deviation or both are constants in the backward.

    Args:
        x: ``(..., d)``.
        eps: added to the variance (inside) or to the standard deviation (outside).
        eps_mode: ``"inside"`` or ``"outside"``.
        detach: ``"mean"``, ``"std"`` or ``"both"``.

    Returns:
        ``(..., d)`` in the dtype of ``x``.
    """
    if eps_mode == "inside" and (by := fused_backend(x, "detach_norm", eps)):
        numbers = _numbers(eps, DETACH.index(detach))
        return fused.run(by, "detach", x, None, None, None, numbers)
    with reference.without_autocast(x):
        return formulas.plain_detach_norm(x, eps, eps_mode, detach)


def crms_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, eps_mode: str = "inside"
) -> Tensor:
    """RMSNorm of rows that sum to zero and whose last feature, minus the others', is not stored.

    Args:
        x: ``(..., d)``, the first d of d + 1 features.
        weight: gain ``(d,)`` or None.
        bias: offset ``(d,)`` or None.
        eps: added to the mean square of the d + 1 (inside) or to its root (outside).
        eps_mode: ``"inside"`` or ``"outside"``.

    Returns:
        ``(..., d)`` in the dtype of ``x``.
    """
    if eps_mode == "inside" and (by := fused_backend(x, "crms_norm", eps, weight, bias)):
        return fused.run(by, "crms", x, weight, bias, None, _numbers(eps))
    with reference.without_autocast(x):
        weight, bias = _wide(x, weight), _wide(x, bias)
        return formulas.plain_crms_norm(x, weight, bias, eps, eps_mode)


def l2_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """``x / max(length of x, eps) * weight`` over the last axis.

    Args:
        x: ``(..., d)``.
        weight: gain ``(1,)`` or ``(d,)``, or None.
        eps: the least length that is divided by.

    Returns:
        ``(..., d)`` in the dtype of ``x``.
    """
    if by := fused_backend(x, "l2_norm", eps, weight):
        return fused.run(by, "l2", x, weight, None, None, _numbers(eps))
    with reference.without_autocast(x):
        return formulas.plain_l2_norm(x, _wide(x, weight), eps)


def lp_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    constant: float,
    k: int | None = None,
) -> Tensor:
    """``(x - mean) / (constant * statistic + eps)`` over the last axis, with gain and bias.

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
    if k is None and (by := fused_backend(x, "lp_norm", eps, weight, bias)):
        return fused.run(by, "l1", x, weight, bias, None, _numbers(eps, 0, constant))
    with reference.without_autocast(x):
        weight, bias = _wide(x, weight), _wide(x, bias)
        return formulas.plain_lp_norm(x, weight, bias, eps, constant, k)


def squash(
    x: Tensor,
    alpha: Tensor,
    shift: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    curve: str,
) -> Tensor:
    """An S-shaped curve in place of a norm: ``curve(alpha * x + shift) * weight + bias``.

    Args:
        x: ``(..., d)``.
        alpha: slope ``(1,)``.
        shift: offset of the argument ``(1,)`` or None.
        weight: gain ``(d,)`` or None.
        bias: offset ``(d,)`` or None.
        curve: ``"tanh"`` or ``"erf"``.

    Returns:
        ``(..., d)`` in the dtype of ``x``.
    """
    if (
        curve == "tanh"
        and shift is None
        and (by := fused_backend(x, "squash", 0, alpha, weight, bias))
    ):
        return fused.run(by, "tanh", x, weight, bias, alpha, _numbers())
    with reference.without_autocast(x):
        alpha, shift = alpha.to(reference.stats_dtype(x)), _wide(x, shift)
        weight, bias = _wide(x, weight), _wide(x, bias)
        return formulas.plain_squash(x, alpha, shift, weight, bias, curve)
