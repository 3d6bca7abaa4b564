"""Norms that are shared, held elsewhere or can't be replaced, and code that reads them."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from nets import Block, Net, names_of, small, state_of
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

from normtrain import build_norm, norm_names, swap_norms
from normtrain.errors import RunError, UserError
from normtrain.norms import LayerNorm, RMSNorm
from normtrain.swap import fast_path as fastpath

# Sharing


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        norm = nn.LayerNorm(6)
        self.a, self.b = nn.Sequential(nn.Linear(6, 6), norm), nn.Sequential(norm)
        self.again = norm
        self._kept = [{"norm": norm}]
        self._method = [norm.forward]
        self._bound = functools.partial(functional.relu, norm)
        object.__setattr__(self, "hidden", norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


def test_one_norm_in_several_places_stays_one() -> None:
    model = Shared()
    report = swap_norms(model, "rmsnorm")
    assert model.a[1] is model.b[0] is model.again
    assert type(model.again) is RMSNorm
    assert names_of(report) == ["a.1"]
    assert report.replaced[0].note == "bias dropped; also at b.0, again"
    for attribute in ("_kept", "_method", "_bound", "hidden"):
        assert sum(note.startswith(f"{attribute} still holds") for note in report.notes) == 1


def test_a_shared_norm_is_found_by_any_of_its_names() -> None:
    model = Shared()
    swap_norms(model, [("again", "rmsnorm")])
    assert model.a[1] is model.b[0] is model.again
    with pytest.raises(UserError, match=r"a\.1 and b\.0 are one module"):
        swap_norms(model, [("a.*", "layernorm"), ("b.*", "adanorm")])


def test_a_shared_layer() -> None:
    block = Block()
    model = nn.Sequential(block, nn.Sequential(block))
    report = swap_norms(model, [("1.0.*", "rmsnorm")])
    assert type(block.norm) is RMSNorm
    assert names_of(report) == ["0.norm"]


@pytest.mark.extended
def test_compiled_models_go_by_their_own_names() -> None:
    model = torch.compile(Net(), backend="eager")
    model.get_submodule("blocks.0").compile(backend="eager")
    assert names_of(swap_norms(model, [("blocks.0.norm", "rmsnorm")])) == ["blocks.0.norm"]
    assert type(model._orig_mod.blocks[0].norm) is RMSNorm
    inner = nn.Sequential(torch.compile(Block(), backend="eager"))
    assert names_of(swap_norms(inner, "rmsnorm")) == ["0.norm"]
    x = torch.randn(2, 6)
    torch.testing.assert_close(inner(x), inner[0]._orig_mod(x))


# What is refused: and then nothing is changed


class Activated(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class FullyShardedDataParallel(nn.Sequential):
    """Stands for torch's first kind, which wants devices."""

    __module__ = "torch.distributed.fsdp.fully_sharded_data_parallel"


class Asks(Block):
    """As several models of Hugging Face do."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.norm.weight.dtype))


class Computes(Block):
    def forward(self, x: Tensor) -> Tensor:
        norm = functional.layer_norm(x, (6,), self.norm.weight, None, self.norm.eps)
        return x + self.linear(norm) if self.norm.bias is not None else norm


class AsksBelow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block()])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[0](x.to(dtype=self.layers[0].norm.weight.dtype))


def _patched() -> nn.Module:
    model = small()
    model[1].forward = functools.partial(model[1].forward)
    return model


def _pruned() -> nn.Module:
    model = small()
    prune.l1_unstructured(model[1], "weight", 2)
    return model


def _parametrized() -> nn.Module:
    model = small()
    parametrizations.weight_norm(model[1], "weight", dim=None)
    return model


REFUSED: dict[str, tuple[Callable[[], nn.Module], Any, dict[str, Any], str]] = {
    "no-norm": (lambda: nn.Sequential(nn.Linear(6, 6)), "rmsnorm", {}, "it contains no norm"),
    "itself": (lambda: nn.LayerNorm(6), "rmsnorm", {}, "is itself a LayerNorm"),
    "only-others": (
        lambda: small(nn.GroupNorm(2, 6)),
        "rmsnorm",
        {},
        "no reader is registered for",
    ),
    "filtered": (Net, "rmsnorm", {"filter_fn": lambda m, n: False}, "filter_fn returned false"),
    "not-in-batch": (lambda: small(nn.BatchNorm1d(6)), "rmsnorm", {}, "normalizes over the batch"),
    "not-in-layer": (small, "l1batchnorm", {}, "can only replace a BatchNorm"),
    "several-axes": (lambda: small(nn.LayerNorm((2, 6))), "rmsnorm", {}, "normalizes 2 axes"),
    "pattern": (Net, [("block.*", "rmsnorm")], {}, r"'block\.\*' matches no norm.*blocks\.0\.norm"),
    "two-patterns": (Net, [("x", "none"), ("last", "none"), ("y", "none")], {}, "'x'.*'y'"),
    "norm": (Net, "rmsnom", {}, "did you mean rmsnorm"),
    "batch-norm": (Net, "l1batchnom", {}, "did you mean l1batchnorm"),
    "option": (Net, "rmsnorm:epz=1", {}, "unknown option of rmsnorm"),
    "batch-option": (Net, "l1batchnorm:k=3", {}, "has no options"),
    "topk-option": (Net, "topkbatchnorm:k=0", {}, "an integer >= 1"),
    "pair": (Net, ["rmsnorm"], {}, "PATTERN=NORM"),
    "two-strings": (Net, ("blocks.*", "rmsnorm"), {}, "PATTERN=NORM"),
    "empty": (Net, [], {}, r"a list of \(pattern, norm\) pairs"),
    "dict": (Net, {"*": "rmsnorm"}, {}, r"a list of \(pattern, norm\) pairs"),
    "init": (Net, "rmsnorm", {"init": "old"}, "'keep' or 'fresh'"),
    "eps-0": (lambda: small(nn.LayerNorm(6), nn.LayerNorm(6, eps=0)), "rmsnorm", {}, "2 cannot"),
    "eps-wrong": (Net, [("blocks.0*", "none"), ("last", "rmsnorm:eps=-1")], {}, "eps must be > 0"),
    "patched": (_patched, "rmsnorm", {}, "the forward of 1 is patched"),
    "compiled": (
        lambda: small(torch.compile(nn.LayerNorm(6))),
        "rmsnorm",
        {},
        "1 is compiled by itself.*before torch.compile",
    ),
    "compiled-itself": (lambda: torch.compile(nn.LayerNorm(6)), "rmsnorm", {}, "compiled by itse"),
    "pruned": (_pruned, "rmsnorm", {}, "the weight of 1 is parametrized, pruned"),
    "parametrized": (_parametrized, "rmsnorm", {}, "the weight of 1 is parametrized, pruned"),
    "activated": (lambda: small(Activated(6)), "l1batchnorm", {}, "a Activated, not one of"),
    "lazy": (lambda: small(nn.LazyBatchNorm1d()), "l1batchnorm", {}, "of unknown size"),
    "asks": (lambda: nn.Sequential(Block(), Asks()), "adanorm", {}, r"Asks reads self\.norm\.wei"),
    "asks-below": (AsksBelow, "none", {}, r"AsksBelow reads self\.layers\[0\]\.norm\.weight\.dtyp"),
    "fsdp-1": (
        lambda: nn.Sequential(FullyShardedDataParallel(Block())),
        "rmsnorm",
        {},
        "0 is wrapped by FullyShardedDataParallel",
    ),
    "data-parallel": (lambda: nn.DataParallel(Net()), "rmsnorm", {}, "wrapped by DataParallel"),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.extended if "compiled" in n else ()) for n in REFUSED],
)
def test_refused_and_nothing_changed(name: str) -> None:
    build, rules, options, message = REFUSED[name]
    model = build()
    before = state_of(model)
    with pytest.raises(UserError, match=message):
        swap_norms(model, rules, **options)
    assert state_of(model) == before


def test_no_model() -> None:
    with pytest.raises(UserError, match="must be a torch.nn.Module"):
        swap_norms(Net, "rmsnorm")  # type: ignore[arg-type]


def test_scripted_models_are_refused() -> None:
    with pytest.warns(DeprecationWarning, match="script"):
        model = torch.jit.script(small())
    with pytest.raises(UserError, match="is scripted"):
        swap_norms(model, "rmsnorm")


def test_not_strict() -> None:
    model = Net()
    report = swap_norms(model, [("block.*", "rmsnorm"), ("last", "none")], strict=False)
    assert names_of(report) == ["last"]
    assert report.notes[0].startswith("the pattern 'block.*' matches no norm")
    empty = swap_norms(nn.Sequential(nn.Linear(2, 2)), "rmsnorm", strict=False)
    assert (empty.replaced, empty.skipped, empty.notes) == ([], [], [])
    assert str(empty) == "nothing replaced"


@pytest.fixture
def one_rank(tmp_path: Any) -> Any:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.extended
def test_wrapped_and_sharded_models_are_refused(one_rank: None) -> None:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor, Replicate, distribute_tensor, init_device_mesh

    parallel = nn.Sequential(nn.parallel.DistributedDataParallel(Net()))
    with pytest.raises(UserError, match="0 is wrapped by DistributedDataParallel.*before wrapping"):
        swap_norms(parallel, "rmsnorm")
    mesh = init_device_mesh("cpu", (1,))
    sharded = small()
    fully_shard(sharded[0], mesh=mesh)
    before = state_of(sharded)
    with pytest.raises(UserError, match="0.weight is sharded already.*before fully_shard"):
        swap_norms(sharded, "rmsnorm")
    assert state_of(sharded) == before
    tensor = small()
    weight = distribute_tensor(tensor[0].weight.detach(), mesh, [Replicate()])
    tensor[0].weight = nn.Parameter(weight)
    assert isinstance(tensor[0].weight, DTensor)
    with pytest.raises(UserError, match=r"0\.weight is sharded already"):
        swap_norms(tensor, "rmsnorm")


# What other code does with the norms


def test_what_asks_for_the_dtype_of_a_gain_may_keep_asking() -> None:
    model = Asks()
    assert swap_norms(model, "rmsnorm").notes == []
    assert model(torch.randn(2, 6)).isfinite().all()


def test_functional_norms_and_reads_of_values_are_noted() -> None:
    model = nn.Sequential(Computes(), Computes(), Block())
    report = swap_norms(model, "rmsnorm")
    assert len(report.replaced) == 3
    assert report.notes[0].startswith(
        "Computes (2 in the model) calls functional.layer_norm itself"
    )
    assert "Computes reads self.norm.weight of 0.norm itself" in report.notes[1]
    # comparing the bias with None is as well answered by a norm without
    assert not any("bias" in note for note in report.notes)

    class Bare(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.rms_norm(x, (6,))

    with pytest.raises(UserError, match=r"Bare \(1 in the model\) calls torch.nn.functional.rms_n"):
        swap_norms(nn.Sequential(Bare()), "rmsnorm")


def test_torchs_fast_path_is_switched_off_and_noted() -> None:
    layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, dropout=0)
    model = nn.TransformerEncoder(layer, 1).eval()
    report = swap_norms(model, "rmsnorm:bias=true")
    assert report.notes == ["layers.0 no longer uses torch's fast path in eval"]
    x = torch.randn(2, 3, 6)
    with torch.no_grad():
        torch.testing.assert_close(model(x), model.train()(x))


def test_another_torchs_fast_path_is_refused_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastpath, "_LAYER_SWITCH", "another_name")
    model = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
    before = state_of(model)
    with pytest.raises(RunError, match="another_name"):
        swap_norms(model, "rmsnorm")
    assert state_of(model) == before


def test_no_norm_of_this_package_is_a_layernorm_of_torch() -> None:
    for name in norm_names():
        assert not isinstance(build_norm(name, 6), nn.LayerNorm | nn.RMSNorm), name
    assert not issubclass(LayerNorm, nn.LayerNorm)
