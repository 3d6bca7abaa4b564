"""Each kind of fault of a swap fails `check_swap`; faults of the original don't count."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from checked import ALL, PADDING, Small, X, assert_sound, encoder, outcome
from encoders import QUIET
from torch import Tensor, nn

from normtrain.swap.check import check_swap

pytestmark = QUIET


class Rearmed(nn.Module):
    """Switches torch's fast path on again, before or after its forward."""

    def __init__(self, after: bool = False) -> None:
        super().__init__()
        self.encoder, self.after = encoder(), after

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        def arm() -> None:
            self.encoder.use_nested_tensor = padding is not None
            for layer in self.encoder.layers:
                layer.activation_relu_or_gelu = 1

        if not self.after:
            arm()
        y = self.encoder(x, src_key_padding_mask=padding)
        arm()
        return y


# Faults that a swap brings.


def _sqrt(model: Small, y: Tensor) -> Tensor:
    # A row of zeros: LayerNorm gives its bias, RMSNorm 0, whose root has no gradient.
    return y.sum() + model.norm(torch.zeros(2, 8)).pow(2).sum(-1).sqrt()


def _inverse(model: Small, y: Tensor) -> Tensor:
    return y.sum() + 1 / model.norm(torch.zeros(2, 8))


def _detached(model: Small, y: Tensor) -> Tensor:
    return model.last(torch.ones(3, 8)) + (y.detach() if model.swapped else y).mean()


def _raising(model: Small, y: Tensor) -> Tensor:
    if model.swapped:
        raise AttributeError("no such thing")
    return y


def _wider(model: Small, y: Tensor) -> Tensor:
    return y.float() if model.swapped else y


def _no_grad_only(model: Small, y: Tensor) -> Tensor:
    return y if torch.is_grad_enabled() or not model.swapped else y + 0.1


def _inference_only(model: Small, y: Tensor) -> Tensor:
    if model.swapped and torch.is_inference_mode_enabled():
        raise RuntimeError("not here")
    return y


def _training_only(model: Small, y: Tensor) -> Tensor:
    return y + 0.1 if model.training and model.swapped else y


def _backward_only(model: Small, y: Tensor) -> Tensor:
    if model.swapped and y.requires_grad:
        y.register_hook(_broken_hook)
    return y


def _broken_hook(_: Tensor) -> None:
    raise RuntimeError("no way back")


FAULTS: dict[str, tuple[Callable[..., Any], str, str]] = {
    "gradient": (_sqrt, "backward", "gradient not finite: norm.weight"),
    "output": (_inverse, "train forward", "not finite: the output (finite before the swap)"),
    "output in eval": (_inverse, "eval forward", "not finite: the output"),
    "lost": (_detached, "backward", "no gradient any more: first.weight, first.bias, norm.weight"),
    "backward": (_backward_only, "backward", "in backward: RuntimeError: no way back (test_swap"),
    "forward": (_raising, "train forward", "in training: AttributeError: no such thing (test"),
    "eval": (_raising, "eval forward", "in eval: AttributeError: no such thing"),
    "dtype": (_wider, "bf16 autocast", "the output is float32 (3, 5, 4), and was bfloat16"),
    "no_grad": (_no_grad_only, "eval contexts", "under no_grad, the output differs by 0."),
    "inference": (_inference_only, "eval contexts", "in eval under inference_mode: RuntimeError"),
    "training": (_training_only, "eval as in training", "the output differs by 0."),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_swap_fails(
    fault: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(request.path.parent)
    tail, name, part = FAULTS[fault]
    result = check_swap(Small(tail), "rmsnorm", X)
    status, detail = outcome(result, name)
    assert status == "FAILED"
    assert part in detail
    assert name in result.failed
    assert f"{name:<19}  FAILED   {detail}" in str(result).splitlines()


def test_gradients_from_before_are_not_taken_for_new_ones() -> None:
    model = Small(_detached)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    status, detail = outcome(check_swap(model, "rmsnorm", X), "backward")
    assert (status, detail[:24]) == ("FAILED", "no gradient any more: fi")


class Forgetful(Small):
    """Saves nothing of a norm that is none of torch's, and can't be copied with one."""

    fails = "state"

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        state = super().state_dict(*args, **kwargs)
        if self.fails == "state" and self.swapped:
            del state["norm.weight"]
        return state

    def load_state_dict(self, state: Any, *args: Any, **kwargs: Any) -> Any:
        if self.fails == "silent" and self.swapped:
            del state["norm.weight"]
            return super().load_state_dict(state, strict=False)
        return super().load_state_dict(state, *args, **kwargs)

    def __deepcopy__(self, memo: Any) -> nn.Module:
        if self.fails == "copy" and self.swapped:
            raise TypeError("not me")
        made = type(self)()
        made.__dict__.update(self.__dict__)
        made._modules = copy.deepcopy(self._modules, memo)
        if self.fails == "shallow" and self.swapped:
            made._modules["norm"] = nn.Identity()
        return made


@pytest.mark.parametrize(
    ("fails", "name", "part"),
    [
        ("state", "state dict", "in load_state_dict: RuntimeError: Error(s) in loading state_dict"),
        ("silent", "state dict", "the output differs by "),
        ("copy", "deepcopy", "in deepcopy: TypeError: not me"),
        ("shallow", "deepcopy", "the output differs by "),
    ],
)
def test_copies_and_state_dicts_that_lose_something_fail(fails: str, name: str, part: str) -> None:
    model = Forgetful()
    model.fails = fails
    result = check_swap(model, "rmsnorm", X)
    status, detail = outcome(result, name)
    assert status == "FAILED"
    assert part in detail
    assert result.failed == [name]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("padding", [None, PADDING])
def test_a_fast_path_that_is_armed_again_fails(after: bool, padding: Tensor | None) -> None:
    result = check_swap(Rearmed(after), "rmsnorm:bias=true", (X, padding))
    status, detail = outcome(result, "eval contexts")
    assert status == "FAILED"
    assert "passed over there: encoder.layers.0.norm1, encoder.layers.0.norm2" in detail
    assert outcome(result, "eval forward")[0] == "ok"


@pytest.mark.parametrize("padding", [None, PADDING])
def test_a_fast_path_that_is_always_taken_fails_against_training(padding: Tensor | None) -> None:
    # Nothing is trained, so torch takes it in every context and they all agree.
    model = Rearmed().requires_grad_(False)
    result = check_swap(model, "rmsnorm:bias=true", (X, padding))
    assert outcome(result, "eval contexts")[0] == "ok"
    status, detail = outcome(result, "eval as in training")
    assert status == "FAILED"
    assert "from training with dropout off; passed over there: encoder.layers.0." in detail


# Faults of the original are none of the swap's.


def _infinite(model: Small, y: Tensor) -> dict[str, Tensor]:
    return {"y": y, "mask": torch.full((2,), -torch.inf)}


def _no_gradient_at_zero(model: Small, y: Tensor) -> Tensor:
    return y + (0 * y).pow(2).sum().sqrt()


def _other_without_gradients(model: Small, y: Tensor) -> Tensor:
    return y if torch.is_grad_enabled() else y + 0.1


def _not_in_inference(model: Small, y: Tensor) -> Tensor:
    if torch.is_inference_mode_enabled():
        raise RuntimeError("not here")
    return y


def _other_in_training(model: Small, y: Tensor) -> Any:
    return (y, y) if model.training else y


def _random_in_training(model: Small, y: Tensor) -> Tensor:
    return y + torch.randn_like(y) if model.training else y


def _not_under_autocast(model: Small, y: Tensor) -> Tensor:
    assert y.dtype != torch.bfloat16, "no bfloat16"
    return y


def _whole_numbers(model: Small, y: Tensor) -> Tensor:
    return y.argmax(-1)


ORIGINALS: dict[str, tuple[Callable[..., Any], list[str], str]] = {
    "infinite": (
        _infinite,
        ["train forward", "eval forward", "bf16 autocast"],
        "not finite before the swap either: ",
    ),
    "gradient": (_no_gradient_at_zero, ["backward"], "not finite before the swap either: first.w"),
    "contexts": (_other_without_gradients, ["eval contexts"], "so does the original"),
    "training": (_other_in_training, ["eval as in training"], "so does the original"),
    "random": (_random_in_training, ["eval as in training"], "random even with dropout off"),
    "autocast": (
        _not_under_autocast,
        ["bf16 autocast"],
        "the original fails under autocast: Asser",
    ),
    "whole": (_whole_numbers, [*ALL], "floating"),
}


@pytest.mark.parametrize("case", ORIGINALS)
def test_a_fault_of_the_original_is_skipped_and_said(case: str) -> None:
    tail, skipped, part = ORIGINALS[case]
    result = check_swap(Small(tail), "rmsnorm", X)
    assert_sound(result, *skipped)
    for name in skipped:
        assert part in outcome(result, name)[1]


def test_a_context_in_which_the_original_fails_is_left_out() -> None:
    result = check_swap(Small(_not_in_inference), "rmsnorm", X)
    assert outcome(result, "eval contexts") == ("ok", "equal with gradients, under no_grad")


def test_a_model_that_cant_load_its_own_state_is_skipped_there() -> None:
    class Stubborn(Small):
        def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
            raise NotImplementedError("never")

    status, detail = outcome(check_swap(Stubborn(), "rmsnorm", X), "state dict")
    assert status == "skipped"
    assert detail.startswith("the original too: in load_state_dict: NotImplementedError: never")


def test_a_frozen_model_has_no_backward() -> None:
    result = check_swap(Small().requires_grad_(False), "rmsnorm", X)
    assert_sound(result, "backward")


def test_a_norm_that_does_not_run_is_named() -> None:
    model = Small()
    model.idle = nn.LayerNorm(3)
    result = check_swap(model, "rmsnorm", X)
    assert_sound(result)
    assert "note: not run in eval on these inputs: idle" in str(result).splitlines()
