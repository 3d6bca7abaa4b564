"""NormMonitor: the right steps, numbers and warnings, and training as it is without."""

import copy
import math
import warnings
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from monitored import NUMBERS, Memory, Net, Task, fit, hooks_in, rows
from torch import Tensor, nn
from torch.utils.data import DataLoader

from normtrain import NormMonitor
from normtrain.errors import UserError
from normtrain.monitor.callback import NormWarning
from normtrain.monitor.statistics import Watch, norm_layers


def test_every_n_steps_to_every_logger() -> None:
    one, two, monitor = Memory(), Memory(), NormMonitor(every=2)
    task = Task()
    fit(task, monitor, logger=[one, two], log_every_n_steps=10**6)
    assert [step for step, _ in one.rows] == [2, 4, 6]
    assert one.rows == two.rows
    names = {f"norms/net.{norm}/{n}" for norm in ("norm1", "norm2") for n in NUMBERS}
    assert set(one.rows[0][1]) == names
    assert all(type(value) is float for _, row in one.rows for value in row.values())
    assert monitor.step == 6
    assert {f"norms/{k}/{n}": v for k, f in monitor.last.items() for n, v in f.items()} == (
        one.rows[-1][1]
    )
    batch = rows()[20:24]
    assert monitor.last["net.norm1"]["input_rms"] == pytest.approx(
        float(batch.square().mean().sqrt()), rel=1e-6
    )


def test_training_is_the_same_bit_for_bit() -> None:
    weights = []
    for monitors in ([], [NormMonitor(every=1)], [NormMonitor(every=3, eager=True)]):
        torch.manual_seed(3)
        task = Task()
        fit(task, *monitors, accumulate_grad_batches=2, max_steps=5)
        weights.append([*task.parameters(), torch.tensor(task.losses)])
    for other in weights[1:]:
        assert all(map(torch.equal, weights[0], other))


def test_hooks_are_there_on_the_steps_measured_only() -> None:
    seen: list[int] = []
    task = Task(step=lambda task, _: seen.append(hooks_in(task)))
    trainer = fit(task, NormMonitor(every=3), limit_val_batches=1, val_check_interval=1)
    assert seen == [0, 0, 4, 0, 0, 4]
    assert not hooks_in(task)
    trainer.validate(task, DataLoader(rows(), batch_size=4), verbose=False)
    seen.clear()
    fit(task, NormMonitor(every=2), accumulate_grad_batches=3, max_steps=2)
    assert seen == [0, 0, 0, 4, 0, 0]


def test_nothing_waits_for_the_device_but_one_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[int] = []
    net, real = Net(), Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", lambda t: (fetched.append(t.numel()), real(t))[1])
    for name in ("item", "__float__", "__bool__", "cpu", "numpy"):

        def refuse(self: Tensor, *args: Any, name: str = name) -> None:
            raise AssertionError(f"Tensor.{name} waits for the device")

        monkeypatch.setattr(Tensor, name, refuse)
    net.norm2 = nn.RMSNorm(8)  # this package's looks at its statistics on a CPU
    watch = Watch(norm_layers(net), 1e-6, lambda: False)
    net(rows()).square().sum().backward()
    assert fetched == []
    watch.close()
    assert set(watch.numbers(torch.ones(()))) == {"norm1", "norm2"}
    assert fetched == [2 * len(NUMBERS) + 1]


@pytest.mark.parametrize("accumulate", [1, 3])
def test_gradients_are_those_of_the_loss_the_step_returned(accumulate: int) -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
    monitor = NormMonitor(every=1)
    twin = copy.deepcopy(net)
    fit(Task(net), monitor, max_steps=1, accumulate_grad_batches=accumulate)
    y = twin(rows()[:4]).detach()
    assert monitor.last["net.1"]["gradient_norm"] == pytest.approx(float(2 * y.norm()), rel=1e-5)


def test_loss_scaling_is_undone() -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
    twin = copy.deepcopy(net)
    plugin = pl.plugins.MixedPrecision(
        "16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=1024.0)
    )
    monitor = NormMonitor(every=1)
    fit(Task(net), monitor, max_steps=1, plugins=[plugin])
    with torch.autocast("cpu", torch.float16):
        y = twin(rows()[:4]).detach()
    assert monitor.last["net.1"]["gradient_norm"] == pytest.approx(float(2 * y.norm()), rel=1e-2)


class Manual(Task):
    """Two optimizers, each stepping once a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.net(batch).square().sum())
            optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(self.parameters(), 1e-3) for _ in range(2)]


def test_manual_optimization_with_two_optimizers() -> None:
    memory = Memory()
    fit(Manual(), NormMonitor(every=3), max_steps=12, logger=memory)
    # Batches begin at steps 0, 2, 4, …; a multiple of 3 is measured in the first to reach it.
    assert [step for step, _ in memory.rows] == [3, 7, 9]


class Rest(Net):
    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.LayerNorm(8)
        self.again = self.norm1


def test_norms_that_rest_and_shared_ones() -> None:
    monitor = NormMonitor(every=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", NormWarning)
        fit(Task(Rest()), monitor, max_steps=1)
    assert set(monitor.last) == {"net.norm1", "net.norm2"}


# --- torch.compile


@pytest.mark.extended
@pytest.mark.parametrize("how", ["whole", "part", "method"])
def test_compiled_norms_are_not_seen_and_that_is_said(how: str) -> None:
    torch._dynamo.reset()
    net = Net()
    if how == "part":
        net.norm1 = torch.compile(net.norm1, backend="eager", fullgraph=True)
        run: nn.Module = net
    elif how == "whole":
        run = torch.compile(net, backend="eager", fullgraph=True)
    else:
        run = net
        net.forward = torch.compile(net.forward, backend="eager", fullgraph=True)
    monitor, eager = NormMonitor(every=1), NormMonitor(every=1, eager=True)
    with pytest.warns(NormWarning, match=r"of 2 norms were not measured.*net\.norm1.*eager=True"):
        fit(Task(run), monitor)
    assert set(monitor.last) == ({"net.norm2"} if how == "part" else set())
    with warnings.catch_warnings():
        warnings.simplefilter("error", NormWarning)
        fit(Task(run), eager)
    assert set(eager.last) == {"net.norm1", "net.norm2"}
    assert torch._dynamo.eval_frame._stance.stance == "default"


# --- Warnings


def test_collapse_and_explosion_are_told_once_each() -> None:
    class Bad(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.low, self.high, self.flat, self.fine = (nn.LayerNorm(8) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            flat = torch.full_like(x, 5.0)
            return self.low(x * 1e-5) + self.high(x * 1e5) + self.flat(flat) + self.fine(x)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(Task(Bad()), NormMonitor(every=1), max_steps=3)
    texts = [str(w.message) for w in caught if w.category is NormWarning]
    rms = float(rows()[:4].square().mean().sqrt())
    assert texts == [
        f"NormMonitor, step 1, norm net.low: collapse, the input's RMS is {rms * 1e-5:.4g}, "
        "below 0.001",
        f"NormMonitor, step 1, norm net.high: explosion, the input's RMS is {rms * 1e5:.4g}, "
        "above 1000",
        "NormMonitor, step 1, norm net.flat: collapse, 100% of the input's rows have a variance "
        "below 1e-06",
    ]


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        (2e3, "explosion, the output's RMS"),
        (math.nan, "explosion, the output's RMS is nan"),
        (1e-5, "collapse, the output's RMS"),
        (0.0, None),  # a gain may start at zero
        (1.0, None),
    ],
)
def test_gains_and_outputs(gain: float, said: str | None) -> None:
    net = nn.Sequential(nn.LayerNorm(8))
    nn.init.constant_(net[0].weight, gain)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(Task(net), NormMonitor(every=1), max_steps=1)
    texts = [str(w.message) for w in caught if w.category is NormWarning]
    assert [said in text for text in texts] == ([] if said is None else [True])


def test_one_gain_may_explode_alone() -> None:
    net = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8))
    net[0].weight.data[0] = -1500.0
    with pytest.warns(
        NormWarning, match=r"norm net\.0: explosion, the largest gain is 1500, above"
    ):
        fit(Task(net), NormMonitor(every=1, explosion=1400.0), max_steps=1)


def test_an_infinite_gradient() -> None:
    class Cliff(Task):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return (self.net(batch) * 0).sqrt().sum()

    with pytest.warns(NormWarning, match="norm of the gradient is (nan|inf)"):
        fit(Cliff(nn.Sequential(nn.LayerNorm(8))), NormMonitor(every=1), max_steps=1)


# --- Mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every must be an integer >= 1, got 0"),
        ({"every": 2.0}, "every must be"),
        ({"every": True}, "every must be"),
        ({"near_zero": 0}, "near_zero must be > 0"),
        ({"collapse": math.nan}, "collapse must be a finite number"),
        ({"explosion": "big"}, "explosion must be a finite number"),
        ({"collapse": 2.0, "explosion": 1.0}, r"collapse \(2.0\) must be below explosion \(1.0\)"),
        ({"eager": 1}, "eager must be True or False"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        NormMonitor(**options)


def test_a_model_without_norms_is_refused() -> None:
    with pytest.raises(UserError, match="NormMonitor found no norm in Task"):
        fit(Task(nn.Linear(8, 8)), NormMonitor())
