"""`check_swap`: sound models pass, faults of the swap fail, faults of the original do not."""

import copy
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from encoders import QUIET
from nets import state_of
from torch import Tensor, nn

from normtrain import swap_norms
from normtrain.cli.input_specs import generate_inputs
from normtrain.errors import RunError, UserError
from normtrain.swap.check import SwapCheck, check_swap
from normtrain.swap.check.outputs import agree, relative_difference

pytestmark = QUIET
X = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(3)) + 1
NAMES = ["train forward", "train backward", "eval forward", "eval backward", "save and load"]


class Small(nn.Module):
    """Linear, norm, linear; ``tail`` makes the output."""

    def __init__(self, tail: Callable[..., Any] = lambda model, y: y) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4)
        self.tail = tail
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)

    @property
    def swapped(self) -> bool:
        return type(self.norm) is not nn.LayerNorm

    def forward(self, x: Tensor) -> Any:
        return self.tail(self, self.last(self.norm(self.first(x))))


class Rearmed(nn.Module):
    """Enables torch's fast path again in its forward."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.encoder.layers:
            layer.activation_relu_or_gelu = 1
        return self.encoder(x)


def statuses(result: SwapCheck) -> dict[str, str]:
    assert [check.name for check in result.checks] == NAMES
    return {check.name: check.status for check in result.checks if check.status != "ok"}


@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm", "none", "dyt", "crmsnorm"])
def test_a_sound_model_passes_and_its_change_is_measured(norm: str) -> None:
    model = nn.Sequential(nn.Dropout(0.5), Small(lambda m, y: {"a": [y], "ids": y.argmax(-1)}))
    before = copy.deepcopy(model.state_dict()), state_of(model), torch.get_rng_state()
    result = check_swap(model, norm, X)
    assert statuses(result) == {}
    after = copy.deepcopy(model)
    assert result.report == swap_norms(after, norm)
    old, new = (m.eval()(X)["a"][0].double() for m in (model, after))
    assert result.change == pytest.approx(((new - old).norm() / old.norm()).item(), rel=1e-6)
    # Nothing is changed.
    assert torch.equal(torch.get_rng_state(), before[2])
    assert state_of(model) == before[1]
    assert all(torch.equal(value, before[0][key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.usefixtures("default_kernels")
def test_the_same_norm_changes_nothing_and_the_plain_form_is_json() -> None:
    result = check_swap(Small(lambda m, y: y + torch.randn_like(y)), "layernorm", X)
    assert (statuses(result), result.change) == ({}, 0)
    plain = json.loads(json.dumps(result.plain(), allow_nan=False))
    assert (plain["passed"], plain["change"]) == (True, 0)
    assert plain["checks"][0] == {"name": NAMES[0], "status": "ok", "detail": "1 output, finite"}
    result.change = float("inf")
    assert result.plain()["change"] is None
    assert "NaN/Inf" in str(result)


class _BadBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return g * float("nan")


FAULTS: dict[str, tuple[Callable[[Any, Tensor], Any], set[str]]] = {
    "nan in training": (
        lambda m, y: y / 0 if m.training else y,
        {"train forward", "train backward"},
    ),
    "raises in training": (
        lambda m, y: y[9] if m.training else y,
        {"train forward", "train backward"},
    ),
    "no gradient": (lambda m, y: y.detach(), {"train backward", "eval backward"}),
    "nan gradient": (lambda m, y: _BadBackward.apply(y), {"train backward", "eval backward"}),
    "other without gradients": (
        lambda m, y: y if torch.is_grad_enabled() else 2 * y,
        {"eval forward"},
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_swap_fails_and_one_of_the_original_is_skipped(name: str) -> None:
    fault, failing = FAULTS[name]
    result = check_swap(Small(lambda m, y: fault(m, y) if m.swapped else y), "rmsnorm", X)
    assert failing <= statuses(result).keys()
    assert set(statuses(result).values()) == {"FAILED"}
    assert result.failed == list(statuses(result))
    assert "(the original passes)" in str(result)
    result = check_swap(Small(fault), "rmsnorm", X)
    assert failing <= statuses(result).keys()
    assert set(statuses(result).values()) == {"skipped"}
    assert result.failed == []


def test_a_state_dict_that_lacks_a_key_fails() -> None:
    class Forgetful(Small):
        def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
            state = super().state_dict(*args, **kwargs)
            return {k: v for k, v in state.items() if k != "norm.weight" or not self.swapped}

    assert statuses(check_swap(Forgetful(), "rmsnorm", X)) == {"save and load": "FAILED"}


def test_torchs_fast_path_that_is_enabled_again_fails() -> None:
    assert statuses(check_swap(Rearmed(), "rmsnorm:bias=true", X)) == {"eval forward": "FAILED"}


@pytest.mark.extended
def test_a_compiled_model_is_run_eagerly() -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("compiled")

    assert statuses(check_swap(torch.compile(Small(), backend=fail), "rmsnorm", X)) == {}


@pytest.mark.extended
def test_hugging_faces_outputs_and_dummy_inputs() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 29, "n_positions": 16}
    config = transformers.GPT2Config(**sizes, bos_token_id=1, eos_token_id=1)
    result = check_swap(transformers.GPT2LMHeadModel(config), "rmsnorm")
    assert statuses(result) == {}
    assert result.inputs == "input_ids int64 (3, 5); from dummy_inputs"


# Lightning


@pytest.mark.parametrize("flavour", ["pytorch_lightning", "lightning.pytorch"])
def test_configure_model_is_called_on_the_copy_and_setup_is_not(flavour: str) -> None:
    class Lit(pytest.importorskip(flavour).LightningModule):
        example_input_array = X

        def configure_model(self) -> None:
            self.net = Small()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    model = Lit()
    result = check_swap(model, "rmsnorm")
    assert statuses(result) == {}
    assert result.inputs == "float32 (3, 5, 8); from example_input_array"
    assert result.notes == ["configure_model of Lit was called on the copy"]
    assert not hasattr(model, "net")
    Lit.configure_model = lambda self: self.trainer.max_steps
    with pytest.raises(UserError, match="configure_model of Lit fails: Runtime.*without a Trainer"):
        check_swap(Lit(), "rmsnorm")
    del Lit.configure_model
    Lit.setup = lambda self, stage: None
    with pytest.raises(UserError, match="call setup of Lit in the factory"):
        check_swap(Lit(), "rmsnorm")


# Misuse


class Uncopyable(Small):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class BrokenExample(Small):
    @property
    def example_input_array(self) -> Tensor:
        raise KeyError("size")


@pytest.mark.parametrize(
    ("make", "inputs", "text"),
    [
        (Small, torch.ones(2, 3), r"original model itself fails.*\(float32 \(2, 3\); given.*mat1"),
        (Uncopyable, X, "copying the model fails.*pickle"),
        (lambda: nn.Linear(8, 8), X, "no norm of this Linear was replaced"),
        (lambda: nn.DataParallel(Small()), X, "wrapped by DataParallel"),
        (Small, None, "--input.*example_input_array.*dummy_inputs"),
        (BrokenExample, None, "example_input_array of this BrokenExample fails: KeyError"),
        (Small, "text", "must be a tensor, a tuple or list.*got a str"),
    ],
)
def test_what_cannot_be_checked_is_refused(make: Any, inputs: Any, text: str) -> None:
    with pytest.raises(UserError, match=text):
        check_swap(make(), "rmsnorm", inputs)


def test_a_model_with_the_requested_norms_is_refused() -> None:
    model = Small()
    swap_norms(model, "rmsnorm")
    with pytest.raises(UserError, match="no norm would be replaced: norm: already rmsnorm"):
        check_swap(model, "rmsnorm", X)


def test_out_of_memory_is_not_a_failed_check() -> None:
    def full(model: Small, y: Tensor) -> Tensor:
        if model.swapped:
            raise torch.OutOfMemoryError("CUDA out of memory.\nMore.")
        return y

    with pytest.raises(RunError, match=r"^out of memory: CUDA out of memory\.; use"):
        check_swap(Small(full), "rmsnorm", X)


# Inputs and outputs


def test_generated_inputs() -> None:
    model = nn.Linear(2, 2).double()
    made, same, other = (
        generate_inputs(model, [" 90, 50 ", "ids=int:40,50:7", "x=4"], seed) for seed in (1, 1, 2)
    )
    assert str(made) == "float64 (90, 50), ids int64 (40, 50), x float64 (4,); from --input"
    assert torch.equal(made.args[0], same.args[0])
    assert not torch.equal(made.args[0], other.args[0])
    assert sorted(made.kwargs["ids"].unique().tolist()) == list(range(7))
    assert abs(made.args[0].std() - 1) < 0.05


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        *((spec, "must be a shape") for spec in ("", "2x3", "0,3", "2,3:5", "int:2,3", "float:2")),
        ("a b=2", "'a b' is not the name"),
        ("9999999999999,9999999999999", "cannot be created"),
    ],
)
def test_a_wrong_input_spec_is_refused(spec: str, text: str) -> None:
    with pytest.raises(UserError, match=text):
        generate_inputs(nn.Linear(2, 2), [spec], 0)
    with pytest.raises(UserError, match="gives x twice"):
        generate_inputs(nn.Linear(2, 2), ["x=2", "x=3"], 0)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("found", "expected", "ratio"),
    [
        ([3.0, 4.5], [3.0, 4.0], 0.5 / 5),
        ([NAN, INF, 4], [NAN, INF, 4], 0.0),
        ([NAN, 4], [1, 4], INF),
        ([INF], [-INF], INF),
        ([1.0, 2.0], [1.0], INF),
        ([1e-8], [-2e-8], 3e-5),
    ],
)
def test_relative_difference(found: Any, expected: Any, ratio: float) -> None:
    one, other = {"y": torch.tensor(found)}, {"y": torch.tensor(expected)}
    assert relative_difference(one, other) == pytest.approx(ratio, rel=1e-4)
    assert agree(one, other) is (ratio < 1e-4)
    assert not agree({}, other)
