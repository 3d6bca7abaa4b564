"""Which encoder layers lose their fast path, what that survives, and a torch without it."""

import inspect
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from encoders import (
    DIM,
    KERNEL,
    MASKS,
    PADDING,
    QUIET,
    build,
    check_contexts,
    encoder,
    in_training,
    inputs,
    put,
    swapped,
    switches,
)
from torch import Tensor, nn
from torch.nn import functional as F

from normtrain.errors import RunError
from normtrain.swap.fast_path import check_can_disable, disable_fast_path

pytestmark = QUIET


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads only get in each other's way on tensors this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_twice_changes_nothing_more() -> None:
    model, touched = swapped("rmsnorm")
    keys = list(model.state_dict())
    assert disable_fast_path(model, touched) == ["layers.0", "layers.1"]
    assert list(model.state_dict()) == keys
    before = switches(model)
    assert disable_fast_path(model, touched) == []
    assert switches(model) == before


def test_what_holds_no_new_norm_stays() -> None:
    model = nn.ModuleDict({"a": encoder(), "b": encoder(), "c": nn.LayerNorm(DIM)})
    before = switches(model["b"])
    touched = put(list(model["a"].layers), "rmsnorm:bias=true")
    model["c"] = build("rmsnorm:bias=true")
    assert disable_fast_path(model, [*touched, model["c"]]) == ["a.layers.0", "a.layers.1"]
    assert not model["a"].use_nested_tensor
    assert switches(model["b"]) == before
    assert disable_fast_path(model, []) == []


@pytest.mark.parametrize("norm", ["untouched", "as new", "final"])
def test_what_the_kernel_computes_rightly_keeps_it(norm: str) -> None:
    """Torch's LayerNorm, also where it is a new one; and the norm after the last layer."""
    model = encoder()
    touched = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
    if norm == "as new":
        touched = [nn.LayerNorm(DIM) for _ in touched]
        for layer, one, two in zip(model.layers, touched[::2], touched[1::2], strict=True):
            layer.norm1, layer.norm2 = one, two
    if norm == "final":
        model.norm = build("rmsnorm:bias=true")
        touched = [model.norm]
    before = switches(model)
    assert disable_fast_path(model, touched) == []
    assert switches(model) == before
    x = inputs()
    with mock.patch.object(torch, KERNEL, wraps=getattr(torch, KERNEL)) as kernel, torch.no_grad():
        found = model.eval()(x, src_key_padding_mask=PADDING)
    assert kernel.call_count == 2
    assert kernel.call_args.args[0].is_nested
    expected = in_training(model, x, src_key_padding_mask=PADDING)
    torch.testing.assert_close(found[~PADDING], expected[~PADDING], rtol=1e-5, atol=1e-5)


def test_a_norm_inside_another_module() -> None:
    model = encoder()
    inner = build("rmsnorm:bias=true")
    model.layers[1].norm2 = nn.Sequential(inner)
    assert disable_fast_path(model, [inner]) == ["layers.1"]
    check_contexts(model, inputs(), src_key_padding_mask=PADDING)


def test_layers_without_a_fast_path_are_not_named() -> None:
    model, touched = swapped("rmsnorm", activation=F.silu)
    assert disable_fast_path(model, touched) == []
    model = encoder()
    model.layers[1] = encoder(activation=F.silu).layers[0]
    assert disable_fast_path(model, put([model.layers[1]], "rmsnorm")) == []
    assert not model.use_nested_tensor
    check_contexts(model, inputs(), src_key_padding_mask=PADDING)


class Logged(nn.TransformerEncoderLayer):
    """A subclass whose forward is torch's with something around it."""

    def forward(self, src: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return super().forward(src, *args, **kwargs) + 1


class Plain(nn.TransformerEncoderLayer):
    """A subclass that inherits it all."""


@pytest.mark.parametrize("kind", [Logged, Plain])
@pytest.mark.parametrize("norm", ["rmsnorm:bias=true", "rmsnorm", "dyt"])
def test_subclasses(kind: type[nn.TransformerEncoderLayer], norm: str) -> None:
    made = kind(DIM, 4, 24, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(made, 2)
    assert len(disable_fast_path(model, put(list(model.layers), norm))) == 2
    for masks in MASKS.values():
        check_contexts(model, inputs(), **masks)


# What it survives.


# Another torch.


def _asks_nothing(self: nn.Module, src: Tensor, **kwargs: Any) -> Tensor:
    return src


@pytest.mark.parametrize("kind", [nn.TransformerEncoderLayer, nn.TransformerEncoder])
def test_a_torch_that_asks_for_something_else(kind: type[nn.Module]) -> None:
    """An error that says so, and nothing changed; none where there is nothing to switch off."""
    model, touched = swapped("rmsnorm")
    before = switches(model)
    with mock.patch.object(kind, "forward", _asks_nothing):
        for refuse in (disable_fast_path, check_can_disable):
            with pytest.raises(RunError, match=rf"nn\.{kind.__name__} of torch .* does not read"):
                refuse(model, touched)
        assert switches(model) == before
        other = nn.Sequential(build("rmsnorm"))
        assert disable_fast_path(nn.ModuleList([model, other]), other) == []
        check_can_disable(nn.ModuleList([model, other]), other)
    check_can_disable(model, touched)
    assert switches(model) == before


def test_this_torch_asks_for_them() -> None:
    """In this order: a norm without eps must not be looked at."""
    source = inspect.getsource(nn.TransformerEncoderLayer.forward)
    assert 0 < source.index("self.activation_relu_or_gelu") < source.index("self.norm1.eps")
    source = inspect.getsource(nn.TransformerEncoder.forward)
    assert 0 < source.index("self.use_nested_tensor") < source.index("first_layer.norm1")
