"""What a norm of an unknown class computes, told from its outputs for a few numbers."""

from __future__ import annotations

import inspect
import math
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from normtrain.errors import UserError
from normtrain.swap.readers import NormFacts

_EPS_NAMES = ("eps", "variance_epsilon", "epsilon", "layer_norm_eps", "norm_eps")
_DIM_NAMES = ("normalized_shape", "hidden_size", "dim", "num_channels")
# What a norm without such an attribute may have in its forward.
_USUAL_EPS = (1e-5, 1e-6)


def facts_by_trial(module: nn.Module) -> NormFacts:
    """Read a norm whose class says too little; see `read_by_trial`.

    Raises:
        UserError: it computes no LayerNorm or RMSNorm of one axis.
    """
    kind = type(module).__name__
    weight, bias = _parameter(module, "weight"), _parameter(module, "bias")
    others = {name for name, p in module.named_parameters() if p is not None} - {"weight", "bias"}
    if others or not _takes_one(module):
        what = f"parameters {', '.join(sorted(others))}" if others else "several arguments"
        raise UserError(f"a {kind} has {what}, so it is more than a norm")
    dim = _dim(module, weight)
    for channels_first, given, centred, offset in product(
        (False, True), _epsilons(module), (False, True), (0.0, 1.0)
    ):
        if offset and weight is None:
            continue
        facts = NormFacts(
            dim, given, weight, bias, offset, "layer" if centred else "rms", channels_first
        )
        if _computes(module, facts):
            return NormFacts(**{**vars(facts), "cast": _cast(module, facts)})
    raise UserError(
        f"a {kind} computes neither LayerNorm nor RMSNorm of one axis; if it has a successor, "
        f"say how with normtrain.swap.register_reader"
    )


def _parameter(module: nn.Module, name: str) -> nn.Parameter | None:
    parameter = module._parameters.get(name)
    if parameter is not None and parameter.ndim != 1:
        raise UserError(f"its {name} has the shape {tuple(parameter.shape)}, not (dim,)")
    return parameter


def _takes_one(module: nn.Module) -> bool:
    named = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return False
    return sum(p.kind in named for p in parameters) == 1


def _dim(module: nn.Module, weight: nn.Parameter | None) -> int:
    if weight is not None:
        return weight.numel()
    for name in _DIM_NAMES:
        value = getattr(module, name, None)
        if isinstance(value, tuple | list) and len(value) == 1:
            value = value[0]
        if isinstance(value, int):
            return value
    raise UserError(f"the size of the axis that a {type(module).__name__} normalises is unknown")


def _epsilons(module: nn.Module) -> tuple[float, ...]:
    for name in _EPS_NAMES:
        value = getattr(module, name, None)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return (float(value),)
    return _USUAL_EPS


def _twin(module: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A copy with random parameters on the CPU; all else is shared with the module."""
    generator = torch.Generator().manual_seed(7)
    # not type(module).__new__: FSDP2's classes build a module in it
    twin = object.__new__(type(module))
    vars(twin).update(vars(module))
    vars(twin)["_parameters"] = {
        name: None if p is None else nn.Parameter(_draw(tuple(p.shape), generator).to(dtype))
        for name, p in module._parameters.items()
    }
    vars(twin)["_buffers"] = dict(module._buffers)
    return twin


def _draw(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device="cpu", dtype=torch.float32) + 0.5


def _input(facts: NormFacts) -> Tensor:
    """Rows of ordinary size, and rows so small that eps matters, ``(4, dim)`` or NCHW."""
    generator = torch.Generator().manual_seed(11)
    assert facts.eps is not None
    # No side of an image is as long as another or as the axis in question.
    sides = [side for side in (3, 5, 7) if side != facts.dim][:2]
    shape = (4, facts.dim, *sides) if facts.channels_first else (4, facts.dim)
    x = torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32) * 2 + 0.7
    x[2:] *= math.sqrt(facts.eps)
    return x


def _output(module: nn.Module, x: Tensor) -> Any:
    """What it gives, or None where it gives nothing."""
    try:
        # Never compiled, captured or cast: this is no part of anyone's computation.
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            return module.forward(x)  # not called, which would run hooks
    except Exception:  # a foreign forward may fail in any way; then it is not what was guessed
        return None


def _computes(module: nn.Module, facts: NormFacts) -> bool:
    twin, x = _twin(module), _input(facts)
    y = _output(twin, x.clone())
    if not isinstance(y, Tensor) or y.shape != x.shape:
        return False
    wanted = _formula(x.double(), twin, facts)
    return torch.allclose(y.double(), wanted, rtol=1e-3, atol=1e-4)


def _formula(x: Tensor, twin: nn.Module, facts: NormFacts) -> Tensor:
    assert facts.eps is not None
    x = x.movedim(1, -1) if facts.channels_first else x
    x = x - x.mean(-1, keepdim=True) if facts.kind == "layer" else x
    y = x / (x.pow(2).mean(-1, keepdim=True) + facts.eps).sqrt()
    weight, bias = twin._parameters.get("weight"), twin._parameters.get("bias")
    y = y if weight is None else y * (weight.detach().double() + facts.offset)
    y = y if bias is None else y + bias.detach().double()
    return y.movedim(-1, 1) if facts.channels_first else y


def _cast(module: nn.Module, facts: NormFacts) -> str:
    """When bfloat16 is rounded, told from the output's dtype beside float32 parameters."""
    y = _output(_twin(module), _input(facts).bfloat16())
    wide = isinstance(y, Tensor) and y.dtype == torch.float32
    return "input" if wide else "float32-then-weight"
