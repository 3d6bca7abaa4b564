"""torch's encoder layers compute in evaluation what they compute in training, whatever the norm."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from encoders import CAUSAL, MASKS, NORMS, PADDING, QUIET, check_contexts, encoder, inputs, put
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


# What fails without it: if torch changes so that these no longer fail, the file is not needed.
