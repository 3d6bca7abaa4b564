"""Activation checkpointing: the same bits, less kept for the backward pass, nothing done twice."""

import copy
from typing import Any

import pytest
import torch
from tiny import batch, causal_of, model_of
from torch import Tensor, nn

from normtrain.models.blocks import Stack
from normtrain.models.embedding import TokenModel
from normtrain.models.recompute import Recompute, _call
from normtrain.norms import L1BatchNorm1d

NORMS = ("layernorm", "rmsnorm", "adanorm", "prmsnorm", "topknorm", "dyt", "none")
DROPOUTS = {"dropout": 0.2, "attention_dropout": 0.1, "activation_dropout": 0.1}


def recompute(model: TokenModel, compile: bool = False) -> TokenModel:
    for part in model.modules():
        if isinstance(part, Stack):
            part.recompute = Recompute(compile=compile)
    return model


def built(kind: str, **changes: Any) -> TokenModel:
    return model_of(word_dropout=0.2, **changes) if kind == "both" else causal_of(**changes)


def loss_of(model: TokenModel, kind: str, half: bool = False) -> Tensor:
    source, target = batch([(7, 5), (4, 6), (6, 6)])
    tokens = (source, target) if kind == "both" else (target,)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        logits = model(*tokens)
    return nn.functional.cross_entropy(logits.float().flatten(0, 1), target.flatten())


def trained(model: TokenModel, kind: str, half: bool = False) -> list[Tensor]:
    """Losses and gradients of a few steps, then the weights."""
    torch.manual_seed(3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    found = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = loss_of(model, kind, half)
        loss.backward()
        optimizer.step()
        found += [loss.detach(), *(p.grad.clone() for p in model.parameters())]
    return [*found, *(p.detach() for p in model.parameters())]


def assert_equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert torch.equal(a, b), index


@pytest.mark.extended
@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", ["both", "causal"])
def test_training_is_bitwise_identical(kind: str, norm: str, half: bool) -> None:
    plain = built(kind, norm=norm, qk_norm="rmsnorm", **DROPOUTS)
    again = recompute(copy.deepcopy(plain))
    assert_equal(trained(again, kind, half), trained(plain, kind, half))


@pytest.mark.parametrize("placement", ["post", "sandwich"])
def test_every_placement_is_bitwise_identical(placement: str) -> None:
    plain = built("both", norm="rmsnorm", placement=placement, **DROPOUTS)
    again = recompute(copy.deepcopy(plain))
    assert_equal(trained(again, "both"), trained(plain, "both"))


def kept_bytes(model: TokenModel, kind: str) -> int:
    """What one forward pass keeps for the backward pass, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loss_of(model, kind)
    # The layers' inputs are held by the checkpoints themselves, and pass no hook.
    stacks = [part for part in model.modules() if isinstance(part, Stack) and part.recompute]
    held = sum(len(stack.layers) for stack in stacks) * 3 * 7 * 16 * 4
    assert loss.requires_grad
    return sum(kept.values()) + held


@pytest.mark.parametrize("kind", ["both", "causal"])
def test_less_is_kept_for_the_backward_pass(kind: str) -> None:
    depth = {"encoder_layers": 6, "decoder_layers": 6} if kind == "both" else {"layers": 6}
    model = built(kind, norm="rmsnorm", **depth, **DROPOUTS)
    whole = kept_bytes(model, kind)
    assert kept_bytes(recompute(model), kind) < whole / 4


def test_evaluation_and_gradient_free_passes_run_once() -> None:
    model = recompute(causal_of())
    calls: list[int] = []
    model.decoder.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        loss_of(model, "causal")
    model.eval()
    loss_of(model, "causal").backward()
    assert len(calls) == 2
    model.train()
    loss_of(model, "causal").backward()
    assert len(calls) == 4


class WithBuffers(nn.Module):
    """A layer around a norm that keeps running statistics."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.inner, self.norm, self.outer = nn.Linear(8, 8), norm, nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.norm(self.inner(x)).relu())


class Spectral(nn.Module):
    """A norm whose output depends on a buffer that it has just changed."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        self.scale.mul_(0.5).add_(x.detach().std())
        return x / self.scale.clone()


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm1d(8), L1BatchNorm1d(8), L1BatchNorm1d(8, momentum=None), Spectral()],
    ids=["torch", "l1", "l1-cumulative", "spectral"],
)
def test_running_statistics_change_once(norm: nn.Module) -> None:
    plain = WithBuffers(norm)
    again = copy.deepcopy(plain)
    buffers = dict(again.named_buffers())
    for step in range(3):
        x = torch.randn(6, 8, generator=torch.Generator().manual_seed(step))
        (plain(x).square().sum()).backward()
        loss = Recompute()(again, x).square().sum()
        loss.backward(retain_graph=True)
        if step == 0:
            first = [p.grad.clone() for p in again.parameters()]
            again.zero_grad()
            loss.backward()  # a kept graph runs the layer a third time
            assert_equal([p.grad for p in again.parameters()], first)
    assert_equal(list(again.buffers()), list(plain.buffers()))
    assert_equal([p.grad for p in again.parameters()], [p.grad for p in plain.parameters()])
    assert all(buffers[name] is tensor for name, tensor in again.named_buffers())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["both", "causal"])
def test_compiled_layers_are_recomputed_too(kind: str) -> None:
    """Bit-equal to the same compiled layers run once; what a compiler makes of code is its own."""
    plain = built(kind, norm="rmsnorm", **DROPOUTS)
    again = recompute(copy.deepcopy(plain))
    compiled = torch.compile(_call, backend="aot_eager", dynamic=True)
    for model, run in ((plain, compiled), (again, Recompute())):
        for stack in (part for part in model.modules() if isinstance(part, Stack)):
            stack.recompute = run
    run._call = compiled
    assert_equal(trained(again, kind), trained(plain, kind))
