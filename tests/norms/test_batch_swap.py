"""Swapping BatchNorms for their L1, L-infinity and top-k kin keeps all that can be kept."""

import copy

import pytest
import torch
from torch import nn

from normtrain.errors import UserError
from normtrain.norms import batch
from normtrain.norms.batch_swap import replace_batchnorm

KINDS = {"l1": "L1BatchNorm", "linf": "LInfBatchNorm", "topk": "TopKBatchNorm"}


def old_model() -> nn.Sequential:
    """A trained net with BatchNorms of all kinds, one of them shared."""
    shared = nn.BatchNorm2d(4, momentum=None)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        shared,
        nn.Conv2d(4, 4, 3),
        shared,
        nn.Sequential(nn.Flatten(2), nn.BatchNorm1d(4, eps=0.1, affine=False), nn.Flatten()),
        nn.Linear(16, 6),
        nn.SyncBatchNorm(6, momentum=0.4),
    )
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 and "weight" in name:
            nn.init.uniform_(parameter, 0.5, 1.5)
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.SyncBatchNorm):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 1e-7, 3.0)
    shared.weight.requires_grad_(False)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_swapping_keeps_eval_and_everything_else(kind: str) -> None:
    model = old_model().double()
    model[1].train()
    old = list(model)
    parameters = dict(model.named_parameters())
    x = torch.randn(5, 2, 6, 6, dtype=torch.float64)
    expected = copy.deepcopy(model).eval()(x)

    assert replace_batchnorm(model, kind, k=5 if kind == "topk" else None) == ["1", "3", "4.1", "6"]

    assert model[1] is model[3]
    name = KINDS[kind]
    assert [type(model[i]).__name__ for i in (1, 6)] == [name + "2d", name]
    assert type(model[4][1]).__name__ == name + "1d"
    assert {n: id(p) for n, p in model.named_parameters()} == {
        n: id(p) for n, p in parameters.items()
    }
    assert model[1].training
    assert not model[6].training
    assert [model[i].sync for i in (1, 6)] == [False, True]
    assert (model[1].momentum, model[6].momentum, model[4][1].eps) == (None, 0.4, 0.1)
    assert model[4][1].weight is None
    assert model[6].running_mean is old[6].running_mean
    torch.testing.assert_close(model.eval()(x), expected, rtol=1e-12, atol=1e-12)
    assert getattr(model[6], "k", 5) == 5
    y = model.train()(x)  # SyncBatchNorm would refuse a CPU here
    assert y.isfinite().all()


def test_swap_options() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.SyncBatchNorm(3))
    assert len(replace_batchnorm(model, "l1", sync=False)) == 2
    assert [m.sync for m in model] == [False, False]
    assert model[0].running_mean is None
    other = nn.Sequential(nn.BatchNorm1d(3, dtype=torch.bfloat16))
    replace_batchnorm(other, "linf", sync=True)
    assert other[0].sync
    assert {t.dtype for t in other[0].state_dict().values()} == {torch.bfloat16, torch.long}


class WithMore(nn.BatchNorm1d):
    """A subclass that does something else besides."""


def hooked() -> nn.BatchNorm1d:
    norm = nn.BatchNorm1d(3)
    norm.register_forward_hook(lambda *_: None)
    return norm


@pytest.mark.parametrize(
    ("norm", "message"),
    [
        (nn.LayerNorm(3), "there is no torch"),
        (nn.LazyBatchNorm1d(), "0.1 is a LazyBatchNorm1d of unknown size"),
        (WithMore(3), "0.1 is a WithMore"),
        (hooked(), "0.1 has hooks"),
        (batch.L1BatchNorm1d(3), "there is no torch"),
    ],
)
def test_what_can_not_be_swapped(norm: nn.Module, message: str) -> None:
    more = nn.Identity() if "there is no" in message else nn.BatchNorm1d(3)
    model = nn.Sequential(nn.Sequential(more, norm))
    with pytest.raises(UserError, match=message):
        replace_batchnorm(model, "l1")
    assert model[0][0] is more
    assert model[0][1] is norm


def test_wrong_swaps() -> None:
    with pytest.raises(UserError, match="itself a BatchNorm1d"):
        replace_batchnorm(nn.BatchNorm1d(3), "l1")
    with pytest.raises(UserError, match="l1"):
        replace_batchnorm(nn.Sequential(nn.BatchNorm1d(3)), "l2")


@pytest.mark.parametrize("kind", ["l1", "linf"])
def test_k_is_for_topk_only(kind: str) -> None:
    with pytest.raises(UserError, match="k is only used by 'topk'"):
        replace_batchnorm(nn.Sequential(nn.BatchNorm1d(3)), kind, k=3)


def test_running_statistics_set_to_none_are_not_used() -> None:
    norm = batch.L1BatchNorm1d(3)
    norm.running_mean = norm.running_scale = None
    assert norm(torch.randn(5, 3)).isfinite().all()
