"""Checkpoint files: whole or absent, the right ones kept, ``best`` what validated best."""

import errno
import math
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from normtrain.errors import RunError
from normtrain.tasks.base import LOSS, Metric
from normtrain.training.callbacks.checkpoints import RunCheckpoints, link, write_atomically
from normtrain.training.callbacks.stop import GracefulStop, StopAsked
from normtrain.training.checkpoint import AtomicCheckpointIO


class Trainer:
    """As much of a trainer as the callbacks touch; it saves what they know."""

    def __init__(self, callback: RunCheckpoints) -> None:
        self.callback = callback
        self.global_step = 0
        self.should_stop = self.sanity_checking = False
        self.is_global_zero, self.world_size = True, 1
        self.state = SimpleNamespace(fn="fit")
        self.callback_metrics: dict[str, torch.Tensor] = {}
        self.strategy = SimpleNamespace(
            reduce=lambda value, reduce_op: value, root_device=torch.device("cpu")
        )
        self.fit_loop = SimpleNamespace(_should_accumulate=lambda: False)

    def save_checkpoint(self, path: Path) -> None:
        plain = {"global_step": self.global_step, "state": self.callback.state_dict()}
        AtomicCheckpointIO().save_checkpoint(plain, path)

    def train(self, scores: dict[int, float], until: int) -> None:
        """Steps up to ``until``, validated where there is a score."""
        module: Any = None
        while self.global_step < until and not self.should_stop:
            self.global_step += 1
            self.callback.on_train_batch_end(self, module, None, None, 0)  # type: ignore[arg-type]
            if self.global_step in scores:
                score = torch.tensor(scores[self.global_step])
                self.callback_metrics = {"val_bleu": score, "val_loss": score}
                self.callback.on_validation_end(self, module)  # type: ignore[arg-type]


def callback(folder: Path, **changes: Any) -> RunCheckpoints:
    metrics = {"bleu": Metric("bleu", "max", "{}"), "loss": LOSS}
    changes["best"] = metrics[changes.get("best", "bleu")]
    options = {"every": 2, "keep": 3, "val_every": 5, "max_steps": 20} | changes
    return RunCheckpoints(folder / "checkpoints", lambda model: {}, **options)


def step_of(folder: Path, name: str) -> int:
    return torch.load(folder / "checkpoints" / name, weights_only=True)["global_step"]


def numbered(folder: Path) -> list[int]:
    return sorted(int(path.stem[5:]) for path in (folder / "checkpoints").glob("step-*.ckpt"))


def test_a_failed_write_keeps_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def half(temporary: Path) -> None:
        assert temporary.parent == tmp_path  # a rename must not cross file systems
        temporary.write_text("ha")
        assert path.read_text() == "old"
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RunError, match=r"could not write .*file: No space left on device"):
        write_atomically(path, half)
    with pytest.raises(RunError, match="the disk may be full"):
        write_atomically(path, lambda temporary: torch.save({}, temporary / "below" / "nothing"))
    with pytest.raises(ZeroDivisionError):
        write_atomically(path, lambda temporary: temporary.write_text(str(1 // 0)))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]
    write_atomically(path, lambda temporary: temporary.write_text("new"))
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["file"]


def test_a_second_name_replaces_and_outlives_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for content in ("one", "two"):
        (tmp_path / "source").write_text(content)
        link(tmp_path / "source", tmp_path / "name")
        (tmp_path / "source").unlink()
        assert (tmp_path / "name").read_text() == content

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "source").write_text("three")
    link(tmp_path / "source", tmp_path / "name")
    assert (tmp_path / "name").read_text() == "three"
    assert sorted(os.listdir(tmp_path)) == ["name", "source"]


def test_so_many_are_kept_and_last_is_the_newest(tmp_path: Path) -> None:
    trainer = Trainer(callback(tmp_path))
    trainer.train({}, until=9)
    assert numbered(tmp_path) == [4, 6, 8]
    assert step_of(tmp_path, "last.ckpt") == 8
    assert not (tmp_path / "checkpoints" / "best.ckpt").exists()


@pytest.mark.parametrize(
    ("best", "scores", "step"),
    [
        ("bleu", {5: 1.0, 10: 3.0, 15: 2.0, 20: 3.0}, 10),
        ("loss", {5: 4.0, 10: 3.0, 15: 2.0, 20: 3.0}, 15),
        ("bleu", {5: math.nan, 10: 0.0, 15: math.nan, 20: 0.0}, 10),
        ("loss", {5: math.nan, 10: math.inf, 15: 9.0, 20: math.nan}, 15),
    ],
)
def test_best_is_what_validated_best_first(
    best: str, scores: dict[int, float], step: int, tmp_path: Path
) -> None:
    trainer = Trainer(callback(tmp_path, best=best, keep=1))
    trainer.train(scores, until=30)
    assert trainer.global_step == 20
    assert step_of(tmp_path, "best.ckpt") == step
    assert step_of(tmp_path, "last.ckpt") == 20
    assert numbered(tmp_path) == [20]


def test_a_checkpoint_of_a_validated_step_knows_the_score(tmp_path: Path) -> None:
    trainer = Trainer(callback(tmp_path, every=5, keep=9))
    trainer.train({5: 1.0, 10: 2.0}, until=10)
    saved = torch.load(tmp_path / "checkpoints" / "step-00000010.ckpt", weights_only=True)
    assert saved["state"]["best_value"] == 2.0


def test_the_last_step_and_an_early_stop_are_saved(tmp_path: Path) -> None:
    trainer = Trainer(callback(tmp_path, every=100))
    trainer.train({5: 2.0, 10: 1.0}, until=10)
    assert numbered(tmp_path) == [5]
    trainer.should_stop = True
    trainer.callback.on_validation_end(trainer, None)  # type: ignore[arg-type]
    assert step_of(tmp_path, "last.ckpt") == 10


def test_a_resumed_run_keeps_the_best_of_before(tmp_path: Path) -> None:
    first = Trainer(callback(tmp_path))
    first.train({5: 3.0}, until=6)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    again = Trainer(callback(tmp_path))
    again.callback.load_state_dict(saved["state"])
    again.callback.on_load_checkpoint(again, None, saved)  # type: ignore[arg-type]
    again.global_step = 6
    again.callback.on_train_start(again, None)  # type: ignore[arg-type]
    again.train({10: 2.0}, until=10)
    assert step_of(tmp_path, "best.ckpt") == 5
    assert step_of(tmp_path, "last.ckpt") == 10


def test_a_kill_between_last_and_best_is_repaired(tmp_path: Path) -> None:
    first = Trainer(callback(tmp_path, keep=9))
    first.train({5: 1.0, 10: 2.0}, until=10)
    folder = tmp_path / "checkpoints"
    (folder / "best.ckpt").unlink()  # as if the kill came before its rename
    (folder / "step-00000005.ckpt").rename(folder / "best.ckpt")
    (folder / ".step-00000012.ckpt.77.tmp").write_bytes(b"half")
    saved = torch.load(folder / "last.ckpt", weights_only=True)
    again = Trainer(callback(tmp_path))
    again.callback.load_state_dict(saved["state"])
    again.callback.on_load_checkpoint(again, None, saved)  # type: ignore[arg-type]
    again.global_step = 10
    again.callback.on_train_start(again, None)  # type: ignore[arg-type]
    assert step_of(tmp_path, "best.ckpt") == 10
    assert not list(folder.glob(".*"))


def test_a_stop_asked_for_during_validation_counts_its_score(tmp_path: Path) -> None:
    checkpoints = callback(tmp_path)
    trainer: Any = Trainer(checkpoints)
    trainer.train({5: 1.0}, until=9)
    stop = GracefulStop(checkpoints)
    trainer.global_step = 10
    checkpoints.on_train_batch_end(trainer, None, None, None, 0)  # type: ignore[arg-type]
    stop._ask(signal.SIGTERM, None)
    stop.on_train_batch_end(trainer, None, None, None, 0)  # type: ignore[arg-type]
    trainer.callback_metrics = {"val_bleu": torch.tensor(2.0)}
    with pytest.raises(StopAsked, match="SIGTERM after step 10"):
        stop.on_validation_end(trainer, None)  # type: ignore[arg-type]
    assert step_of(tmp_path, "best.ckpt") == step_of(tmp_path, "last.ckpt") == 10
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["state"]["best_value"] == 2.0


def test_a_stop_between_validations_saves_that_step(tmp_path: Path) -> None:
    checkpoints = callback(tmp_path, every=100)
    trainer: Any = Trainer(checkpoints)
    trainer.train({}, until=7)
    stop = GracefulStop(checkpoints)
    stop.on_train_batch_end(trainer, None, None, None, 0)  # type: ignore[arg-type]
    assert not (tmp_path / "checkpoints").exists()
    stop._ask(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        stop._ask(signal.SIGINT, None)
    with pytest.raises(StopAsked, match="SIGINT after step 7"):
        stop.on_train_batch_end(trainer, None, None, None, 0)  # type: ignore[arg-type]
    assert step_of(tmp_path, "last.ckpt") == 7
