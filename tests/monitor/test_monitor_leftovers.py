"""NormMonitor leaves nothing behind, resumes, and works on rank 0 alone."""

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from monitored import NUMBERS, Memory, Task, fit, hooks_in, rows

from normtrain import NormMonitor


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
def test_an_exception_leaves_no_hook(error: BaseException) -> None:
    def fail(task: Task, batch_idx: int) -> None:
        assert hooks_in(task)
        raise error

    task, monitor = Task(step=fail), NormMonitor(every=1, eager=True)
    with pytest.raises((RuntimeError, SystemExit)):
        fit(task, monitor)
    assert not hooks_in(task)
    assert torch._dynamo.eval_frame._stance.stance == "default"
    task.step = None
    fit(task, monitor)
    assert monitor.step == 6


class Spoiler(pl.Callback):
    def on_exception(self, *args: Any) -> None:
        raise ValueError("another callback's own failure")


def test_hooks_that_nobody_removed_remove_themselves() -> None:
    def fail(task: Task, batch_idx: int) -> None:
        raise RuntimeError("boom")

    task = Task(step=fail)
    with pytest.raises(ValueError, match="own failure"):
        fit(task, Spoiler(), NormMonitor(every=1))
    task.net(rows())
    assert not hooks_in(task)


def test_copies_made_while_measuring() -> None:
    copies: list[Any] = []
    monitor = NormMonitor(every=1)

    def make(task: Task, batch_idx: int) -> None:
        copies.extend([copy.deepcopy(task.net), pickle.loads(pickle.dumps(task.net))])
        copies.extend([copy.deepcopy(monitor), pickle.loads(pickle.dumps(monitor))])

    fit(Task(step=make), monitor, max_steps=1)
    x = rows()
    for net in copies[:2]:
        torch.testing.assert_close(net.eval()(x), net.eval()(x))
        pickle.dumps(net)
    assert all(c.every == 1 and c._watch is None for c in copies[2:])
    for again in copies[2:]:
        fit(Task(), again, max_steps=2)
        assert again.step == 2
    assert monitor.step == 1


def test_resume_measures_as_if_never_interrupted(tmp_path: Path) -> None:
    whole, first, second = (NormMonitor(every=3) for _ in range(3))
    memory, rest = Memory(), Memory()
    saver = pl.callbacks.ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=4, save_top_k=-1)
    torch.manual_seed(2)
    fit(Task(), whole, saver, max_steps=10, logger=memory, enable_checkpointing=True)
    path = tmp_path / "step=4.ckpt"
    state = torch.load(path, weights_only=True)["callbacks"]["NormMonitor"]
    assert state["step"] == 3
    assert set(state["last"]["net.norm1"]) == NUMBERS
    fit(Task(), second, max_steps=10, logger=rest, ckpt_path=path)
    assert [step for step, _ in memory.rows] == [3, 6, 9]
    assert [step for step, _ in rest.rows] == [6, 9]
    fit(Task(), first, max_steps=3)
    again = Memory()
    fit(Task(), first, max_steps=3, logger=again)
    assert [step for step, _ in again.rows] == [3]  # a new Trainer counts from 0 again


def test_other_ranks_measure_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pl.Trainer, "is_global_zero", property(lambda self: False))
    seen: list[int] = []
    monitor, memory = NormMonitor(every=1), Memory()
    fit(Task(step=lambda task, _: seen.append(hooks_in(task))), monitor, logger=memory)
    assert seen == [0] * 6
    assert (memory.rows, monitor.last, monitor.step) == ([], {}, None)


DDP = """
import json, os, sys
sys.path.insert(0, {tests!r})
from monitored import DataLoader, Memory, Task, pl, rows, torch
from normtrain import NormMonitor
torch.manual_seed(0)
monitor, memory, task = NormMonitor(every=2), Memory(), Task()
data = rows(seed=1 + int(os.environ.get("LOCAL_RANK", 0)))
quiet = dict(enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False)
trainer = pl.Trainer(accelerator="cpu", devices=2, strategy="ddp", max_steps=4,
                     callbacks=[monitor], logger=memory, use_distributed_sampler=False, **quiet)
trainer.fit(task, DataLoader(data, batch_size=4))
weights = [p.tolist() for p in task.parameters()]
found = [monitor.last, [step for step, _ in memory.rows], weights]
open({out!r} + str(trainer.global_rank), "w").write(json.dumps(found))
"""


@pytest.mark.slow
def test_two_ranks(tmp_path: Path) -> None:
    script, out = tmp_path / "run.py", tmp_path / "rank"
    script.write_text(DDP.format(tests=str(Path(__file__).parents[1] / "helpers"), out=str(out)))
    subprocess.run([sys.executable, str(script)], check=True, timeout=200, capture_output=True)
    first, second = (json.loads(Path(f"{out}{rank}").read_text()) for rank in (0, 1))
    assert (first[1], second[0], second[1]) == ([2, 4], {}, [])
    assert first[2] == second[2]
    batch = rows(seed=1)[12:16]  # rank 0's fourth
    expected_rms = pytest.approx(float(batch.square().mean().sqrt()), rel=1e-6)
    assert first[0]["net.norm1"]["input_rms"] == expected_rms
