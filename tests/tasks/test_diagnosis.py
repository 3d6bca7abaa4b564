"""NaN and Inf: which layer is named, in which pass, and what happens to the weights."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from normtrain.errors import RunError
from normtrain.tasks.diagnosis import diagnose
from normtrain.tasks.step_check import LAG, NonFiniteStep, StepCheck
from normtrain.training import fit, resume
from normtrain.training.loop import TrainingRun


class NanBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * float("nan")


class Layer(nn.Module):
    def __init__(self, bad_backward: bool = False) -> None:
        super().__init__()
        self.inner, self.bad_backward = nn.Linear(4, 4), bad_backward

    def forward(self, x: Tensor) -> Tensor:
        x = NanBackward.apply(x) if self.bad_backward else x
        return x + self.inner(x)


def stack(bad_backward: int | None = None) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(*(Layer(i == bad_backward) for i in range(4)))


def found(model: nn.Module, loss: Callable[[Tensor], Tensor] = torch.mean) -> str | None:
    x = torch.randn(3, 4)
    finding = diagnose(model, lambda: loss(model(x)))
    return None if finding is None else finding.text


def test_a_layer_that_overflows_is_named_and_its_weights_are_judged() -> None:
    model = stack()
    assert found(model) is None
    with torch.no_grad():
        model[2].inner.weight.fill_(3e38)
    assert found(model) == "2.inner gave the first NaN or Inf (its weights are finite)"
    with torch.no_grad():
        model[1].inner.bias[0] = float("nan")
    assert found(model) == "1.inner gave the first NaN or Inf (its bias is not finite)"


def test_a_nan_between_layers_is_in_the_input_of_the_next() -> None:
    class Between(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x) * float("nan"))

    assert found(Between()) == "the input of second had the first NaN or Inf"


def test_the_loss_alone() -> None:
    said = found(stack(), lambda out: out.mean() * float("inf"))
    assert said.startswith("the output layer or the loss")


def test_a_backward_pass_that_breaks_is_named() -> None:
    said = found(stack(bad_backward=2))
    assert said.startswith("2 gave the first non-finite gradient;")
    assert "nearest to the loss is 1." in said
    assert "the forward pass is finite" in said


def test_a_loss_whose_gradient_breaks() -> None:
    said = found(stack(), lambda out: NanBackward.apply(out).mean())
    assert "the loss or the output layer" in said
    assert "nearest to the loss is 3.inner" in said


def test_gradients_hooks_and_masks_are_left_alone() -> None:
    model = stack()
    model(torch.randn(3, 4)).mean().backward()
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    assert found(model) is None
    after = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())


class Break(pl.Callback):
    """Overflows a layer's weight, or breaks its backward pass, from a step on."""

    def __init__(self, layer: str, step: int, backward: bool) -> None:
        self.layer, self.step, self.backward = layer, step, backward

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        if trainer.global_step != self.step - 1:
            return
        module = pl_module.model.get_submodule(self.layer)
        if not self.backward:
            module.weight.data.mul_(0).add_(3e38)
            return
        module.register_forward_hook(lambda m, args, out: NanBackward.apply(out))


@pytest.mark.parametrize(
    ("task", "accumulate", "backward"),
    [
        ("translation", 1, True),
        ("language", 3, False),
        pytest.param("translation", 3, False, marks=pytest.mark.extended),
        pytest.param("language", 1, True, marks=pytest.mark.extended),
    ],
)
def test_a_run_names_the_layer_and_keeps_its_last_good_checkpoint(
    task: str,
    accumulate: int,
    backward: bool,
    tiny_recipe: Callable[..., Any],
    tiny_language: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changes = {"optim_accumulate": accumulate, "train_max_steps": 6, "train_val_every": 50}
    if task == "language":
        recipe = tiny_language(**changes, model_layers=2)
    else:
        recipe = tiny_recipe(**changes, model_decoder_layers=2)
    layer = "decoder.layers.1.feed_forward.inner"
    real = TrainingRun._callbacks
    monkeypatch.setattr(
        TrainingRun, "_callbacks", lambda run: [Break(layer, 4, backward), *real(run)]
    )
    what = "the gradient is nan" if backward else "the loss is (nan|inf)"
    pass_ = "non-finite gradient" if backward else "NaN or Inf"
    with pytest.raises(RunError, match=f"{what} at step 4: {layer} gave the first {pass_}") as said:
        fit(recipe, out=tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    assert f"(the last good checkpoint is {checkpoints / 'step-00000003.ckpt'})" in str(said.value)
    last = torch.load(checkpoints / "last.ckpt", weights_only=True)
    assert last["global_step"] == 3
    assert all(torch.isfinite(v).all() for v in last["state_dict"].values())
    monkeypatch.undo()
    resume(tmp_path / "run")


def test_weights_that_an_update_breaks_are_never_saved(
    tiny_recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Overflow(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
            if trainer.global_step == 3:
                pl_module.model.decoder.layers[0].feed_forward.inner.weight.data[0] = float("inf")

    real = TrainingRun._callbacks
    monkeypatch.setattr(TrainingRun, "_callbacks", lambda run: [Overflow(), *real(run)])
    with pytest.raises(RunError, match=r"weights decoder\S+ are NaN or Inf after step 3"):
        fit(tiny_recipe(), out=tmp_path / "run")
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 2
    assert all(torch.isfinite(v).all() for v in last["state_dict"].values())


# As on a GPU: the optimizer skips steps, the host checks later.


def updates(monkeypatch: pytest.MonkeyPatch, bad_at: int) -> tuple[list[Tensor], str]:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    watch = StepCheck(lambda x, i: model(x).mean(), model)

    def told(optimizer: Any, flag: Tensor) -> bool:
        seen = watch._any_bad
        value = flag.float()
        watch._any_bad = value if seen is None else torch.maximum(seen, value)
        optimizer.found_inf = watch._any_bad
        return True

    monkeypatch.setattr(watch, "_skips", told)
    monkeypatch.setattr(watch, "_reads_at_once", lambda value: False)
    weights = []
    for step in range(1, 10):
        x = torch.ones(1, 2)
        watch.begin(x, step)
        loss = model(x).mean() * (float("nan") if step == bad_at else 1.0)
        watch.note(loss)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        try:
            watch.check(step, watch.bad_losses(norm.device), norm, 1.0, optimizer)
        except NonFiniteStep as broken:
            return weights, str(broken)
        optimizer.step()
        weights.append(model.weight.detach().clone())
    watch.settle()
    return weights, ""


def test_a_gpu_skips_bad_steps_until_the_host_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, said = updates(monkeypatch, bad_at=4)
    assert said.startswith("the loss is nan at step 4: ")
    assert len(weights) == 3 + LAG
    assert all(torch.equal(later, weights[2]) for later in weights[3:])
    assert not torch.equal(weights[1], weights[2])
    assert updates(monkeypatch, bad_at=0)[1] == ""


def test_the_rank_with_the_first_nan_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from normtrain.tasks import step_check as module
    from normtrain.tasks.diagnosis import Finding

    model = nn.Linear(2, 1)
    watch = StepCheck(lambda x, i: model(x).mean(), model)
    theirs = Finding(True, "layer gave the first NaN or Inf")
    monkeypatch.setattr(module, "all_gather", lambda mine: [mine, theirs])
    watch.begin(torch.ones(1, 2), 0)
    watch.note(torch.tensor(1.0))
    optimizer = SimpleNamespace(defaults={})
    with pytest.raises(NonFiniteStep, match="the gradient is nan at step 3: on rank 1 of 2, lay"):
        watch.check(3, torch.tensor(1), torch.tensor(float("nan")), 1.0, optimizer)
