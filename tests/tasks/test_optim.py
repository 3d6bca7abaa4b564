"""Which parameters decay, and the learning rate at every step."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from normtrain.models import build_model
from normtrain.models.config import Seq2SeqConfig
from normtrain.norms import norm_names
from normtrain.tasks.optim import (
    SCHEDULES,
    build_optimizer,
    clip_gradients,
    parameter_groups,
    schedule_factor,
)


@pytest.mark.parametrize("norm", norm_names())
@pytest.mark.parametrize("tie", ["all", "decoder", "none"])
def test_only_projection_matrices_decay(norm: str, tie: str) -> None:
    sizes = {"d_model": 16, "heads": 2, "d_ff": 24, "encoder_layers": 1, "decoder_layers": 1}
    model = build_model(Seq2SeqConfig(norm=norm, tie=tie, qk_norm=norm, **sizes), 31)
    decayed, free = parameter_groups(model, 0.3)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.3, 0.0)
    names = {id(p): n for n, p in model.named_parameters(remove_duplicate=False)}
    in_decayed = {names[id(p)] for p in decayed["params"]}
    linears = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and (name != "head" or tie == "none")
    }
    assert in_decayed == linears
    everything = [*decayed["params"], *free["params"]]
    assert len({id(p) for p in everything}) == len(everything) == len(list(model.parameters()))


def test_a_norm_gain_as_a_matrix_does_not_decay() -> None:
    class OddNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 2))

    decayed, free = parameter_groups(nn.Sequential(OddNorm(), nn.Linear(2, 2, bias=False)), 0.1)
    assert (len(decayed["params"]), len(free["params"])) == (1, 1)


def test_schedules_at_chosen_steps() -> None:
    factor = schedule_factor("inverse-sqrt", 4, 100)
    assert [factor(s) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert factor(15) == pytest.approx(0.5)
    assert schedule_factor("constant", 0, 10)(0) == 1.0
    linear = schedule_factor("linear", 10, 110, floor=0.2)
    assert linear(9) == 1.0
    assert linear(59) == pytest.approx(0.2 + 0.8 * (1 - 50 / 101))
    assert linear(109) == pytest.approx(0.2 + 0.8 / 101)  # the last of 110 steps still moves
    assert linear(110) == pytest.approx(0.2)
    cosine = schedule_factor("cosine", 0, 100)
    assert cosine(24) == pytest.approx(0.5 * (1 + math.cos(math.pi * 25 / 101)))
    assert cosine(100) == pytest.approx(0.0)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_rates_rise_then_never_rise_again_and_are_never_above_the_peak(
    schedule: str, warmup: int
) -> None:
    factor = schedule_factor(schedule, warmup, 50)
    rates = [factor(step) for step in range(60)]
    assert rates[0] > 0
    assert max(rates) == pytest.approx(1.0, abs=0.05)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_unknown_schedule_names_the_four() -> None:
    with pytest.raises(ValueError, match="inverse-sqrt, cosine, linear, constant"):
        schedule_factor("triangle", 1, 2)


def test_the_optimizer_follows_the_schedule_from_its_first_step() -> None:
    optim = SimpleNamespace(
        lr=0.1,
        betas=(0.9, 0.98),
        eps=1e-9,
        weight_decay=0.0,
        schedule="linear",
        warmup_steps=2,
        min_lr=0.05,
    )
    model = nn.Linear(2, 2)
    built = build_optimizer(model, optim, max_steps=4)
    rates = []
    for _ in range(5):
        rates.append(built["optimizer"].param_groups[0]["lr"])
        model(torch.ones(1, 2)).sum().backward()
        built["optimizer"].step()
        built["lr_scheduler"]["scheduler"].step()
    assert rates == pytest.approx([0.05, 0.1, 0.05 + 0.05 * 2 / 3, 0.05 + 0.05 / 3, 0.05])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("limit", [1e-3, 4.999, 5.0, 5.000001, 5.001, 1e4, math.inf])
def test_clipping_equals_torchs(dtype: torch.dtype, limit: float) -> None:
    def made() -> list[nn.Parameter]:
        gradients = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]]), None]
        made = [
            nn.Parameter(torch.ones(2)),
            nn.Parameter(torch.ones(1, 1)),
            nn.Parameter(torch.ones(3)),
        ]
        for parameter, gradient in zip(made, gradients, strict=True):
            parameter.data = parameter.data.to(dtype)
            parameter.grad = None if gradient is None else gradient.to(dtype)
        return made

    ours, theirs = made(), made()
    norm = clip_gradients(iter(ours), limit)
    assert torch.equal(norm, torch.nn.utils.clip_grad_norm_(theirs, limit))
    assert float(norm) == 5.0
    for own, other in zip(ours[:2], theirs[:2], strict=True):
        assert torch.equal(own.grad, other.grad)
    assert ours[2].grad is None


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_clipping_tells_of_a_broken_gradient(broken: float) -> None:
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([1.0, broken])
    assert not clip_gradients([parameter], 1.0).isfinite()


def test_nothing_to_clip_has_no_length() -> None:
    assert float(clip_gradients([nn.Parameter(torch.ones(2))], 1.0)) == 0.0
