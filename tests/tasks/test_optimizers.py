"""The optimizers and schedules: which parameters they treat how, rates, state, clipping."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normtrain.config.recipe import resolve
from normtrain.config.sections import OptimConfig
from normtrain.errors import UserError
from normtrain.models import build_model
from normtrain.models.config import CausalLMConfig, Seq2SeqConfig
from normtrain.norms import norm_names
from normtrain.tasks import optimizers
from normtrain.tasks.optimizers import (
    OPTIMIZERS,
    build_optimizer,
    clip_gradients,
    parameter_groups,
    state_template,
)
from normtrain.tasks.schedules import schedule_factor
from normtrain.training import fit
from normtrain.training.callbacks.metrics import read_metrics

SIZES = {"d_model": 16, "heads": 2, "d_ff": 24}


def names_of(model: nn.Module, groups: list[dict[str, Any]]) -> list[set[str]]:
    names = {id(p): n for n, p in model.named_parameters(remove_duplicate=False)}
    found = [{names[id(p)] for p in group["params"]} for group in groups]
    everything = [id(p) for group in groups for p in group["params"]]
    assert len(set(everything)) == len(everything) == len(list(model.parameters()))
    return found


def linears(model: nn.Module) -> set[str]:
    """Weights of linear layers but the output layer."""
    modules = model.named_modules()
    return {f"{n}.weight" for n, m in modules if isinstance(m, nn.Linear) and n != "head"}


@pytest.mark.parametrize("norm", norm_names())
@pytest.mark.parametrize("tie", ["all", "decoder", "none"])
def test_only_matrices_of_linear_layers_decay(norm: str, tie: str) -> None:
    layers = {"encoder_layers": 1, "decoder_layers": 1}
    model = build_model(Seq2SeqConfig(norm=norm, tie=tie, qk_norm=norm, **SIZES, **layers), 31)
    groups = parameter_groups(model, 0.3)
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    output = {"head.weight"} if tie == "none" else set()
    assert names_of(model, groups)[0] == linears(model) | output


def test_a_norm_gain_as_a_matrix_does_not_decay() -> None:
    class OddNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 2))

    model = nn.Sequential(OddNorm(), nn.Linear(2, 2, bias=False))
    assert names_of(model, parameter_groups(model, 0.1)) == [{"1.weight"}, {"0.weight"}]


@pytest.mark.parametrize("tie", [True, False])
def test_muon_trains_the_matrices_of_layers_only(tie: bool) -> None:
    model = build_model(CausalLMConfig(layers=1, tie=tie, bias=True, **SIZES), 31)
    built = build_optimizer(model, OptimConfig(name="muon", weight_decay=0.3), 1000)["optimizer"]
    groups = built.param_groups
    inner, outer, _ = names_of(model, groups)
    assert (inner, outer) == (linears(model), set() if tie else {"head.weight"})
    assert ["momentum" in group for group in groups] == [True, False, False]
    assert [group["weight_decay"] for group in groups] == [0.3, 0.3, 0.0]


def gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def train(model: nn.Module, built: dict[str, Any], steps: range) -> None:
    for step in steps:
        gradients(model, step)
        built["optimizer"].step()
        built["lr_scheduler"]["scheduler"].step()


def test_muon_is_torchs_muon_and_adamw() -> None:
    optim = OptimConfig(name="muon", lr=0.02, weight_decay=0.1, schedule="constant", warmup_steps=0)
    model = build_model(CausalLMConfig(layers=1, **SIZES), 31)
    other = copy.deepcopy(model)
    train(model, build_optimizer(model, optim, 1000), range(3))
    matrices = [p for n, p in other.named_parameters() if n in linears(other)]
    rest = [p for n, p in other.named_parameters() if n not in linears(other)]
    muon = torch.optim.Muon(matrices, lr=0.02, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(
        rest, lr=0.02, betas=(0.9, 0.98), eps=1e-9, weight_decay=0.0, fused=True
    )
    for step in range(3):
        gradients(other, step)
        muon.step()
        adamw.step()
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_template_has_the_shapes_of_a_saved_state(name: str) -> None:
    optim, config = OptimConfig(name=name), CausalLMConfig(layers=1, tie=False, **SIZES)
    model = build_model(config, 31)
    built = build_optimizer(model, optim, 10)
    train(model, built, range(1))
    with torch.device("meta"):
        template = state_template(build_model(config, 31), optim)
    saved = built["optimizer"].state_dict()

    def shapes(state: dict[int, dict[str, Tensor]]) -> dict[int, dict[str, torch.Size]]:
        return {i: {k: v.shape for k, v in each.items()} for i, each in state.items()}

    assert shapes(template["state"]) == shapes(saved["state"])
    for wanted, found in zip(template["param_groups"], saved["param_groups"], strict=True):
        assert wanted.keys() <= found.keys()
        assert wanted["params"] == found["params"]


def test_unknown_and_ignored_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"optim.name.*'adam'.*adamw"):
        resolve("envi", overrides=["optim.name=adam"])
    assert resolve("envi", overrides=["optim.name=muon"]).optim.name == "muon"
    entry = optimizers.OptimizerEntry(OPTIMIZERS["adamw"].build, ignores=("betas", "eps"))
    monkeypatch.setitem(OPTIMIZERS, "sgd", entry)
    with pytest.raises(UserError, match=r"optim.eps has no effect with optim.name sgd"):
        resolve("lm", overrides=["optim.name=sgd", "optim.eps=1e-3"])
    assert resolve("lm", overrides=["optim.name=sgd"]).optim.name == "sgd"


def losses(run: Path) -> list[float]:
    rows = read_metrics(run / "metrics.csv")
    return [float(row["val_loss"]) for row in rows if row["val_loss"]]


@pytest.mark.extended
@pytest.mark.parametrize("task", ["tiny_recipe", "tiny_language"])
def test_muon_learns_as_fast_as_adamw(
    task: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    build: Callable[..., Any] = request.getfixturevalue(task)
    settings = {"optim_lr": 0.01, "train_max_steps": 60, "train_val_every": 20,
                "train_checkpoint_every": 60}  # fmt: skip
    found = {
        name: losses(fit(build(optim_name=name, **settings), out=tmp_path / name))
        for name in OPTIMIZERS
    }
    for each in found.values():
        assert each == sorted(each, reverse=True)
    assert found["muon"][-1] < found["adamw"][-1] + 0.1


def test_schedules_at_chosen_steps() -> None:
    factor = schedule_factor("inverse-sqrt", 4, 100)
    assert [factor(s) for s in (0, 1, 2, 3, 15)] == pytest.approx([0.25, 0.5, 0.75, 1.0, 0.5])
    assert schedule_factor("constant", 0, 10)(0) == 1.0
    linear = schedule_factor("linear", 10, 110, floor=0.2)  # the last of 110 steps still moves
    expected = [1.0, 0.2 + 0.8 * (1 - 50 / 101), 0.2 + 0.8 / 101, 0.2]
    assert [linear(s) for s in (9, 59, 109, 110)] == pytest.approx(expected)
    cosine = schedule_factor("cosine", 0, 100)
    expected = [0.5 * (1 + math.cos(math.pi * 25 / 101)), 0.0]
    assert [cosine(s) for s in (24, 100)] == pytest.approx(expected)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_optimizer_follows_the_schedule_from_its_first_step(name: str) -> None:
    optim = OptimConfig(name=name, lr=0.1, schedule="linear", warmup_steps=2, min_lr=0.05)
    model = nn.Linear(2, 2)
    built = build_optimizer(model, optim, max_steps=4)
    rates = []
    for step in range(5):
        rates.append([group["lr"] for group in built["optimizer"].param_groups])
        train(model, built, range(step, step + 1))
    wanted = [0.05, 0.1, 0.05 + 0.05 * 2 / 3, 0.05 + 0.05 / 3, 0.05]
    for found, rate in zip(rates, wanted, strict=True):
        assert found == pytest.approx([rate] * len(found))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("limit", [1e-3, 4.999, 5.0, 5.000001, 5.001, math.inf])
def test_clipping_equals_torchs(dtype: torch.dtype, limit: float) -> None:
    def made() -> list[nn.Parameter]:
        gradients = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]]), None]
        made = [nn.Parameter(torch.ones(shape, dtype=dtype)) for shape in (2, (1, 1), 3)]
        for parameter, gradient in zip(made, gradients, strict=True):
            parameter.grad = None if gradient is None else gradient.to(dtype)
        return made

    ours, theirs = made(), made()
    norm = clip_gradients(iter(ours), limit)
    assert torch.equal(norm, torch.nn.utils.clip_grad_norm_(theirs, limit))
    assert float(norm) == 5.0
    for own, other in zip(ours[:2], theirs[:2], strict=True):
        assert torch.equal(own.grad, other.grad)
    assert ours[2].grad is None


def test_the_norm_of_broken_gradients_and_of_none() -> None:
    parameter = nn.Parameter(torch.ones(2))
    assert float(clip_gradients([parameter], 1.0)) == 0.0
    for broken in (math.nan, math.inf):
        parameter.grad = torch.tensor([1.0, broken])
        assert not clip_gradients([parameter], 1.0).isfinite()
