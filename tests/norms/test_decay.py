"""Weight decay before a batch norm is a learning rate: runs without it that follow runs with it."""

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from normtrain.errors import UserError
from normtrain.norms.batch import L1BatchNorm1d
from normtrain.norms.decay import (
    DecayCorrection,
    WeightNormLog,
    decay_groups,
    scale_invariant_weights,
)

ROWS = 256


def dense(norm: Callable[[int], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    inner = [nn.Linear(24, 24, bias=False), norm(24), nn.ReLU()]
    layers = [nn.Linear(16, 24, bias=False), norm(24), nn.ReLU(), *inner, nn.Linear(24, 4)]
    return nn.Sequential(*layers).double()


def task() -> tuple[Tensor, Tensor]:
    """Inputs, and the classes that a fixed net gives them."""
    generator = torch.Generator().manual_seed(1)
    x, *weights = (
        torch.randn(shape, dtype=torch.float64, generator=generator)
        for shape in ((ROWS, 16), (16, 12), (12, 4))
    )
    return x, ((x @ weights[0] / 4).tanh() @ weights[1]).argmax(1)


def train(
    optimizer: torch.optim.Optimizer, model: nn.Module, steps: int, batch: int = ROWS
) -> Tensor:
    """The losses; the same batches whenever called."""
    x, target = task()
    generator = torch.Generator().manual_seed(2)
    losses = []
    for _ in range(steps):
        rows = torch.randperm(ROWS, generator=generator)[:batch]
        loss = functional.cross_entropy(model(x[rows]), target[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses)


Made = tuple[nn.Module, Tensor]


def three_runs(
    norm: Callable[[int], nn.Module], decay: float, steps: int, batch: int, **options: Any
) -> tuple[Made, Made, Made, WeightNormLog]:
    """With weight decay; without it (but for the last layer) and corrected; without and not."""
    models = [dense(norm) for _ in range(3)]
    log = WeightNormLog()
    optimizers = [torch.optim.SGD(models[0].parameters(), weight_decay=decay, **options)]
    log.attach(optimizers[0], scale_invariant_weights(models[0]))
    losses = [train(optimizers[0], models[0], steps, batch)]
    for model in models[1:]:
        optimizers.append(torch.optim.SGD(decay_groups(model, decay), **options))
    DecayCorrection(optimizers[1], log, scale_invariant_weights(models[1]))
    for optimizer, model in zip(optimizers[1:], models[1:], strict=True):
        losses.append(train(optimizer, model, steps, batch))
    with_it, corrected, plain = zip(models, losses, strict=True)
    return with_it, corrected, plain, log


def cosines(a: nn.Module, b: nn.Module) -> Tensor:
    """Between the channels of one net and another's."""
    pairs = zip(
        scale_invariant_weights(a).values(), scale_invariant_weights(b).values(), strict=True
    )
    return torch.cat([torch.cosine_similarity(p, q, dim=1) for p, q in pairs])


@pytest.mark.parametrize(
    ("norm", "options"),
    [
        (nn.BatchNorm1d, {"lr": 0.01, "decay": 0.1}),
        (nn.BatchNorm1d, {"lr": 0.003, "decay": 0.05, "momentum": 0.9}),
        (L1BatchNorm1d, {"lr": 0.003, "decay": 0.05, "momentum": 0.9}),
    ],
    ids=["sgd", "momentum", "l1"],
)
def test_corrected_run_follows_the_one_with_weight_decay(
    norm: Callable[[int], nn.Module], options: dict[str, Any]
) -> None:
    with_it, corrected, plain, log = three_runs(norm, steps=350, batch=64, **options)
    assert len(log) == 350
    assert log.at("0.weight", 349).mean() < 0.8 * log.at("0.weight", 0).mean()
    assert with_it[1][-20:].mean() < 0.7 * with_it[1][:20].mean()  # it learns
    near = (with_it[1] - corrected[1]).abs()
    far = (with_it[1] - plain[1]).abs()
    assert near.mean() < 5e-4
    assert near.max() < 3e-3
    assert far.mean() > 20 * near.mean()
    assert cosines(with_it[0], corrected[0]).min() > 0.999
    assert cosines(with_it[0], plain[0]).min() < 0.99
    # only the directions agree: without decay the weights have grown
    grown = scale_invariant_weights(corrected[0])["0.weight"].norm(dim=1)
    assert grown.mean() > 1.1 * log.at("0.weight", 349).mean()


def test_what_is_left_shrinks_with_the_square_of_the_learning_rate() -> None:
    """A few steps from weights of the same directions but other norms."""

    def exact(channels: int) -> nn.Module:
        return nn.BatchNorm1d(channels, eps=1e-20)

    def gap(lr: float, correct: bool) -> float:
        """How far apart the directions are in the end."""
        followed, model = dense(exact), dense(exact)
        weights = scale_invariant_weights(followed), scale_invariant_weights(model)
        with torch.no_grad():
            for weight in weights[1].values():
                weight.mul_(torch.linspace(0.5, 2, len(weight)).unsqueeze(1))
        log = WeightNormLog()
        optimizer = torch.optim.SGD(followed.parameters(), lr=lr, weight_decay=0.5)
        log.attach(optimizer, weights[0])
        train(optimizer, followed, steps=3)
        optimizer = torch.optim.SGD(decay_groups(model, 0.5), lr=lr)
        if correct:
            DecayCorrection(optimizer, log, weights[1])
        train(optimizer, model, steps=3)
        pairs = zip(weights[0].values(), weights[1].values(), strict=True)
        apart = [functional.normalize(a) - functional.normalize(b) for a, b in pairs]
        return torch.cat([d.flatten() for d in apart]).norm().item()

    for correct, factor in ((True, 4), (False, 2)):
        gaps = [gap(lr, correct) for lr in (1e-3, 5e-4, 2.5e-4)]
        assert gaps[0] / gaps[1] == pytest.approx(factor, rel=0.05)
        assert gaps[1] / gaps[2] == pytest.approx(factor, rel=0.05)


def one_layer(seed: int, dtype: torch.dtype = torch.float64) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(3, 2, bias=False, dtype=dtype)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_the_step_is_scaled_channel_by_channel(power: float) -> None:
    followed, layer = one_layer(1), one_layer(2)
    log = WeightNormLog()
    log.record({"w": followed.weight})
    log.record({"w": followed.weight * 3})
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    twin = one_layer(2)
    other = torch.optim.Adam(twin.parameters(), lr=0.1)
    correction = DecayCorrection(optimizer, log, {"w": layer.weight}, power=power)
    for step in range(2):
        before = layer.weight.detach().clone()
        with torch.no_grad():
            twin.weight.copy_(before)
        gradient = torch.randn(2, 3, dtype=torch.float64)
        for weight, steps in ((layer.weight, optimizer), (twin.weight, other)):
            weight.grad = gradient.clone()
            steps.step()
        own = (before**2).sum(1, keepdim=True) ** 0.5
        target = (followed.weight.detach() ** 2).sum(1, keepdim=True) ** 0.5 * (1, 3)[step]
        expected = before + (own / target) ** power * (twin.weight.detach() - before)
        torch.testing.assert_close(layer.weight.detach(), expected)
    assert correction.step == 2
    with pytest.raises(UserError, match="log ends after 2 steps"):
        optimizer.step()
    correction.remove()
    optimizer.step()


def test_resuming_in_the_middle() -> None:
    log = WeightNormLog()
    for step in range(4):
        log.record({"w": one_layer(step).weight})

    def run(layer: nn.Linear, steps: range) -> None:
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        correction = DecayCorrection(optimizer, log, {"w": layer.weight}, start=steps.start)
        for _ in steps:
            layer.weight.grad = layer.weight.detach().sin()
            optimizer.step()
        correction.remove()

    whole, parts = one_layer(9), one_layer(9)
    run(whole, range(4))
    run(parts, range(1))
    run(parts, range(1, 4))
    assert torch.equal(whole.weight, parts.weight)


def test_log_survives_saving_and_stops_when_removed() -> None:
    layer = one_layer(0)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5, weight_decay=1.0)
    log = WeightNormLog(dim=1)
    handle = log.attach(optimizer, {"w": layer.weight})
    expected = []
    for _ in range(3):
        expected.append((layer.weight.detach() ** 2).sum(0).sqrt())
        layer.weight.grad = torch.zeros_like(layer.weight)
        optimizer.step()
    handle.remove()
    optimizer.step()
    assert len(log) == 3
    buffer = io.BytesIO()
    torch.save(log.to_plain(), buffer)
    buffer.seek(0)
    loaded = WeightNormLog.from_plain(torch.load(buffer, weights_only=True))
    assert (loaded.names, loaded.dim, len(loaded)) == (["w"], 1, 3)
    for step in range(3):
        torch.testing.assert_close(log.at("w", step), expected[step])
        assert torch.equal(loaded.at("w", step), log.at("w", step))


class Net(nn.Module):
    """Every way a layer may or may not be followed by a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.normed = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.skipped = nn.Conv2d(4, 4, 3, padding=1)
        self.skip_norm = nn.BatchNorm2d(4)
        self.between = nn.Conv2d(4, 4, 1)
        self.after = nn.BatchNorm2d(4)
        self.twice = nn.Linear(4, 4)
        self.dense_norm = L1BatchNorm1d(4)
        self.hidden = nn.Sequential(nn.Linear(4, 5), L1BatchNorm1d(5))
        self.along = nn.Linear(5, 7)
        self.along_norm = nn.BatchNorm1d(5)
        self.tied = nn.Linear(5, 5)
        self.tied_norm = nn.BatchNorm1d(5)
        self.head = nn.Linear(5, 5)
        self.head.weight = self.tied.weight
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.normed(x))
        y = self.skipped(x)
        x = self.skip_norm(y) + y
        x = self.after(self.between(x).relu()).mean((2, 3))
        x = self.twice(self.dense_norm(self.twice(x)))
        x = self.hidden(x)
        z = self.along_norm(self.along(x.unsqueeze(-1).expand(-1, -1, 5))).mean(2)
        return self.head(self.tied_norm(self.tied(x + z)))


def test_scale_invariant_weights_are_found_and_are_invariant() -> None:
    model = Net().double()
    assert list(scale_invariant_weights(model)) == ["normed.weight", "hidden.0.weight"]
    x = torch.randn(6, 2, 4, 4, dtype=torch.float64)
    y = model(x)
    with torch.no_grad():
        for weight in scale_invariant_weights(model).values():
            weight.mul_(torch.rand(len(weight), *[1] * (weight.dim() - 1)) + 3)
        model.normed.bias.mul_(0)  # a batch norm takes out what is constant
    torch.testing.assert_close(model(x), y, rtol=1e-3, atol=1e-3)  # up to eps


def test_groups_hold_every_parameter_once() -> None:
    model = Net()
    model.unused.bias.requires_grad_(False)
    decayed, free = decay_groups(model, 0.1)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    assert {id(p) for p in free["params"]} == {id(model.normed.weight), id(model.hidden[0].weight)}
    everything = [id(p) for group in (decayed, free) for p in group["params"]]
    assert sorted(everything) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    _, named = decay_groups(model, 0.1, free=["head.bias", "twice.weight"])
    assert {id(p) for p in named["params"]} == {id(model.head.bias), id(model.twice.weight)}


class Untraceable(nn.Module):
    """Its way depends on the data."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_mistakes() -> None:
    layer = one_layer(0)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    weights = {"w": layer.weight}
    log = WeightNormLog()
    with pytest.raises(UserError, match="same weights at every step"):
        log.record({})
    log.record(weights)
    with pytest.raises(UserError, match="same weights at every step"):
        log.record({"v": layer.weight})
    with pytest.raises(UserError, match="does not train w"):
        log.attach(optimizer, {"w": one_layer(1).weight})
    for wrong, message in (
        ({"log": log, "weights": {"v": layer.weight}}, r"expected \['v'\], got \['w'\]"),
        ({"log": log, "weights": {}}, "expected at least one"),
        ({"log": log, "weights": {"w": one_layer(1).weight}}, "does not train w"),
        ({"log": WeightNormLog(), "weights": weights}, r"got \[\]"),
        ({"log": log, "weights": weights, "power": 0.0}, "power must be > 0"),
        ({"log": log, "weights": weights, "start": -1}, "start must be"),
        ({"log": plain_log(torch.ones(2, 3)), "weights": weights}, "2 channels in axis 0"),
        ({"log": plain_log(torch.zeros(2, 2)), "weights": weights}, "not finite and > 0"),
    ):
        with pytest.raises(UserError, match=message):
            DecayCorrection(optimizer, **wrong)
    assert not optimizer._optimizer_step_pre_hooks


def test_other_mistakes() -> None:
    for plain in ({}, {"dim": 0, "norms": {"w": torch.ones(3)}}):
        with pytest.raises(UserError):
            WeightNormLog.from_plain(plain)
    with pytest.raises(UserError, match="same steps"):
        WeightNormLog.from_plain(
            {"dim": 0, "norms": {"a": torch.ones(1, 2), "b": torch.ones(2, 2)}}
        )
    with pytest.raises(UserError, match="cannot trace Untraceable"):
        scale_invariant_weights(Untraceable())
    with pytest.raises(UserError, match="no layer of Sequential"):
        decay_groups(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), 0.1)
    with pytest.raises(UserError, match="no parameter named head"):
        decay_groups(Net(), 0.1, free=["head"])
    with pytest.raises(UserError, match="weight_decay must be"):
        decay_groups(Net(), -0.1)


def plain_log(norms: Tensor) -> WeightNormLog:
    return WeightNormLog.from_plain({"dim": 0, "norms": {"w": norms}})


def test_a_correction_wants_to_be_alone() -> None:
    layer = one_layer(0)
    weights = {"weight": layer.weight}
    log = WeightNormLog()
    log.record(weights)
    decaying = torch.optim.SGD(layer.parameters(), lr=0.1, weight_decay=0.01)
    with pytest.raises(UserError, match="the optimizer decays weight"):
        DecayCorrection(decaying, log, weights)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with pytest.raises(UserError, match="start is 1, but the log ends after 1"):
        DecayCorrection(optimizer, log, weights, start=1)
    first = DecayCorrection(optimizer, log, weights)
    with pytest.raises(UserError, match="already corrected"):
        DecayCorrection(optimizer, log, weights)
    first.remove()
    DecayCorrection(optimizer, log, weights)


@pytest.mark.parametrize(("shape", "dim"), [((3,), 0), ((), 0), ((3, 4), 2), ((3, 4), -3)])
def test_weights_without_channels_along_the_axis(shape: tuple[int, ...], dim: int) -> None:
    with pytest.raises(UserError, match="no channels along axis"):
        WeightNormLog(dim).record({"w": torch.ones(shape)})


@pytest.mark.parametrize("plain", [[1], None, {"dim": 0, "norms": {"w": torch.ones(0, 3)}}])
def test_what_is_no_log(plain: Any) -> None:
    with pytest.raises(UserError, match="norms"):
        WeightNormLog.from_plain(plain)
