"""torch's encoders with other norms in them, and the comparison of evaluation with training."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normtrain.norms import build_norm, norm_info, norm_names

# What torch says of nested tensors, and of its RMSNorm under autocast.
QUIET = [
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
    pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight"),
]

DIM, TIME, LENGTHS = 16, 5, (5, 3)
KERNEL = "_transformer_encoder_layer_fwd"


class Uncentred(nn.LayerNorm):
    """Torch's LayerNorm by its class and attributes, but not by what it computes."""

    def forward(self, input: Tensor) -> Tensor:
        return F.rms_norm(input, self.normalized_shape, self.weight, self.eps) + self.bias


def _bias_only() -> nn.LayerNorm:
    made = nn.LayerNorm(DIM)
    made.register_parameter("weight", None)
    return made


def _patched() -> nn.LayerNorm:
    made = nn.LayerNorm(DIM)
    made.forward = lambda input: Uncentred.forward(made, input)  # type: ignore[method-assign]
    return made


def _foreign() -> dict[str, Callable[[], nn.Module]]:
    return {
        "torch RMSNorm": lambda: nn.RMSNorm(DIM),
        "torch LayerNorm, no gain": lambda: nn.LayerNorm(DIM, elementwise_affine=False),
        "torch LayerNorm, no bias": lambda: nn.LayerNorm(DIM, bias=False),
        "LayerNorm's subclass": lambda: Uncentred(DIM),
        "torch LayerNorm, bias only": _bias_only,
        "LayerNorm patched": _patched,
        "Identity": nn.Identity,
    }


def _specs() -> list[str]:
    """Every registered norm with every combination of its yes-no options, affine and bias."""
    specs = ["layernorm:eps=0.3,eps_mode=outside", "rmsnorm:bias=true,eps=0.3,eps_mode=outside"]
    for name in norm_names():
        options = norm_info(name).options
        flags = [key for key, default in options.items() if isinstance(default, bool)]
        for values in itertools.product(("true", "false"), repeat=len(flags)):
            chosen = [f"{key}={value}" for key, value in zip(flags, values, strict=True)]
            if name == "prmsnorm":  # the default's one feature of 16 may be near 0
                chosen.append("p=0.5")
            specs.append(f"{name}:{','.join(chosen)}" if chosen else name)
    return specs


SPECS = _specs()
NORMS = [*SPECS, *_foreign()]


def build(norm: str) -> nn.Module:
    """A norm with parameters that are not those it begins with."""
    made = _foreign()[norm]() if norm in _foreign() else build_norm(norm, DIM)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def put(layers: list[nn.Module], norm: str, places: tuple[str, ...] = ("norm1", "norm2")) -> list:
    """Swap norms as plainly as can be; the new ones."""
    touched = [build(norm) for _ in layers for _ in places]
    for (layer, place), new in zip(itertools.product(layers, places), touched, strict=True):
        setattr(layer, place, new)
    return touched


def encoder(
    nested: bool = True, mask_check: bool = True, layers: int = 2, **options: Any
) -> nn.TransformerEncoder:
    options = {"batch_first": True, "dropout": 0.0, "dim_feedforward": 24} | options
    layer = nn.TransformerEncoderLayer(DIM, 4, **options)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=nested, mask_check=mask_check)


def swapped(norm: str, **options: Any) -> tuple[nn.TransformerEncoder, list[nn.Module]]:
    model = encoder(**options)
    return model, put(list(model.layers), norm)


def inputs(batch_first: bool = True) -> Tensor:
    x = torch.randn(len(LENGTHS), TIME, DIM) + 1
    return x if batch_first else x.transpose(0, 1)


CAUSAL = torch.ones(TIME, TIME, dtype=torch.bool).triu(1)
PADDING = torch.arange(TIME) >= torch.tensor(LENGTHS)[:, None]
MASKS: dict[str, dict[str, Tensor]] = {
    "none": {},
    "mask": {"mask": CAUSAL},
    "padding": {"src_key_padding_mask": PADDING},
    "both": {"mask": CAUSAL, "src_key_padding_mask": PADDING},
}


@contextmanager
def autocast() -> Iterator[None]:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        yield


CONTEXTS: dict[str, Callable[[], AbstractContextManager]] = {
    "grad": nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": autocast,
}


def in_training(model: nn.Module, *args: Tensor, **kwargs: Any) -> Tensor:
    """What the model computes in training, without gradients; dropout is 0 here."""
    with torch.no_grad():
        return model.train()(*args, **kwargs)


def check_contexts(model: nn.Module, *args: Tensor, **kwargs: Any) -> None:
    """Evaluation equals training in every context."""
    expected = in_training(model, *args, **kwargs)
    with autocast():
        halved = model.train()(*args, **kwargs).float()
    model.eval()
    for name, context in CONTEXTS.items():
        with context():
            found = model(*args, **kwargs)
        if name == "autocast":  # bfloat16 is good for about 0.4 % in each product
            assert (found.float() - halved).norm() < 0.02 * halved.norm(), name
        else:
            torch.testing.assert_close(
                found, expected, rtol=1e-5, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}"
            )


def switches(model: nn.Module) -> list[tuple[Any, Any]]:
    names = ("activation_relu_or_gelu", "use_nested_tensor")
    return [tuple(vars(module).get(name) for name in names) for module in model.modules()]
