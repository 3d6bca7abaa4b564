"""Being asked to stop: by which signals, how often, and how often processes ask one another."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from normtrain.training.callbacks import stop as module
from normtrain.training.callbacks.stop import MOST_STEPS, GracefulStop, StopAsked


class Saved:
    """As much of the callback that saves as is used."""

    val_every, max_steps, saved_step = 1000, 10_000, 0

    def save(self, trainer: Any) -> Path:
        self.saved_step = trainer.global_step
        return Path()


@pytest.fixture
def trainer() -> Any:
    asked: list[int] = []

    def reduce(value: torch.Tensor, reduce_op: str) -> torch.Tensor:
        assert reduce_op == "max"
        asked.append(made.global_step)
        return value

    strategy = SimpleNamespace(reduce=reduce, root_device=torch.device("cpu"))
    loop = SimpleNamespace(_should_accumulate=lambda: False)
    made = SimpleNamespace(
        global_step=0, world_size=2, strategy=strategy, fit_loop=loop, asked=asked
    )
    return made


def stepped(stop: GracefulStop, trainer: Any, until: int) -> None:
    while trainer.global_step < until:
        trainer.global_step += 1
        stop.on_train_batch_end(trainer, None, None, None, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1])
def test_asked_twice_is_asked_once(
    signum: signal.Signals, trainer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="normtrain")
    before = signal.getsignal(signum)
    stop = GracefulStop(Saved())  # type: ignore[arg-type]
    stop.setup(trainer, None, "fit")  # type: ignore[arg-type]
    stop.on_train_start(trainer, None)  # type: ignore[arg-type]
    os.kill(os.getpid(), signum)
    os.kill(os.getpid(), signum)
    with pytest.raises(StopAsked, match=f"{signum.name} after step 1"):
        stepped(stop, trainer, 5)
    stop.teardown(trainer, None, "fit")  # type: ignore[arg-type]
    assert len(caplog.messages) == 1
    assert signal.getsignal(signum) == before


@pytest.mark.parametrize(("seconds", "steps"), [(0.001, MOST_STEPS), (0.125, 16), (1.0, 2), (9, 1)])
def test_processes_ask_one_another_every_two_seconds(
    seconds: float, steps: int, trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(monotonic=lambda: trainer.global_step * seconds)
    monkeypatch.setattr(module, "time", clock)
    stop = GracefulStop(Saved())  # type: ignore[arg-type]
    stop.on_train_start(trainer, None)  # type: ignore[arg-type]
    stop.teardown()
    stepped(stop, trainer, 3 * steps + 1)
    first, *later = trainer.asked
    assert first == 1
    assert later[:3] == [1 + steps, 1 + 2 * steps, 1 + 3 * steps]


def test_a_second_ctrl_c_under_torchrun_is_its_forwarding(
    trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = GracefulStop(Saved())  # type: ignore[arg-type]
    stop._ask(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        stop._ask(signal.SIGINT, None)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    stop._ask(signal.SIGINT, None)
