"""The norms and options that the tests of every norm run over, and small helpers."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normtrain.norms import build_norm

# Every registered norm with the options that change what it computes.
VARIANTS: dict[str, list[str]] = {
    "adanorm": ["", "C=2,k=0.3", "k=0", "eps_mode=outside"],
    "crmsnorm": ["", "bias=true", "affine=false", "eps_mode=outside"],
    "derf": ["", "alpha_init=1.5,shift_init=0.25", "bias=false"],
    "detachnorm": ["", "detach=mean", "detach=std", "detach=mean,eps_mode=outside"],
    "dyt": ["", "alpha_init=1.5", "bias=false"],
    "fixnorm": [""],
    "l1norm": ["", "bias=false"],
    "layernorm": ["", "bias=false", "eps_mode=outside"],
    "layernorm-simple": ["", "eps_mode=outside"],
    "linfnorm": ["", "bias=false"],
    "none": [""],
    "prmsnorm": ["", "p=0.5", "p=1", "p=0.5,eps_mode=outside"],
    "rmsnorm": ["", "bias=true", "affine=false", "eps_mode=outside"],
    "scalenorm": [""],
    "topknorm": ["", "k=1", "k=3", "k=3,bias=false"],
}
NAMES = list(VARIANTS)
SPECS = [f"{name}:{rest}".rstrip(":") for name, options in VARIANTS.items() for rest in options]
NO_EPS = ("derf", "dyt", "none")
WITHOUT_PARAMETERS = ("adanorm", "detachnorm", "fixnorm", "layernorm-simple", "none")


def name_of(spec: str) -> str:
    """The norm's name, without options."""
    return spec.partition(":")[0]


def has_parameters(spec: str) -> bool:
    """Whether there is anything to learn."""
    return name_of(spec) not in WITHOUT_PARAMETERS and "affine=false" not in spec


def build(spec: str, dim: int, dtype: torch.dtype = torch.float64, **options: float) -> nn.Module:
    """The norm with random parameters, so that a wrong formula is visible."""
    norm = build_norm(spec, dim, dtype=dtype, **options)
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    return norm


def sharp(spec: str, dim: int) -> nn.Module:
    """The norm in float64 with a negligible eps, or without eps if it has none."""
    return build(spec, dim, **({} if name_of(spec) in NO_EPS else {"eps": 1e-30}))


def rows(*shape: int) -> Tensor:
    """Random rows in float64, off centre."""
    return torch.randn(shape, dtype=torch.float64) + 0.5


def leaf(x: Tensor) -> Tensor:
    """A copy that collects its gradient."""
    return x.detach().clone().requires_grad_()


def gradient(norm: nn.Module, x: Tensor, upstream: Tensor) -> Tensor:
    """The gradient of the input for a gradient of the output."""
    (result,) = torch.autograd.grad(norm(leaf_of := leaf(x)), leaf_of, upstream)
    return result


def gradients(norm: nn.Module, x: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    """The gradients of the input (``x``) and of every parameter, by name."""
    leaves = {"x": leaf(x), **dict(norm.named_parameters())}
    results = torch.autograd.grad(norm(leaves["x"]), list(leaves.values()), upstream)
    return dict(zip(leaves, results, strict=True))


def sampled(first: Sequence[Any], *others: Sequence[Any], each: int = 1) -> list[Any]:
    """Return the product of axes as parameters, of which all but a sample are `slow`.

    Each value of the first axis is tested with ``each`` combinations of the others, in rotation, so
    that every value of every axis is tested with many of the first.
    """
    combinations = list(itertools.product(*others))
    return [
        pytest.param(
            value,
            *combination,
            marks=() if (number - each * index) % len(combinations) < each else pytest.mark.slow,
        )
        for index, value in enumerate(first)
        for number, combination in enumerate(combinations)
    ]
