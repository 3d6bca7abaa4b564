"""What a checkpoint keeps of a model's norms, compared with another model and restored to it."""

import copy
import functools
import io
from typing import Any

import pytest
import torch
from nets import Net, small
from torch import nn

from normtrain import build_norm, norm_names, register_norm, swap_norms
from normtrain.errors import UserError
from normtrain.norms import RMSNorm, registry
from normtrain.norms.batch_swap import replace_batchnorm
from normtrain.swap.norm_record import describe, differences, read_record, record
from normtrain.swap.restore import restore


def test_what_is_kept() -> None:
    model = Net()
    report = swap_norms(model, [("blocks.*", "rmsnorm"), ("last", "adanorm:k=0.2")])
    found = record(model, report.rules)
    assert found == {
        "version": 2,
        "rules": [["blocks.*", "rmsnorm"], ["last", "adanorm:k=0.2"]],
        "replaced": {
            "blocks.0.norm": "rmsnorm:eps=1e-06",
            "blocks.1.norm": "rmsnorm:eps=1e-06",
            "last": "adanorm:eps=1e-05,k=0.2",
        },
        "was": dict.fromkeys(("blocks.0.norm", "blocks.1.norm", "last"), "torch.nn.LayerNorm"),
        "kept": {"batch": "class BatchNorm1d", "group": "class GroupNorm"},
    }
    assert record(model)["rules"] == [[name, spec] for name, spec in found["replaced"].items()]
    file = io.BytesIO()
    torch.save(found, file)
    file.seek(0)
    checkpoint = {"normtrain": {"swap": torch.load(file, weights_only=True)}}
    assert read_record(checkpoint, "it") == found


def test_what_a_chain_of_swaps_began_with_is_kept() -> None:
    model = small(build_norm("dyt", 6), nn.RMSNorm(6))
    for spec in ("rmsnorm", "adanorm", "layernorm"):
        swap_norms(model, spec)
    assert record(model)["was"] == {"1": "dyt", "2": "torch.nn.RMSNorm"}
    assert record(copy.deepcopy(model)) == record(model)


@functools.cache
def _last(spec: str) -> Net:
    """A net whose last norm was swapped, if there is a spec."""
    model = Net()
    if spec:
        swap_norms(model, [("last", spec)])
    return model


def _other(first: str, second: str) -> list[tuple[str, str, str, bool]]:
    """The differences of a model swapped to `first` from one swapped to `second`."""
    return [tuple(each) for each in differences(record(_last(first)), _last(second))]


@pytest.mark.extended
@pytest.mark.parametrize("norm", norm_names())
def test_every_norm_differs_from_every_other_and_not_from_itself(norm: str) -> None:
    assert differences(record(_last(norm)), copy.deepcopy(_last(norm))) == []
    for other in norm_names():
        assert bool(_other(norm, other)) == (other != norm)


def test_differences() -> None:
    assert _other("rmsnorm", "") == [("last", "rmsnorm:eps=1e-05", "torch.nn.LayerNorm", True)]
    assert _other("", "rmsnorm") == [("last", "torch.nn.LayerNorm", "rmsnorm:eps=1e-05", False)]
    assert _other("rmsnorm", "prmsnorm:p=1") == [
        ("last", "rmsnorm:eps=1e-05", "prmsnorm:eps=1e-05,p=1.0", False)
    ]
    assert _other("rmsnorm", "rmsnorm:eps=1e-6")[0][1:3] == (
        "rmsnorm:eps=1e-05",
        "rmsnorm:eps=1e-06",
    )
    # A default that is written out is the default.
    assert _other("layernorm:bias=true", "layernorm") == []
    text = describe(differences(record(_swapped("rmsnorm")), _swapped("adanorm")), "a.ckpt")
    assert text == (
        "a.ckpt was saved with rmsnorm:eps=1e-06 at blocks.0.norm, but the model has "
        "adanorm:eps=1e-06 there (and 2 more norms differ)"
    )


def test_foreign_norms_are_not_compared_with_each_other() -> None:
    one, other = small(nn.LayerNorm(6)), small(nn.RMSNorm(6))
    assert differences(record(one), other) == []


def test_a_norm_that_is_missing_is_named() -> None:
    one, other = small(build_norm("adanorm", 6)), nn.Sequential(nn.Linear(6, 6))
    assert [tuple(each) for each in differences(record(one), other)] == [
        ("1", "adanorm", "no norm", False)
    ]


def _swapped(rules: Any) -> Net:
    model = Net()
    swap_norms(model, rules)
    return model


@pytest.mark.parametrize(
    "rules",
    [
        *("rmsnorm", "adanorm", "dyt", "none", "crmsnorm"),  # what kinds of parameters there are
        [("blocks.?.norm", "rmsnorm"), ("last", "prmsnorm:p=0.5,eps=1e-3")],
        [("batch", "l1batchnorm"), ("last", "layernorm:bias=false")],
        [("batch", "topkbatchnorm:k=3")],
    ],
)
def test_restoring(rules: Any) -> None:
    saved, model = _swapped(rules), Net()
    section = record(saved)
    report = restore(section, model, "a.ckpt")
    assert len(report.replaced) == len(section["replaced"])
    assert {**record(model), "rules": []} == {**section, "rules": []}
    model.load_state_dict(saved.state_dict())
    assert restore(section, model, "a.ckpt") is None
    x = torch.randn(4, 6)
    assert torch.equal(model(x), saved(x))


def test_restoring_a_model_with_norms_of_this_package() -> None:
    saved, model = small(build_norm("layernorm", 6)), small(build_norm("layernorm", 6))
    swap_norms(saved, "rmsnorm")
    assert restore(record(saved), model, "a.ckpt") is not None
    assert type(model[1]) is RMSNorm


def test_names_with_signs_of_patterns_are_taken_as_they_are() -> None:
    model = nn.ModuleDict({"a[0]": nn.LayerNorm(3), "a0": nn.LayerNorm(3), "*": nn.LayerNorm(3)})
    saved = copy.deepcopy(model)
    swap_norms(saved, [("a0", "rmsnorm")])
    saved["*"] = swap_norms_in(saved["*"], "adanorm")
    restore(record(saved), model, "a.ckpt")
    assert (
        record(model)["replaced"]
        == record(saved)["replaced"]
        == {"a0": "rmsnorm:eps=1e-05", "*": "adanorm:eps=1e-05"}
    )


def swap_norms_in(norm: nn.Module, spec: str) -> nn.Module:
    holder = nn.Sequential(norm)
    swap_norms(holder, spec)
    return holder[0]


def test_what_is_neither_here_nor_there_is_refused() -> None:
    section, model = record(_swapped("rmsnorm")), _swapped([("last", "adanorm")])
    before = record(model)
    with pytest.raises(
        UserError,
        match=r"a.ckpt was saved with rmsnorm:eps=1e-05 at last, but the "
        r"model has adanorm:eps=1e-05 there; build the model",
    ):
        restore(section, model, "a.ckpt")
    assert record(model) == before


def test_a_norm_that_is_not_registered_here(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(registry, "_entries", dict(registry._entries))

        @register_norm("third-norm")
        class ThirdNorm(RMSNorm):
            """A third party's."""

        section = record(_swapped("third-norm"))
    with pytest.raises(UserError, match="third-norm.*import the package that registers it"):
        restore(section, Net(), "a.ckpt")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"version": 7}, "version 7.*expected 2"),
        ({"replaced": None}, r"damaged \(replaced\)"),
        ({"was": {}}, r"damaged \(was\)"),
        ({"kept": {"a": 1}}, r"damaged \(kept\)"),
        ({"recipe": {}}, "written by normtrain fit"),
    ],
)
def test_a_section_that_is_no_good(change: dict[str, Any], text: str) -> None:
    section = {**record(_swapped("rmsnorm")), **change}
    with pytest.raises(UserError, match=f"a.ckpt.*{text}|{text}"):
        read_record({"normtrain": section}, "a.ckpt")


@pytest.mark.parametrize("section", [None, 3, [], "rmsnorm"])
def test_what_is_no_section(section: Any) -> None:
    with pytest.raises(UserError, match="a.ckpt"):
        read_record({"normtrain": section}, "a.ckpt")


def test_a_norm_of_an_unknown_class_is_named_without_running_it() -> None:
    class LoudNorm(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise AssertionError("it was run")

    model = small(nn.LayerNorm(6), LoudNorm(), build_norm("rmsnorm", 6))
    assert record(model)["kept"] == {
        "1": "torch.nn.LayerNorm",
        "2": "class LoudNorm",
        "3": "rmsnorm",
    }


def test_batch_norms_of_this_package() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    replace_batchnorm(model, "l1")
    assert record(model)["kept"] == {"1": "l1batchnorm"}
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert len(differences(record(model), other)) == 1
