"""`check_swap`: sound models pass, each kind of fault fails, faults of the original don't count."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from encoders import QUIET
from nets import Net, state_of
from torch import Tensor, nn
from torch.nn import functional as F

from normtrain import swap_norms
from normtrain.errors import RunError, UserError
from normtrain.surgery import SwapCheck, check_swap

pytestmark = QUIET

X = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(3)) + 1
PADDING = torch.arange(5) >= torch.tensor([5, 3, 4])[:, None]
ALL = [
    "train forward",
    "backward",
    "eval forward",
    "eval contexts",
    "eval as in training",
    "deepcopy",
    "state dict",
    "bf16 autocast",
]


class Small(nn.Module):
    """Linear, norm, linear; what `tail` does with their results is the fault of the day."""

    def __init__(self, tail: Callable[..., Any] = lambda model, y: y) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4)
        self.tail = tail
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)
        nn.init.uniform_(self.norm.bias, 0.5, 1.5)

    @property
    def swapped(self) -> bool:
        return type(self.norm) is not nn.LayerNorm

    def forward(self, x: Tensor) -> Any:
        return self.tail(self, self.last(self.norm(self.first(x))))


def encoder(**options: Any) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 2)


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


def outcome(result: SwapCheck, name: str) -> tuple[str, str]:
    [found] = [(check.status, check.detail) for check in result.checks if check.name == name]
    return found


def assert_sound(result: SwapCheck, *skipped: str) -> None:
    assert [check.name for check in result.checks] == ALL
    wrong = [c for c in result.checks if c.status != ("skipped" if c.name in skipped else "ok")]
    assert wrong == []
    assert result.failed == []


# Sound models.


@pytest.mark.parametrize("init", ["keep", "fresh"])
@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm", "none", "dyt", "adanorm", "crmsnorm"])
def test_a_sound_model_passes_and_its_change_is_measured(norm: str, init: str) -> None:
    model = Small()
    result = check_swap(model, norm, X, init=init)
    assert_sound(result)
    after = copy.deepcopy(model)
    report = swap_norms(after, norm, init=init)
    old, new = model.eval()(X).double(), after.eval()(X).double()
    assert result.change == pytest.approx(((new - old).norm() / old.norm()).item(), rel=1e-6)
    assert result.report == report


def test_the_same_norm_changes_not_a_bit() -> None:
    result = check_swap(encoder(), "layernorm", X)
    assert_sound(result)
    assert result.change == 0
    assert "change of the output in eval: not a bit" in str(result)


def test_dropout_of_every_kind_is_off_where_training_is_compared() -> None:
    def tail(model: Small, y: Tensor) -> Tensor:
        return F.dropout(y, model.out_dropout, model.training)

    model = Small(tail)
    model.out_dropout = 0.5
    assert_sound(check_swap(nn.Sequential(encoder(dropout=0.5), nn.Dropout(0.5), model), "dyt", X))


@pytest.mark.parametrize("norm_first", [False, True])
def test_an_encoder_with_padding_passes_though_its_original_differs(norm_first: bool) -> None:
    # torch's nested tensors give 0 where there is padding, in eval alone.
    model = encoder(norm_first=norm_first)
    inputs = {"src": X, "src_key_padding_mask": PADDING}
    result = check_swap(model, "rmsnorm:bias=true", inputs)
    assert_sound(result)
    with torch.no_grad():
        gap = model.eval()(**inputs)
    assert norm_first or gap[1, 3:].eq(0).all()


def test_batch_norms_are_not_compared_with_training() -> None:
    model = nn.Sequential(nn.Conv1d(5, 4, 3), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(24, 2))
    result = check_swap(model, "l1batchnorm", X)
    assert_sound(result, "eval as in training")
    assert "batch norm" in outcome(result, "eval as in training")[1]


def test_outputs_of_hugging_face_are_looked_into() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 29, "n_positions": 16}
    config = transformers.GPT2Config(**sizes, bos_token_id=1, eos_token_id=1)
    result = check_swap(transformers.GPT2LMHeadModel(config), "rmsnorm")
    assert_sound(result)
    assert result.inputs == "input_ids int64 (3, 5); from dummy_inputs"


def test_a_model_that_keeps_tensors_and_writes_into_its_input_passes() -> None:
    def tail(model: Small, y: Tensor) -> Tensor:
        if not hasattr(model, "cache"):
            # Made under inference_mode, it would be of no use to a backward.
            model.cache = torch.ones(4)
        model.seen = y
        return y * model.cache

    class Writing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Small(tail)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.mul_(2))

    given = X.clone()
    assert_sound(check_swap(Writing(), "rmsnorm", given))
    assert torch.equal(given, X)


def test_a_compiled_model_is_run_as_it_was_written() -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("compiled")

    assert_sound(check_swap(torch.compile(Small(), backend=fail), "rmsnorm", X))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_run_without_autocast(dtype: torch.dtype) -> None:
    result = check_swap(Small().to(dtype), "rmsnorm", specs=["3,5,8"])
    assert_sound(result, "bf16 autocast")
    assert str(dtype)[6:] in outcome(result, "bf16 autocast")[1]


@pytest.mark.gpu
def test_a_model_on_a_gpu_is_run_there() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    state = torch.cuda.get_rng_state()
    result = check_swap(encoder(norm_first=True).cuda(), "rmsnorm:bias=true", X)
    assert result.failed == []
    assert torch.equal(torch.cuda.get_rng_state(), state)


# On meta.


def test_on_meta_only_what_needs_no_numbers_is_tried() -> None:
    result = check_swap(encoder().to("meta"), "rmsnorm", X)
    assert_sound(result, *ALL[3:])
    assert outcome(result, "eval contexts")[1] == "the model is on meta, where there are no numbers"
    assert outcome(result, "train forward") == ("ok", "shapes as before")
    assert result.change is None


def test_on_meta_another_shape_is_still_seen() -> None:
    model = Small(lambda model, y: y[0] if model.swapped else y).to("meta")
    status, detail = outcome(check_swap(model, "rmsnorm", X), "train forward")
    assert status == "FAILED"
    assert detail == "the output is float32 (5, 4), and was float32 (3, 5, 4) before the swap"


def test_what_cant_run_on_meta_is_skipped() -> None:
    model = Small(lambda model, y: y * y.sum().item()).to("meta")
    result = check_swap(model, "rmsnorm", X)
    assert_sound(result, *ALL)
    assert "can't be run there: in eval: RuntimeError" in result.checks[0].detail


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


# Nothing changes.


def generators() -> list[Any]:
    return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]


@pytest.mark.parametrize("tail", [lambda model, y: y, _raising, _sqrt])
def test_neither_the_model_nor_the_generators_change(tail: Callable[..., Any]) -> None:
    model = nn.Sequential(nn.BatchNorm1d(5), Small(tail))
    model[0].eval()
    before = copy.deepcopy(model.state_dict()), state_of(model), generators()
    check_swap(model, "rmsnorm", X, seed=5)
    assert (state_of(model), generators()) == before[1:]
    assert all(torch.equal(value, before[0][key]) for key, value in model.state_dict().items())
    assert (model[0].training, model[1].training) == (False, True)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_same_seed_gives_the_same_result() -> None:
    model = nn.Sequential(nn.Dropout(0.5), Small())
    first, same, other = (check_swap(model, "rmsnorm", specs=["4,8"], seed=s) for s in (1, 1, 2))
    assert first == same
    assert first.change != other.change


# Lightning.


def flavours() -> list[str]:
    return ["pytorch_lightning", "lightning.pytorch"]


def lightning_module(flavour: str, place: str) -> Any:
    base = pytest.importorskip(flavour).LightningModule

    class Lit(base):
        def __init__(self) -> None:
            super().__init__()
            self.example_input_array = X
            if place == "__init__":
                self.build()

        def build(self) -> None:
            self.net = Small()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    if place != "__init__":
        setattr(Lit, place, Lit.build if place == "configure_model" else lambda self, stage: None)
    return Lit()


@pytest.mark.parametrize("flavour", flavours())
def test_a_lightning_module_runs_on_its_example(flavour: str) -> None:
    model = lightning_module(flavour, "__init__")
    result = check_swap(model, [("net.norm", "rmsnorm")])
    assert_sound(result)
    assert result.inputs == "float32 (3, 5, 8); from example_input_array"
    assert result.notes == []


@pytest.mark.parametrize("flavour", flavours())
def test_configure_model_is_called_on_the_copy(flavour: str) -> None:
    model = lightning_module(flavour, "configure_model")
    result = check_swap(model, "rmsnorm")
    assert_sound(result)
    assert result.notes == ["configure_model of Lit was called on the copy"]
    assert not hasattr(model, "net")


@pytest.mark.parametrize("flavour", flavours())
def test_what_setup_builds_is_said_to_be_missing(flavour: str) -> None:
    with pytest.raises(UserError, match="no norm of this Lit.*the setup of Lit builds is missing"):
        check_swap(lightning_module(flavour, "setup"), "rmsnorm")


def test_a_configure_model_that_needs_a_trainer_is_named() -> None:
    class Lit(pytest.importorskip("pytorch_lightning").LightningModule):
        def configure_model(self) -> None:
            self.net = nn.Linear(self.trainer.max_steps, 3)

    with pytest.raises(UserError, match="configure_model of Lit fails without a Trainer: Runtime"):
        check_swap(Lit(), "rmsnorm", X)


# Misuse.


def test_a_failing_original_is_told_from_a_failing_swap() -> None:
    with pytest.raises(UserError) as caught:
        check_swap(Small(), "rmsnorm", torch.ones(2, 3))
    for part in (
        "the original model itself fails",
        "(float32 (2, 3); given with the model)",
        "in eval",
    ):
        assert part in str(caught.value)
    assert "mat1 and mat2 shapes" in str(caught.value)
    only_training = Small(lambda model, y: y[99] if model.training else y)
    with pytest.raises(UserError, match="the original model itself fails .*in training: IndexErr"):
        check_swap(only_training, "rmsnorm", X)


def test_what_cant_be_copied_is_refused() -> None:
    model = Small()
    model.handle = iter([1]).__iter__  # type: ignore[assignment]
    model.lock = __import__("threading").Lock()
    with pytest.raises(UserError, match="this Small can't be copied.*cannot pickle"):
        check_swap(model, "rmsnorm", X)


@pytest.mark.parametrize(
    ("make", "rules", "message"),
    [
        (Small, "rmsnrm", "did you mean rmsnorm"),
        (Small, [("nomatch", "rmsnorm")], "the pattern 'nomatch' matches no norm"),
        (lambda: nn.Linear(8, 8), "rmsnorm", "no norm of this Linear was replaced"),
        (lambda: nn.DataParallel(Small()), "rmsnorm", "wrapped by DataParallel"),
    ],
)
def test_what_swap_norms_refuses_is_refused(
    make: Callable[[], nn.Module], rules: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_swap(make(), rules, X)


def test_norms_that_are_the_wanted_ones_already_are_nothing_to_check() -> None:
    model = Small()
    swap_norms(model, "rmsnorm")
    with pytest.raises(UserError, match=r"no norm would be replaced: norm: already rmsnorm"):
        check_swap(model, "rmsnorm", X)


@pytest.mark.parametrize("when", ["original", "swapped", "copied"])
def test_running_out_of_memory_is_no_verdict(when: str) -> None:
    def full(model: Any, y: Tensor) -> Tensor:
        if when == "original" or model.swapped:
            raise torch.OutOfMemoryError("CUDA out of memory.\nMore.")
        return y

    class Uncopyable(Small):
        def __deepcopy__(self, memo: Any) -> nn.Module:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    model = Uncopyable() if when == "copied" else Small(full)
    with pytest.raises(RunError, match=r"^out of memory: CUDA out of memory\.; check a smaller"):
        check_swap(model, "rmsnorm", X)


def test_the_plain_form_is_json() -> None:
    result = check_swap(Net(), "rmsnorm", torch.randn(4, 6))
    plain = result.plain()
    assert json.loads(json.dumps(plain, allow_nan=False)) == json.loads(json.dumps(plain))
    assert [one["name"] for one in plain["report"]["replaced"]] == [
        "blocks.0.norm",
        "blocks.1.norm",
        "last",
    ]
    assert plain["checks"][0] == {"name": ALL[0], "status": "ok", "detail": "1 tensor, finite"}
    assert plain["change"] == result.change
    assert plain["passed"] is True
    result.change = float("inf")
    assert result.plain()["change"] is None
    assert "change of the output in eval: its shape, or what of it is finite" in str(result)
