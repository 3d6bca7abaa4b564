"""torch's encoder layers compute in evaluation what they compute in training, whatever the norm."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from encoders import (
    CAUSAL,
    KERNEL,
    MASKS,
    NORMS,
    PADDING,
    QUIET,
    check_contexts,
    encoder,
    in_training,
    inputs,
    put,
    swapped,
)
from torch import nn
from torch.nn import functional as F

from normtrain.swap.fast_path import disable_fast_path

pytestmark = QUIET


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads only get in each other's way on tensors this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.extended
@pytest.mark.parametrize("places", [("norm1",), ("norm2",), ("norm1", "norm2")], ids="+".join)
@pytest.mark.parametrize("norm", NORMS)
def test_evaluation_equals_training(norm: str, places: tuple[str, ...]) -> None:
    activations = ("relu", "gelu", F.silu)  # the kernel knows the first two
    for batch_first, first, activation, nested in itertools.product(
        (True, False), (True, False), activations, (True, False)
    ):
        if not nested and (first or not batch_first):
            continue  # torch makes no nested tensor there anyway
        if not batch_first and activation == "gelu":
            continue  # as relu: the kernel takes no such batch at all
        options = {"batch_first": batch_first, "norm_first": first, "activation": activation}
        model = encoder(nested, layers=1, **options)
        disable_fast_path(model, put(list(model.layers), norm, places))
        x = inputs(batch_first)
        for masks in MASKS.values():
            check_contexts(model, x, **masks)


@pytest.mark.parametrize("norm", NORMS)
def test_a_layer_by_itself(norm: str) -> None:
    layer = encoder().layers[0]
    assert disable_fast_path(layer, put([layer], norm)) == [""]
    x = inputs()
    check_contexts(layer, x)
    check_contexts(layer, x[0])
    check_contexts(layer, x, src_mask=CAUSAL, is_causal=True)
    check_contexts(layer, x, src_key_padding_mask=PADDING)


LEFT = PADDING.flip(1)
FLOATS = torch.zeros(PADDING.shape).masked_fill(PADDING, float("-inf"))


@pytest.mark.extended
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("at", [0, 1])
def test_one_layer_of_an_encoder(norm: str, at: int) -> None:
    """The other keeps its fast path, and gets no nested tensor."""
    model = encoder()
    assert disable_fast_path(model, put([model.layers[at]], norm)) == [f"layers.{at}"]
    assert model.layers[1 - at].activation_relu_or_gelu == 1
    for masks in MASKS.values():
        check_contexts(model, inputs(), **masks)
    with mock.patch.object(torch, KERNEL, wraps=getattr(torch, KERNEL)) as kernel, torch.no_grad():
        model.eval()(inputs(), **MASKS["padding"])
    assert kernel.call_count == 1


def test_hooks_on_the_norms_change_nothing() -> None:
    """With hooks torch skips the kernel, but not the nested tensors."""
    for norm in ("rmsnorm", "rmsnorm:bias=true", "layernorm"):
        model, touched = swapped(norm)
        for new in touched:
            new.register_forward_hook(lambda *_: None)
        if norm == "rmsnorm:bias=true":
            with torch.no_grad(), pytest.raises(RuntimeError, match="Nested"):
                model.eval()(inputs(), src_key_padding_mask=PADDING)
        disable_fast_path(model, touched)
        check_contexts(model, inputs(), src_key_padding_mask=PADDING)


def test_rows_whose_squares_overflow() -> None:
    """Here this package's LayerNorm differs from the kernel's, so it is called itself."""
    model, touched = swapped("layernorm")
    x = inputs()
    with torch.no_grad():
        model.layers[0].self_attn.out_proj.weight.mul_(1e25)
        expected = in_training(model, x)
        kernel = model.eval()(x)
        assert not torch.allclose(kernel, expected, atol=0.1)
        disable_fast_path(model, touched)
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


# What fails without it: if torch changes so that these no longer fail, the file is not needed.


@pytest.mark.extended
def test_failure_1_without_it_layernorm_is_computed_silently() -> None:
    """Norms with eps, weight and bias."""
    silent = 0
    for norm, padded in itertools.product(NORMS, (False, True)):
        model, touched = swapped(norm)
        parts = [getattr(touched[0], part, None) for part in ("eps", "weight", "bias")]
        if any(part is None for part in parts) or norm == "layernorm:bias=true":
            continue
        x, masks = inputs(), MASKS["padding" if padded else "none"]
        expected = in_training(model, x, **masks)
        with torch.no_grad():
            wrong = model.eval()(x, **masks)
        keep = ~PADDING if padded else ...
        assert (wrong - expected)[keep].abs().max() > 0.01, norm
        assert len(disable_fast_path(model, touched)) == 2
        with torch.no_grad():
            torch.testing.assert_close(model(x, **masks), expected, rtol=1e-5, atol=1e-5)
        silent += 1
    assert silent >= 16


@pytest.mark.extended
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    "norm", ["rmsnorm", "adanorm", "dyt", "none", "torch RMSNorm", "torch LayerNorm, no gain"]
)
def test_failure_2_without_it_evaluation_crashes(norm: str, padded: bool) -> None:
    """Norms that lack one of them: training works, the first evaluation doesn't."""
    model, touched = swapped(norm)
    x, masks = inputs(), MASKS["padding" if padded else "none"]
    in_training(model, x, **masks)
    with torch.no_grad(), pytest.raises(AttributeError, match=r"eps|weight|bias|device"):
        model.eval()(x, **masks)
    disable_fast_path(model, touched)
    check_contexts(model, x, **masks)


def test_without_it_no_encoder_can_be_built_around_a_layer() -> None:
    layer = encoder().layers[0]
    touched = put([layer], "dyt")
    with pytest.raises(AttributeError, match="eps"):
        nn.TransformerEncoder(layer, 2)
    disable_fast_path(layer, touched)
    around = nn.TransformerEncoder(layer, 2)
    assert not around.use_nested_tensor
    check_contexts(around, inputs(), src_key_padding_mask=PADDING)
