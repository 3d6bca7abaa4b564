"""Swapping norms in place: what is found, what is carried over, what is reported."""

import copy
import functools
import pickle
from typing import Any

import pytest
import torch
from nets import NORMS, Net, names_of, small, state_of
from torch import Tensor, nn

import normtrain
from normtrain import NormRules, NormSpec, build_norm, norm_names, swap_norms
from normtrain.norms import L1BatchNorm2d, LInfBatchNorm1d, RMSNorm, TopKBatchNorm2d, registry

# What is found, and which norm goes where


def test_one_norm_for_all() -> None:
    model = Net()
    report = swap_norms(model, "RMS_norm")
    assert names_of(report) == NORMS
    assert all(type(model.get_submodule(name)) is RMSNorm for name in NORMS)
    assert [one.new for one in report.replaced] == ["rmsnorm:eps=1e-06"] * 2 + ["rmsnorm:eps=1e-05"]
    skipped = dict(report.skipped)
    assert skipped.keys() == {"batch", "group"}
    assert "it can become l1batchnorm" in skipped["batch"]
    assert "normalization.GroupNorm; add one with" in skipped["group"]
    assert model(torch.randn(4, 6)).isfinite().all()


@pytest.mark.parametrize(
    ("rules", "wanted"),
    [
        ([("blocks.*", "rmsnorm")], ["rmsnorm", "rmsnorm", None]),
        ([["*", "rmsnorm"], ["blocks.1.*", "adanorm:k=0.2"]], ["rmsnorm", "adanorm", "rmsnorm"]),
        ([("blocks.1.*", "adanorm"), ("*", "rmsnorm")], ["rmsnorm"] * 3),
        (["blocks.?.norm=dyt:bias=false", "last=none"], ["dyt", "dyt", "none"]),
        ([("last", NormSpec("prmsnorm", {"p": 0.5}))], [None, None, "prmsnorm"]),
        (NormSpec("scalenorm"), ["scalenorm"] * 3),
        (NormRules.of("rmsnorm", [("last", "none")]), ["rmsnorm", "rmsnorm", "none"]),
    ],
)
def test_rules(rules: Any, wanted: list[str | None]) -> None:
    model = Net()
    report = swap_norms(model, rules)
    found = [getattr(model.get_submodule(name), "spec", None) for name in NORMS]
    assert [spec and spec.partition(":")[0] for spec in found] == wanted
    left = [name for name, reason in report.skipped if reason == "no rule matches"]
    assert [name for name in NORMS if name in left] == [
        name for name, spec in zip(NORMS, wanted, strict=True) if spec is None
    ]


def test_filter() -> None:
    model = Net()
    seen = []

    def chosen(module: nn.Module, name: str) -> bool:
        seen.append((type(module), name))
        return name != "last"

    report = swap_norms(model, "rmsnorm", filter_fn=chosen)
    assert names_of(report) == NORMS[:2]
    assert ("last", "filter_fn returned false") in report.skipped
    assert seen[:3] == [(nn.LayerNorm, name) for name in NORMS]


def test_twice_is_once() -> None:
    model = Net()
    for rules in ("rmsnorm", [("*", "rmsnorm"), ("last", "layernorm:eps=1e-3")]):
        assert swap_norms(model, rules).replaced
        before = state_of(model)
        again = swap_norms(model, rules)
        assert not again.replaced
        assert sum(reason.startswith("already") for _, reason in again.skipped) == 3
        assert state_of(model) == before
    biasless = small(nn.LayerNorm(6, bias=False))
    swap_norms(biasless, "layernorm")
    assert swap_norms(biasless, "layernorm").skipped == [("1", "already layernorm:bias=false")]


def test_our_own_norms_are_replaced_too() -> None:
    model = small(*(build_norm(name, 6) for name in norm_names()))
    report = swap_norms(model, "rmsnorm:eps=1e-4")
    assert len(report.replaced) == len(norm_names())
    assert all(type(module) is RMSNorm and module.eps == 1e-4 for module in model[1:])


def test_a_model_of_this_package_knows_its_norms() -> None:
    from normtrain.models import CausalLM, norm_sites
    from normtrain.models.config import CausalLMConfig

    config = CausalLMConfig(norm="layernorm", d_model=8, heads=2, d_ff=12, layers=2)
    model = CausalLM(config, 11)
    swap_norms(model, [("*", "rmsnorm"), ("decoder.norm", "adanorm")])
    built = {name: str(model.norms.spec_for(name)) for name in norm_sites(model)}
    assert built == {name: model.get_submodule(name).spec for name in norm_sites(model)}
    assert built["decoder.norm"] == "adanorm"


def test_a_third_partys_norm_goes_in_and_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))

    @normtrain.register_norm("half-norm")
    class HalfNorm(nn.Module):
        def __init__(self, dim: int, *, eps: float = 1e-3, share: float = 0.5) -> None:
            super().__init__()
            self.dim, self.eps, self.kept = dim, eps, share
            self.weight, self.start = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight

    model = small().double()
    weight = model[1].weight
    report = swap_norms(model, "half-norm:share=0.2")
    assert report.replaced[0].new == "half-norm:eps=1e-05,share=0.2"
    assert report.replaced[0].note == "start is new; bias dropped"
    assert model[1].weight is weight
    assert model[1].start.dtype == torch.float64
    assert swap_norms(model, "half-norm:share=0.2").skipped[0][1].startswith("already")
    model[1] = HalfNorm(6)  # not told from its attributes which share it has
    assert swap_norms(model, "half-norm").replaced[0].old == "HalfNorm"
    assert swap_norms(model, "rmsnorm").replaced[0].note == "start dropped"


# What is carried over


def test_parameters_are_the_same_objects() -> None:
    model = Net()
    before = dict(model.named_parameters())
    report = swap_norms(model, "layernorm")
    after = dict(model.named_parameters())
    assert list(before) == list(after)
    assert all(after[name] is before[name] for name in before)
    assert {one.note for one in report.replaced} == {""}


def test_tied_parameters_stay_tied() -> None:
    model = small(nn.LayerNorm(6), nn.LayerNorm(6))
    model[2].weight = model[1].weight
    model[0].bias = model[1].bias
    for init in ("keep", "fresh"):
        swap_norms(model, "rmsnorm" if init == "keep" else "l1norm", init=init)
        assert model[1].weight is model[2].weight


def test_init_fresh() -> None:
    model = small()
    nn.init.normal_(model[1].weight)
    old = model[1].weight
    model[1].bias.requires_grad_(False)
    report = swap_norms(model, "l1norm", init="fresh")
    assert torch.equal(model[1].weight, torch.ones(6))
    assert model[1].weight is not old
    assert not torch.equal(old, torch.ones(6)), "the old values were overwritten"
    assert [p.requires_grad for p in model[1].parameters()] == [True, False]
    assert report.replaced[0].parameters_after == 12


@pytest.mark.parametrize(
    ("old", "spec", "note"),
    [
        (nn.LayerNorm(6), "rmsnorm", "bias dropped"),
        (nn.LayerNorm(6), "adanorm", "weight dropped; bias dropped"),
        (nn.LayerNorm(6), "scalenorm", "weight is new; bias dropped"),
        (nn.LayerNorm(1), "scalenorm", "weight is new; bias dropped"),
        (nn.LayerNorm(6), "dyt", "alpha is new"),
        (nn.RMSNorm(6, eps=1e-6), "layernorm", "bias is new"),
        (nn.RMSNorm(6), "rmsnorm", "eps=None read as 1.19e-07, that of float32"),
        (nn.LayerNorm(6, elementwise_affine=False), "layernorm", "weight is new"),
        (nn.LayerNorm(6, elementwise_affine=False), "rmsnorm", ""),
        (build_norm("dyt", 6), "derf", "shift is new"),
        (build_norm("scalenorm", 6), "rmsnorm", "weight is new"),
    ],
)
def test_what_is_not_carried_is_named(old: nn.Module, spec: str, note: str) -> None:
    model = small(copy.deepcopy(old))
    assert swap_norms(model, spec).replaced[0].note == note
    kept = set(dict(old.named_parameters())) & set(dict(model[1].named_parameters()))
    for name in kept - {part.split()[0] for part in note.split("; ") if "new" in part}:
        assert torch.equal(model[1].get_parameter(name), old.get_parameter(name))


@pytest.mark.parametrize(
    ("old", "rules", "wanted"),
    [
        (nn.LayerNorm(6, eps=1e-12), "layernorm", "layernorm:eps=1e-12"),
        (nn.LayerNorm(6, eps=1e-12), "layernorm:eps=1e-5", "layernorm:eps=1e-05"),
        (nn.LayerNorm(6, eps=1e-12), NormSpec("layernorm", {"eps": 1e-3}), "layernorm:eps=0.001"),
        (nn.LayerNorm(6, bias=False), "layernorm", "layernorm:bias=false,eps=1e-05"),
        (nn.LayerNorm(6, bias=False), "layernorm:bias=true", "layernorm:bias=true,eps=1e-05"),
        (nn.LayerNorm(6, elementwise_affine=False), "rmsnorm", "rmsnorm:affine=false,eps=1e-05"),
        (nn.RMSNorm(6, eps=1e-6), "layernorm", "layernorm:eps=1e-06"),
        (nn.LayerNorm(6), "dyt:alpha_init=0.8", "dyt:alpha_init=0.8"),
    ],
)
def test_eps_and_doing_without_are_carried(old: nn.Module, rules: Any, wanted: str) -> None:
    model, again = small(copy.deepcopy(old)), small(copy.deepcopy(old))
    report = swap_norms(model, rules)
    assert report.replaced[0].new == wanted
    swap_norms(again, [(one.name, one.new) for one in report.replaced])
    assert again[1].spec == model[1].spec == str(NormSpec.parse(wanted))


def test_mode_trainability_and_dtype_are_carried() -> None:
    model = small().to(torch.bfloat16)
    model.eval()
    model[1].requires_grad_(False)
    swap_norms(model, "dyt")
    assert not model[1].training
    assert {p.dtype for p in model[1].parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in model[1].parameters()), "alpha thaws a frozen norm"
    swap_norms(model.train(), "l1norm", init="fresh")
    assert model[1].training
    assert [(p.dtype, p.requires_grad) for p in model[1].parameters()] == 2 * [
        (torch.bfloat16, False)
    ]
    bare = nn.Sequential(nn.Linear(6, 6).double(), nn.LayerNorm(6, elementwise_affine=False))
    swap_norms(bare, "layernorm")
    assert bare[1].weight.dtype == torch.float64


@pytest.mark.parametrize("norm", norm_names())
@pytest.mark.parametrize("init", ["keep", "fresh"])
def test_meta(norm: str, init: str) -> None:
    with torch.device("meta"):
        model = Net()
    swap_norms(model, norm, init=init)
    assert all(p.is_meta for p in model.parameters())
    assert model(torch.empty(4, 6, device="meta")).is_meta


def test_hooks_move_and_their_handles_still_work() -> None:
    model = small()
    norm = model[1]
    seen: list[str] = []

    def note(name: str, *_: Any) -> None:
        seen.append(name)

    def inputs(module: nn.Module, args: Any, kwargs: Any) -> None:
        assert kwargs == {}
        seen.append("kwargs")

    handles = [
        norm.register_forward_pre_hook(functools.partial(note, "before")),
        norm.register_forward_pre_hook(inputs, with_kwargs=True),
        norm.register_forward_hook(functools.partial(note, "after")),
        norm.register_full_backward_hook(functools.partial(note, "backward")),
        norm.register_load_state_dict_pre_hook(lambda m, *_: seen.append(type(m).__name__)),
    ]
    report = swap_norms(model, "rmsnorm")
    assert report.replaced[0].note == "bias dropped; 5 hooks moved"
    del norm
    model(torch.randn(2, 6)).sum().backward()
    assert seen == ["before", "kwargs", "after", "backward"]
    seen.clear()
    model.load_state_dict(model.state_dict())
    assert seen == ["RMSNorm"]
    for handle in handles:
        handle.remove()
    seen.clear()
    model(torch.randn(2, 6)).sum().backward()
    assert not seen


def test_copies_and_pickles() -> None:
    from test_readers import LayerNorm2d

    model = nn.Sequential(nn.Conv2d(6, 6, 1), LayerNorm2d(6))
    swap_norms(model, "rmsnorm")
    assert len(model[1]._forward_hooks) == 1
    x = torch.randn(2, 6, 3, 3)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), model(x))
        assert twin[1].weight is not model[1].weight
        assert swap_norms(twin, "layernorm").replaced[0].name == "1"
        torch.testing.assert_close(twin(x).mean(1), torch.zeros(2, 3, 3), atol=1e-5, rtol=0)
    user: list[tuple[int, ...]] = []
    other = nn.Sequential(nn.Conv2d(6, 6, 1), LayerNorm2d(6))
    other[1].register_forward_hook(lambda m, args, y: user.append(tuple(y.shape)))
    swap_norms(other, "rmsnorm")
    other(x)
    model[1].register_forward_hook(lambda m, args, y: user.append(tuple(y.shape)))
    swap_norms(model, "adanorm")
    model(x)
    assert user == [(2, 6, 3, 3)] * 2, "a hook saw the axes in another order"


# Batch norms


def test_batch_norms() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))
    model(torch.randn(8, 3, 9, 9))
    model.eval()
    x, weight = torch.randn(2, 3, 9, 9), model[1].weight
    wanted = model(x)
    seen: list[int] = []
    model[1].register_forward_hook(lambda *_: seen.append(1))
    report = swap_norms(model, [("*", "L1-BatchNorm"), ("3", "topkbatchnorm:k=3")])
    assert [type(model[1]), type(model[3])] == [L1BatchNorm2d, TopKBatchNorm2d]
    assert model[3].k == 3
    assert model[1].weight is weight
    torch.testing.assert_close(model(x), wanted)
    assert seen == [1]
    assert [one.new for one in report.replaced] == ["l1batchnorm", "topkbatchnorm:k=3"]
    again = swap_norms(model, [("*", "l1batchnorm"), ("3", "topkbatchnorm:k=3")])
    assert [reason[:7] for _, reason in again.skipped] == ["already"] * 2


def test_fresh_batch_norms() -> None:
    model = nn.Sequential(nn.BatchNorm1d(6))
    nn.init.normal_(model[0].weight)
    model(torch.randn(9, 6))
    model[0].bias.requires_grad_(False)
    old, running = model[0].weight, model[0].running_mean
    values = old.detach().clone(), running.clone()
    swap_norms(model, "linfbatchnorm", init="fresh")
    assert type(model[0]) is LInfBatchNorm1d
    assert torch.equal(model[0].weight, torch.ones(6))
    assert torch.equal(model[0].running_mean, torch.zeros(6))
    assert [p.requires_grad for p in model[0].parameters()] == [True, False]
    assert torch.equal(old, values[0])
    assert torch.equal(running, values[1])


# The report


def test_report_table() -> None:
    model = Net()
    report = swap_norms(model, [("blocks.0.*", "rmsnorm"), ("last", "adanorm")])
    assert str(report).splitlines() == [
        "module         from       to                 before  after  note",
        "blocks.0.norm  LayerNorm  rmsnorm:eps=1e-06      12      6  bias dropped",
        "last           LayerNorm  adanorm:eps=1e-05      12      0  weight dropped; bias dropped",
        "2 replaced                                       24      6",
        "skipped: blocks.1.norm: no rule matches",
        "skipped: batch: no rule matches",
        "skipped: group: no rule matches",
    ]


def test_rules_in_the_report_swap_again() -> None:
    rules = [("blocks.*", "rms-norm:EPS=1e-5"), ("last", "layernorm:eps=1e-5,bias=true")]
    report = swap_norms(Net(), rules)
    assert report.rules == [
        ("blocks.*", "rmsnorm:eps=1e-05"),
        ("last", "layernorm:bias=true,eps=1e-05"),
    ]
    assert swap_norms(Net(), report.rules).replaced == report.replaced
    for one in report.replaced:
        assert build_norm(one.new, 6).eps == 1e-5
