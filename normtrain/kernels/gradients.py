"""Gradients of an autograd function by its formula, where they are differentiated again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from normtrain.kernels.formulas import without_autocast

_legacy_batched = torch._C._functorch.is_legacy_batchedtensor
_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


def is_batched(grad: Tensor) -> bool:
    """Return whether several gradients are computed at once, as `torch.autograd.functional` can."""
    return _legacy_batched(grad) or _wrapped(grad)


def formula_gradients(
    formula: Callable[..., Tensor],
    inputs: Sequence[Tensor | None],
    needs: Sequence[bool],
    grad: Tensor,
) -> list[Tensor | None]:
    """Differentiate a formula; the result is differentiable if grad mode is on.

    Args:
        formula: called with the inputs.
        inputs: tensors, the first one the norm's input.
        needs: which of them need a gradient.
        grad: gradient of the output.

    Returns:
        A gradient per input; None where there is no such input or it needs none.
    """
    graph, first = torch.is_grad_enabled(), inputs[0]
    assert first is not None
    with torch.enable_grad(), without_autocast(first):
        # differentiate with respect to views: a weight may itself depend on x
        views = [None if t is None else t.view_as(t) for t in inputs]
        y = formula(*views)
        wanted = [t for t, need in zip(views, needs, strict=False) if need and t is not None]
        found = iter(torch.autograd.grad(y, wanted, grad, create_graph=graph))
    return [
        next(found) if need and t is not None else None
        for t, need in zip(views, needs, strict=False)
    ]
