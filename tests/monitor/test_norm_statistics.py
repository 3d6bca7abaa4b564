"""What is told of a norm: the numbers by their definitions, and which modules are norms."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from monitored import hooks_in
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from normtrain import build_norm, norm_names
from normtrain.monitor.statistics import Layer, Watch, norm_layers


def expected(module: nn.Module, x: Tensor, rows_of_x: Tensor) -> dict[str, float]:
    """Everything but the gradient, in float64 from the definitions."""
    y = module(x).detach().double()
    wide = x.detach().double()
    found = {
        "input_mean": wide.mean(),
        "input_rms": wide.square().mean().sqrt(),
        "input_std": wide.std(correction=0),
        "near_zero_rows": (rows_of_x.double().var(-1, correction=0) < 1e-6).double().mean(),
        "output_rms": y.square().mean().sqrt(),
    }
    if getattr(module, "weight", None) is not None:
        gain = module.weight.detach().double()
        found |= {"gain_mean": gain.mean(), "gain_min": gain.min(), "gain_max": gain.max()}
        found["gain_std"] = gain.std(correction=0)
    return {name: float(value) for name, value in found.items()}


def watched(
    module: nn.Module, run: Callable[[], Tensor], scale: float | None = None
) -> dict[str, float]:
    """The numbers of one norm over a forward and backward of `run`."""
    [layer] = norm_layers(nn.ModuleDict({"norm": module}))
    watch = Watch([layer], 1e-6, lambda: False)
    run().backward()
    watch.close()
    assert not hooks_in(module)
    numbers = watch.numbers(None if scale is None else torch.tensor(scale))
    return numbers.get("norm", {})


def check_norm(module: nn.Module, x: Tensor, rows_of_x: Tensor) -> None:
    for parameter in module.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    upstream = torch.randn_like(x)
    x = x.clone().requires_grad_()
    numbers = watched(module, lambda: (module(x) * upstream).sum())
    if module(x) is not x:
        assert numbers.pop("gradient_norm") == pytest.approx(float(upstream.norm()), rel=1e-5)
    assert numbers == pytest.approx(expected(module, x, rows_of_x), rel=2e-5, abs=1e-6)


def test_the_numbers_are_those_of_their_definitions_for_every_norm() -> None:
    x = torch.randn(3, 5, 16) * 3 + 1
    x[0, :2] = 2.0  # rows that do not vary
    for name in norm_names():
        check_norm(build_norm(name, 16), x, x.reshape(-1, 16))


@pytest.mark.parametrize(
    ("module", "shape", "flat", "as_rows"),
    [
        (nn.LayerNorm((3, 4)), (5, 3, 4), 0, lambda x: x.reshape(5, 12)),
        (nn.RMSNorm(6), (2, 3, 6), (0, 1), lambda x: x.reshape(6, 6)),
        (nn.GroupNorm(2, 6), (4, 6, 3), (1, slice(3)), lambda x: x.reshape(8, 9)),
        (nn.BatchNorm1d(5), (7, 5), (slice(None), 2), lambda x: x.T),
        (
            nn.BatchNorm2d(3),
            (4, 3, 2, 5),
            (slice(None), 2),
            lambda x: x.movedim(1, 0).reshape(3, -1),
        ),
        (nn.InstanceNorm2d(3, affine=True), (4, 3, 2, 5), (1, 2), lambda x: x.reshape(12, 10)),
        (nn.InstanceNorm1d(3), (3, 9), 1, lambda x: x),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_row_is_what_is_normalised_together(
    module: nn.Module, shape: tuple[int, ...], flat: Any, as_rows: Callable[[Tensor], Tensor]
) -> None:
    x = torch.randn(shape)
    x[flat] = 3.0
    assert (as_rows(x).var(-1) == 0).sum() == 1
    check_norm(module, x, as_rows(x))


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class GemmaLikeNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.0, 1.0, -0.5, 0.5]))

    def forward(self, hidden: Tensor) -> Tensor:
        return (
            hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)
        )


def test_norms_of_axis_1_have_their_rows_there() -> None:
    x = torch.randn(2, 4, 4, 4)
    x[0, :, 1, 2] = 1.5
    check_norm(LayerNorm2d(4), x, x.movedim(1, -1).reshape(-1, 4))


def test_gemmas_gain_is_one_more_than_its_weight() -> None:
    from normtrain.swap.readers import _readers, detect_norm, register_reader

    before = list(_readers)
    try:
        register_reader(f"{__name__}.GemmaLikeNorm")(detect_norm)
        norm = GemmaLikeNorm()
        numbers = watched(norm, lambda: norm(hidden=torch.randn(3, 4)).sum())
    finally:
        _readers[:] = before
    assert (numbers["gain_min"], numbers["gain_mean"], numbers["gain_max"]) == (0.5, 1.25, 2.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("size", [1e-30, 1e-4, 1.0, 1e4, 1e30])
def test_any_size_any_dtype(dtype: torch.dtype, size: float) -> None:
    x = (torch.randn(4, 16, dtype=torch.float64) * size).to(dtype)
    if not x.isfinite().all() or not x.any():
        return
    norm = nn.LayerNorm(16, dtype=dtype)
    numbers = watched(norm, lambda: norm(x).sum())
    assert numbers["input_rms"] == pytest.approx(float(x.double().square().mean().sqrt()), rel=1e-4)
    assert numbers["input_std"] == pytest.approx(float(x.double().std(correction=0)), rel=1e-4)
    assert numbers["near_zero_rows"] == (size < 1e-3)


def test_several_uses_are_reported_as_one() -> None:
    norm = nn.LayerNorm(8)
    a, b = torch.randn(3, 8), torch.randn(5, 8) * 9 + 40
    a[1] = 0.0
    together = watched(norm, lambda: norm(torch.cat([a, b])).square().sum())
    apart = watched(norm, lambda: norm(a).square().sum() + norm(b).square().sum())
    assert apart == pytest.approx(together, rel=1e-5)
    recomputed = watched(
        norm, lambda: checkpoint(norm, a.requires_grad_(), use_reentrant=False).square().sum()
    )
    assert recomputed == pytest.approx(watched(norm, lambda: norm(a).square().sum()), rel=1e-6)


def test_values_that_are_no_numbers_are_reported_as_such() -> None:
    norm = nn.LayerNorm(4)
    x = torch.tensor([[1.0, math.nan, 2.0, 3.0]])
    assert math.isnan(watched(norm, lambda: norm(x).sum())["input_rms"])
    assert watched(norm, lambda: norm(x[:0]).sum()) == {}


def test_inside_function_transforms_nothing_is_taken() -> None:
    norm, x = nn.LayerNorm(4), torch.randn(3, 4)
    assert watched(norm, lambda: torch.vmap(norm)(x).sum()) == {}


# --- Which modules


class PowerNorm(nn.Module):
    def __init__(self, outer: bool = False) -> None:
        super().__init__()
        if outer:
            self.matrix = nn.Parameter(torch.eye(4))

    def forward(self, x: Tensor) -> Tensor:
        return x.abs().sqrt()


class PreNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer = nn.LayerNorm(4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.norm(x))


class NormalHead(nn.Identity):
    pass


class GatedRMSNorm(nn.Module):
    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return x * gate


def test_which_modules_are_norms() -> None:
    shared = nn.LayerNorm(4)
    model = nn.ModuleDict({
        "own": build_norm("dyt", 4), "none": build_norm("none", 4), "torch": nn.RMSNorm(4),
        "named": PowerNorm(), "matrix": PowerNorm(outer=True), "wrapper": PreNorm(),
        "normal": NormalHead(), "linear": nn.Linear(4, 4), "a": shared, "b": shared,
        "weighted": nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)),
        "compiled": torch.compile(PreNorm(), backend="eager"),
    })  # fmt: skip
    layers = {layer.name: layer for layer in norm_layers(model)}
    assert list(layers) == ["own", "none", "torch", "named", "wrapper.norm", "a", "compiled.norm"]
    assert [name for name, layer in layers.items() if layer.compiled] == ["compiled.norm"]


def test_a_call_with_two_tensors_or_another_shape_is_not_a_norms() -> None:
    gated = GatedRMSNorm()
    x = torch.randn(3, 4, requires_grad=True)
    assert watched(gated, lambda: gated(x, x).sum()) == {}
    watch = Watch([Layer("n", gated)], 1e-6, lambda: False)
    watch.see(watch.layers[0], [x], x[:1])
    assert watch.numbers() == {}
