"""What readers make of the norms of torch, transformers, timm, apex and Liger.

timm, apex and Liger are not installed here: classes with the same names stand in.
"""

import re
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from normtrain import build_norm, swap_norms
from normtrain.errors import UserError
from normtrain.swap import NormFacts, detect_norm, readers, register_reader
from normtrain.swap.readers import read


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers that a test registers are gone after it."""
    monkeypatch.setattr(readers, "_readers", list(readers._readers))


def _as(home: str) -> Callable[[type], type]:
    """Make a class look as if it came from another package's module."""

    def move(kind: type) -> type:
        kind.__module__ = home
        return kind

    return move


@_as("timm.layers.norm")
class RmsNorm(nn.Module):
    def __init__(self, channels: int, eps: float = 1e-6, affine: bool = True) -> None:
        super().__init__()
        self.normalized_shape, self.eps = (channels,), eps
        self.register_parameter("weight", nn.Parameter(torch.ones(channels)) if affine else None)

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, self.normalized_shape, self.weight, self.eps)


@_as("timm.layers.norm")
class RmsNorm2d(RmsNorm):
    def forward(self, x: Tensor) -> Tensor:
        v = x.pow(2).mean(1, keepdim=True)
        return x * torch.rsqrt(v + self.eps) * self.weight.view(1, -1, 1, 1)


@_as("timm.layers.norm")
class SimpleNorm(RmsNorm):
    """Divides by the deviation, mean and all: neither of the two."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.var(-1, keepdim=True) + self.eps) * self.weight


@_as("timm.layers.norm")
class TimmLayerNorm(nn.LayerNorm):
    def __init__(self, num_channels: int, eps: float = 1e-6, affine: bool = True) -> None:
        super().__init__(num_channels, eps=eps, elementwise_affine=affine)
        self._fast_norm = False

    def forward(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


@_as("timm.layers.norm")
class LayerNorm2d(TimmLayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


TimmLayerNorm.__name__ = "LayerNorm"


@_as("apex.normalization.fused_layer_norm")
class FusedLayerNorm(nn.Module):
    def __init__(self, shape: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.normalized_shape, self.eps = torch.Size([shape]), eps
        self.weight, self.bias = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("needs a GPU")


@_as("apex.normalization.fused_layer_norm")
class MixedFusedLayerNorm(FusedLayerNorm):
    pass


@_as("apex.normalization.fused_layer_norm")
class FusedRMSNorm(FusedLayerNorm):
    def __init__(self, shape: int, eps: float = 1e-5) -> None:
        super().__init__(shape, eps)
        del self.bias


@_as("apex.contrib.layer_norm.layer_norm")
class FastLayerNorm(nn.Module):
    def __init__(self, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.epsilon = eps
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.bias = nn.Parameter(torch.zeros(hidden_size))


@_as("liger_kernel.transformers.rms_norm")
class LigerRMSNorm(nn.Module):
    def __init__(
        self, size: int, eps: float = 1e-6, offset: float = 0.0, casting_mode: str = "llama"
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size) - offset)
        self.variance_epsilon, self.offset, self.casting_mode = eps, offset, casting_mode

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("needs a GPU")


@_as("liger_kernel.transformers.rms_norm")
class LigerRMSNormForGemma(LigerRMSNorm):
    def __init__(self, size: int) -> None:
        super().__init__(size, offset=1.0, casting_mode="gemma")


@_as("liger_kernel.transformers.layer_norm")
class LigerLayerNorm(nn.Module):
    def __init__(self, size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.hidden_size, self.eps, self.variance_epsilon = size, eps, eps
        self.weight, self.bias = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size))


def _hf(path: str, *args: Any, **options: Any) -> nn.Module:
    pytest.importorskip("transformers", reason="transformers is not installed")
    family, kind = path.split(".")
    module = __import__(f"transformers.models.{family}.modeling_{family}", fromlist=[kind])
    return getattr(module, kind)(*args, **options)


SIX = {"dim": 6, "offset": 0.0, "channels_first": False}
GEMMA = {"kind": "rms", "offset": 1.0, "cast": "float32-then-weight", "eps": 1e-6}
LLAMA = {"kind": "rms", "cast": "input"}
FACTS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "torch": (lambda: nn.LayerNorm(6, eps=1e-7), {"kind": "layer", "eps": 1e-7, "cast": "own"}),
    "torch-tuple": (lambda: nn.LayerNorm((6,)), {"kind": "layer"}),
    "torch-rms": (lambda: nn.RMSNorm(6, eps=1e-4), {"kind": "rms", "eps": 1e-4}),
    "torch-rms-none": (lambda: nn.RMSNorm(6), {"eps": torch.finfo(torch.float32).eps}),
    "batch": (lambda: nn.BatchNorm2d(6, eps=1e-3), {"kind": "batch", "eps": 1e-3}),
    "sync": (lambda: nn.SyncBatchNorm(6), {"kind": "batch"}),
    "ours": (lambda: build_norm("adanorm:eps=1e-6", 6), {"kind": "own", "eps": 1e-6}),
    "ours-none": (lambda: build_norm("none", 6), {"kind": "own", "eps": None, "weight": None}),
    "llama": (lambda: _hf("llama.LlamaRMSNorm", 6, eps=1e-5), LLAMA | {"eps": 1e-5}),
    "mistral": (lambda: _hf("mistral.MistralRMSNorm", 6), LLAMA),
    "qwen2": (lambda: _hf("qwen2.Qwen2RMSNorm", 6), LLAMA),
    "qwen3": (lambda: _hf("qwen3.Qwen3RMSNorm", 6), LLAMA),
    "t5": (lambda: _hf("t5.T5LayerNorm", 6), LLAMA | {"eps": 1e-6, "bias": None}),
    "olmo": (lambda: _hf("olmo.OlmoLayerNorm", 6), {"kind": "layer", "eps": 1e-5, "weight": None}),
    "olmo2": (lambda: _hf("olmo2.Olmo2RMSNorm", 6), {"kind": "rms"}),
    "gemma": (lambda: _hf("gemma.GemmaRMSNorm", 6), GEMMA),
    "gemma3": (lambda: _hf("gemma3.Gemma3RMSNorm", 6), GEMMA),
    "gemma4": (lambda: _hf("gemma4.Gemma4RMSNorm", 6), GEMMA | {"offset": 0.0}),
    "gemma4-no-gain": (
        lambda: nn.Sequential(_hf("gemma4.Gemma4RMSNorm", 6, with_scale=False))[0],
        {"reason": "the size of the axis"},
    ),
    "qwen3-next": (lambda: _hf("qwen3_next.Qwen3NextRMSNorm", 6), GEMMA),
    "nemotron": (lambda: _hf("nemotron.NemotronLayerNorm1P", 6), {"kind": "layer", "offset": 1.0}),
    "cohere": (lambda: _hf("cohere.CohereLayerNorm", 6), {"kind": "layer", "bias": None}),
    "cohere-heads": (lambda: _hf("cohere.CohereLayerNorm", (2, 6)), {"reason": "got (2, 6)"}),
    "convnext": (
        lambda: _hf("convnext.ConvNextLayerNorm", 6, data_format="channels_first"),
        {"kind": "layer", "channels_first": True, "eps": 1e-6},
    ),
    "gated": (lambda: _hf("mamba2.MambaRMSNormGated", 6, 3), {"kind": None}),
    "timm": (lambda: TimmLayerNorm(6), {"kind": "layer", "eps": 1e-6}),
    "timm-2d": (lambda: LayerNorm2d(6), {"kind": "layer", "channels_first": True}),
    "timm-rms": (lambda: RmsNorm(6), {"kind": "rms", "eps": 1e-6}),
    "timm-rms-no-gain": (lambda: RmsNorm(6, affine=False), {"kind": "rms", "weight": None}),
    "timm-rms-2d": (lambda: RmsNorm2d(6), {"kind": "rms", "channels_first": True}),
    "timm-simple": (lambda: SimpleNorm(6), {"reason": "neither LayerNorm nor RMSNorm"}),
    "apex": (lambda: FusedLayerNorm(6, 1e-6), {"kind": "layer", "eps": 1e-6}),
    "apex-mixed": (lambda: MixedFusedLayerNorm(6), {"kind": "layer"}),
    "apex-rms": (lambda: FusedRMSNorm(6), {"kind": "rms", "bias": None}),
    "apex-fast": (lambda: FastLayerNorm(6, 1e-4), {"kind": "layer", "eps": 1e-4}),
    "liger": (lambda: LigerRMSNorm(6, 1e-5), LLAMA | {"eps": 1e-5}),
    "liger-gemma": (lambda: LigerRMSNormForGemma(6), GEMMA),
    "liger-layer": (lambda: LigerLayerNorm(6), {"kind": "layer", "eps": 1e-6}),
    "several-axes": (lambda: nn.LayerNorm((2, 6)), {"reason": "normalizes 2 axes"}),
    "group": (lambda: nn.GroupNorm(2, 6), {"kind": None}),
    "linear": (lambda: nn.Linear(6, 6), {"kind": None}),
}


# Importing their modules takes seconds.
TRANSFORMERS = {
    *("llama", "mistral", "qwen2", "qwen3", "t5", "olmo", "olmo2", "gemma", "gemma3", "gemma4"),
    *("gemma4-no-gain", "qwen3-next", "nemotron", "cohere", "cohere-heads", "convnext", "gated"),
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.extended if name in TRANSFORMERS else ())
        for name in FACTS
    ],
)
def test_facts(name: str, device: str) -> None:
    build, wanted = FACTS[name]
    module = build().to(device)
    if "reason" in wanted:
        with pytest.raises(UserError, match=re.escape(wanted["reason"])):
            read(module)
        return
    facts = read(module)
    if wanted.get("kind", "") is None:
        assert facts is None
        return
    assert {key: getattr(facts, key) for key in {**SIX, **wanted}} == {**SIX, **wanted}
    for parameter in ("weight", "bias"):
        if parameter not in wanted:
            assert getattr(facts, parameter) is getattr(module, parameter, None)


@pytest.mark.usefixtures("default_kernels")
@pytest.mark.parametrize("name", ["timm", "timm-2d", "timm-rms", "timm-rms-2d"])
def test_their_replacements_compute_the_same(name: str) -> None:
    model = nn.Sequential(FACTS[name][0](), nn.Identity())
    nn.init.normal_(model[0].weight)
    x = torch.randn(2, 6, 4, 5) if FACTS[name][1].get("channels_first") else torch.randn(2, 4, 6)
    wanted = model(x)
    kind = FACTS[name][1]["kind"]
    report = swap_norms(model, {"layer": "layernorm", "rms": "rmsnorm"}[kind])
    assert not report.notes, "the norm's own call of F.layer_norm is no concern"
    assert model[0].spec.startswith(kind)
    found = model(x)
    if name.startswith("timm") and kind == "layer":
        assert torch.equal(found, wanted)
    torch.testing.assert_close(found, wanted)
    assert list(model.state_dict()) in (["0.weight", "0.bias"], ["0.weight"])


def test_gemmas_gain_is_stored_less_one() -> None:
    model = nn.Sequential(LigerRMSNormForGemma(6))
    nn.init.normal_(model[0].weight)
    stored = model[0].weight.detach().clone()
    report = swap_norms(model, "rmsnorm")
    assert torch.equal(model[0].weight, 1 + stored)
    assert report.replaced[0].note == "weight is 1 + the old one"


def test_a_trial_leaves_the_module_and_the_random_state_alone() -> None:
    module = RmsNorm(6)
    calls: list[int] = []
    module.register_forward_hook(lambda *_: calls.append(1))
    before = {k: v.clone() for k, v in module.state_dict().items()}
    state = torch.get_rng_state()
    with torch.device("meta"):
        assert detect_norm(module).kind == "rms"
    assert torch.equal(torch.get_rng_state(), state)
    assert not calls
    assert module.weight.grad is None
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


class Mine(nn.Module):
    """A third party's norm with names of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((6,), 2.0))
        self.tiny = 1e-4

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + self.tiny).rsqrt() * self.gamma


class MineToo(Mine):
    pass


class Mild(nn.Module):
    """A norm that a trial understands."""

    def __init__(self, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(6)), eps

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + self.eps).sqrt() * self.weight


@pytest.fixture
def mine() -> Callable[[Mine], NormFacts]:
    @register_reader(f"{__name__}.Mine")
    def reader(module: Mine) -> NormFacts:
        return NormFacts(6, module.tiny, module.gamma, None, kind="rms")

    return reader


def test_a_third_party_registers_a_reader(mine: Any) -> None:
    model = nn.Sequential(Mine(), MineToo())
    gamma = model[0].gamma
    x = torch.randn(3, 6)
    wanted = model(x)
    report = swap_norms(model, "rmsnorm")
    assert [one.new for one in report.replaced] == ["rmsnorm:eps=0.0001"] * 2
    assert model[0].weight is gamma
    torch.testing.assert_close(model(x), wanted)


def test_the_most_derived_class_and_then_the_last_reader_wins(mine: Any) -> None:
    register_reader(f"{__name__}.MineToo")(lambda module: None)
    assert read(MineToo()) is None
    assert read(Mine()) is not None
    register_reader(f"{__name__}.*oo")(mine)
    assert read(MineToo()) is not None


def test_a_plain_norm_needs_no_reader_of_its_own() -> None:
    with pytest.raises(UserError, match="no reader is registered for test_readers.Rms"):
        swap_norms(nn.Sequential(_named("RmsNorm")), "layernorm")
    register_reader(f"{__name__}.RmsNorm")(detect_norm)
    report = swap_norms(nn.Sequential(_named("RmsNorm")), "rmsnorm")
    assert report.replaced[0].new == "rmsnorm:eps=1e-06"


def _named(name: str) -> nn.Module:
    return type(name, (Mild,), {"__module__": __name__})()


def test_a_trial_asks_for_the_right_eps_and_place() -> None:
    class Outside(Mild):
        def forward(self, x: Tensor) -> Tensor:
            return x / (x.square().mean(-1, keepdim=True).sqrt() + self.eps) * self.weight

    class Doubled(Mild):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    class Deaf(Mild):
        def forward(self, x: Tensor) -> Tensor:
            return x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt() * self.weight

    class Gated(Mild):
        def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
            return super().forward(x)

    assert detect_norm(Mild(0.1)).eps == 0.1
    for kind, eps in ((Outside, 0.1), (Doubled, 0.1), (Deaf, 1e-6)):
        with pytest.raises(UserError, match="neither LayerNorm nor RMSNorm"):
            detect_norm(kind(eps))
    with pytest.raises(UserError, match="more than a norm"):
        detect_norm(Gated())


@pytest.mark.parametrize("path", ["RMSNorm", "", ".RMSNorm", 3])
def test_a_path_without_a_module_is_refused(path: Any) -> None:
    with pytest.raises(UserError, match=r"'package.module.Class'"):
        register_reader(path)
    with pytest.raises(UserError, match="at least one class"):
        register_reader()


def test_a_reader_that_says_nonsense_is_refused() -> None:
    for wrong in ({"kind": "l2"}, {"cast": "later"}, {"offset": 0.5}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            NormFacts(6, 1e-5, None, None, **wrong)
    register_reader(f"{__name__}.Mine")(lambda module: types.SimpleNamespace())
    with pytest.raises(UserError, match="must return NormFacts"):
        read(Mine())
