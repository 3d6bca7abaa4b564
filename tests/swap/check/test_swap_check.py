"""`check_swap`: sound models pass, nothing is changed, and misuse is told from failure."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from checked import ALL, PADDING, Small, X, assert_sound, encoder, outcome
from encoders import QUIET
from nets import Net, state_of
from torch import Tensor, nn
from torch.nn import functional as F

from normtrain import swap_norms
from normtrain.errors import RunError, UserError
from normtrain.swap.check import check_swap

pytestmark = QUIET


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


@pytest.mark.usefixtures("default_kernels")
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


@pytest.mark.usefixtures("default_kernels")
def test_a_model_that_draws_in_eval_draws_the_same_each_time() -> None:
    model = Small(lambda model, y: y + torch.randn_like(y) + np.random.rand() + random.random())
    result = check_swap(model, "layernorm", X)
    assert_sound(result, "eval as in training")
    assert result.change == 0


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


# Nothing changes.


def _raising(model: Small, y: Tensor) -> Tensor:
    if model.swapped:
        raise AttributeError("no such thing")
    return y


def generators() -> list[Any]:
    return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]


@pytest.mark.parametrize("tail", [lambda model, y: y, _raising])
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
    assert str(caught.value).endswith("; --input gives others")
    with pytest.raises(UserError, match=r"\(2x3 and 8x8\) \(\S+:\d+\)$"):
        check_swap(Small(), "rmsnorm", specs=["2,3"])
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
