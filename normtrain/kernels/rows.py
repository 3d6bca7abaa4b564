"""The contract of the fused kernels: norms of contiguous rows, forward and backward.

A backend (`normtrain.kernels.native` on the CPU, Triton on a GPU) is a module with::

    forward(kind, x, weight, bias, alpha, numbers) -> (y, stats)
    backward(kind, grad, x, weight, bias, alpha, stats, numbers) -> (dx, dweight, dbias, dalpha)

- ``x``, ``y``, ``grad``, ``dx``: ``(rows, d)``, contiguous, of one dtype (float32, bfloat16 or
  float16); a row may be of any length from 1, and there may be none.
- ``weight``, ``bias``: ``(d,)``, contiguous, or None; of the dtype of ``x`` or float32, each of its
  own. ``weight`` is ``(1,)``, ``(d,)`` or None for ``"l2"``. ``alpha``: ``(1,)`` for ``"tanh"``,
  else None.
- ``stats``: float32 ``(rows, columns)``, whatever the backend's own backward needs; no other code
  reads it.
- ``backward`` reads of ``bias`` only whether there is one, and its dtype. The gradient of each
  parameter has its dtype and shape; it is None where there is no such parameter.

All arithmetic is float32, rounded once to the dtype of the result; sums over rows have a fixed
order, so that the same call gives the same bits, whatever the number of threads or programs.

With r a row's scale, h = (x - mean) * r (or x * r), u = g * w, and sums over the row:

==========  =========================================  =========================================
kind        forward, and the numbers it reads           dx
==========  =========================================  =========================================
layer       h * w + b, r = 1/sqrt(var + eps)            r * (u - mean(u) - h * mean(u * h))
detach      h, r as for layer; count: 0 both, 1 mean,   r * u, r * (u - h * mean(u * h)),
            2 std are constants in the backward         r * (u - mean(u))
rms         x * r * w + b, r = 1/sqrt(sum of the first  r * (u - [i < count] * h * sum(u * h)
            `count` squares / count + eps)              / count)
ada         a * (1 - b * h) * h, r as for layer         that of layer, u = g * a * (1 - b * h)
crms        x * r * w + b, r = 1/sqrt((sum(x^2)         r * (u - (h + r * sum(x))
            + sum(x)^2) / (d + 1) + eps)                * sum(u * h) / (d + 1))
l2          x / max(|x|, eps) * w                       r * (u - h * sum(u * h)), r * u below eps
l1          h * w + b, r = 1/(a * mean|x - mean| + eps) r * (u - mean(u) - a * mean(u * h)
                                                        * (sign(h) - mean(sign(h))))
tanh        tanh(alpha * x) * w + b                     u * alpha * (1 - tanh^2)
==========  =========================================  =========================================

No result is NaN or infinite for finite input whose exact result the dtype can hold (pinned by
``tests/kernels/test_range.py``): a row whose statistic would leave float32 is first multiplied by
2^30 over its largest magnitude (`normtrain.kernels.formulas.within_range`; ``rms`` looks at the
first `count` features), and dx by the same number; eps stays. A row far from zero keeps its
digits, and a constant one comes out as zeros: the mean is taken of ``x - x[0]`` or in two steps.
The caller takes the formulas where ``eps`` is too small for that (`smallest_eps`).
"""

from __future__ import annotations

from typing import NamedTuple

KINDS = ("layer", "detach", "rms", "ada", "crms", "l2", "l1", "tanh")
"""In the order of their codes in the native kernels and the registered operations."""

DETACH = ("both", "mean", "std")
"""The meaning of `count` for ``detach``."""


class Numbers(NamedTuple):
    """What a kind reads besides tensors; what it does not read stays at its default.

    Attributes:
        eps: added under the root (layer, detach, rms, ada, crms), to the statistic (l1), or the
            least length (l2).
        count: the features that the statistic of rms sees, or detach's `DETACH` code.
        a: c of AdaNorm, or the constant of l1.
        b: k of AdaNorm.
    """

    eps: float = 0.0
    count: int = 0  # type: ignore[assignment]
    a: float = 0.0
    b: float = 0.0


def smallest_eps(kind: str) -> float:
    """The smallest eps the fused kernels take; below, tiny rows need the plain formulas."""
    if kind == "tanh":
        return 0.0
    return 2.0**-40 if kind in ("l1", "l2") else 2.0**-80
