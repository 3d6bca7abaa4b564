"""The table of fused norms: what a fused kernel computes, under which code, and what it saves.

Dispatch, autograd and both backends (`normtrain.kernels.native`, `normtrain.kernels.triton`) read
this table, and ``tests/kernels/test_table.py`` checks every row on every backend: the kernel codes,
the saved statistics, and the output and all gradients against the row's formula in float64. A new
fused norm is a formula in `normtrain.kernels.formulas`, a kernel, a row here, and the module that
calls `normtrain.kernels.fused_norm`.

With r a row's scale, h = (x - mean) * r (or x * r), u = the gradient of h (grad * w), and sums and
means over the row, each row's comment gives the formula and its gradient dx. That of the weight is
the sum of grad * h over rows, that of the bias the sum of grad.

Common to all kernels:

- Arithmetic is float32, rounded once to the dtype of the result. Sums over rows have a fixed order:
  the same call gives bitwise identical results with any number of threads or programs.
- No result is NaN or Inf if the input is finite and the dtype can hold the exact result
  (``tests/norms/test_edges.py``). A row whose statistic would overflow float32 is first
  multiplied by 2^30 over its largest magnitude (`normtrain.kernels.formulas.within_range`; ``rms``
  takes the first `count` features), and dx is multiplied by the same factor; eps is not scaled.
- A row far from zero keeps its precision and a constant row gives zeros: the mean is computed of
  ``x - x[0]`` or in two steps.
- The formula runs instead if eps is below `FusedNorm.min_eps`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from normtrain.kernels import formulas

DETACH = ("both", "mean", "std")
"""What `Scalars.count` means for ``detach``: which statistics are constants in the backward."""


class Scalars(NamedTuple):
    """The numbers a fused norm reads; unused ones keep their default.

    Attributes:
        eps: added under the root (layer, detach, rms, ada, crms) or to the statistic (l1), or the
            smallest length (l2).
        count: the number of leading features in the statistic of rms, or an index of `DETACH`.
        a: c of AdaNorm, or the constant of l1.
        b: k of AdaNorm.
    """

    eps: float = 0.0
    count: int = 0  # type: ignore[assignment]
    a: float = 0.0
    b: float = 0.0


Formula = Callable[[Tensor, Tensor | None, Tensor | None, Tensor | None, Scalars], Tensor]
"""``(x, weight, bias, alpha, scalars) -> y``, differentiable; float32 or float64 parameters."""


@dataclass(frozen=True)
class FusedNorm:
    """A norm with fused kernels.

    Attributes:
        kind: name of the norm in the kernels.
        code: its number in the C++ kernels and in the registered operations.
        parameters: the parameters it takes and computes gradients for; each may be None except
            ``alpha``.
        formula: the differentiable torch formula.
        saved: by backend, the float32 statistics that the forward saves per row for the backward.
            A backend that is missing has no kernel for this norm; the formula runs there.
        min_eps: the smallest eps the kernels support.
    """

    kind: str
    code: int
    parameters: tuple[str, ...]
    formula: Formula
    saved: Mapping[str, tuple[str, ...]]
    min_eps: float = 2.0**-80


def _both(*columns: str) -> dict[str, tuple[str, ...]]:
    return {"native": columns, "triton": columns}


def _tanh(
    x: Tensor, w: Tensor | None, b: Tensor | None, alpha: Tensor | None, s: Scalars
) -> Tensor:
    assert alpha is not None
    return formulas.squash(x, alpha, None, w, b, "tanh")


_SCALE = ("scale", "factor")
_MEAN = ("scale", "factor", "mean", "rest")  # the mean in two parts, whose sum is more precise

ROWS = (
    # h * w + b, r = 1/sqrt(var + eps); dx = r * (u - mean(u) - h * mean(u * h))
    FusedNorm(
        "layer",
        0,
        ("weight", "bias"),
        lambda x, w, b, alpha, s: formulas.layer_norm(x, w, b, s.eps),
        _both(*_MEAN),
    ),
    # h, r as for layer; dx = r * u (both constant), r * (u - h * mean(u * h)) (mean constant),
    # r * (u - mean(u)) (std constant)
    FusedNorm(
        "detach",
        1,
        (),
        lambda x, w, b, alpha, s: formulas.detach_norm(x, s.eps, "inside", DETACH[s.count]),
        _both(*_MEAN),
    ),
    # h * w + b, r = 1/sqrt(sum of the first `count` squares / count + eps);
    # dx = r * (u - [i < count] * h * sum(u * h) / count)
    FusedNorm(
        "rms",
        2,
        ("weight", "bias"),
        lambda x, w, b, alpha, s: formulas.rms_norm(x, w, b, s.eps, s.count),
        _both(*_SCALE),
    ),
    # a * (1 - b * h) * h, r as for layer; dx as for layer with u = grad * a * (1 - b * h)
    FusedNorm(
        "ada", 3, (), lambda x, w, b, alpha, s: formulas.ada_norm(x, s.eps, s.a, s.b), _both(*_MEAN)
    ),
    # h * w + b, r = 1/sqrt((sum(x^2) + sum(x)^2) / (d + 1) + eps);
    # dx = r * (u - (h + r * sum(x)) * sum(u * h) / (d + 1)); Triton sums the row again
    FusedNorm(
        "crms",
        4,
        ("weight", "bias"),
        lambda x, w, b, alpha, s: formulas.crms_norm(x, w, b, s.eps),
        {"native": (*_SCALE, "sum"), "triton": _SCALE},
    ),
    # x / max(|x|, eps) * w, w of (1,) or (d,); dx = r * (u - h * sum(u * h)), r * u if |x| < eps
    FusedNorm(
        "l2",
        5,
        ("weight",),
        lambda x, w, b, alpha, s: formulas.l2_norm(x, w, s.eps),
        _both(*_SCALE, "above_eps"),
        2.0**-40,
    ),
    # h * w + b, r = 1/(a * mean|x - mean| + eps);
    # dx = r * (u - mean(u) - a * mean(u * h) * (sign(h) - mean(sign(h))))
    FusedNorm(
        "l1",
        6,
        ("weight", "bias"),
        lambda x, w, b, alpha, s: formulas.lp_norm(x, w, b, s.eps, s.a),
        _both(*_MEAN),
        2.0**-40,
    ),
    # h * w + b, h = tanh(alpha * x); dx = u * alpha * (1 - h^2), dalpha = sum(u * (1 - h^2) * x)
    FusedNorm("tanh", 7, ("weight", "bias", "alpha"), _tanh, _both(), 0.0),
)

KINDS = {row.kind: row for row in ROWS}
"""The rows by kind."""
