"""``metrics.csv``: floats come back, kills leave no half rows, foreign files are told apart."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from normtrain.errors import RunError, UserError
from normtrain.tasks.base import Metric
from normtrain.tasks.translation.module import TranslationModule
from normtrain.training.callbacks.metrics import MetricsFile, Recorder, columns, read_metrics

BLEU = (Metric("bleu", "max", "BLEU {:.2f}"),)
COLUMNS = columns(BLEU)
HEADER = ",".join(COLUMNS) + "\n"


@pytest.fixture
def file(tmp_path: Path) -> MetricsFile:
    made = MetricsFile(tmp_path / "metrics.csv", BLEU)
    for step in (1, 2, 3):
        made.log_metrics({"train_loss": step / 3, "tokens": step * 10, "other": 1.0}, step)
    made.log_metrics({"val_loss": 0.1, "val_bleu": 2.5}, 3)
    return made


def steps(file: MetricsFile) -> list[int]:
    return [int(row["step"]) for row in read_metrics(file.path)]


def test_rows_are_there_at_once_with_the_contracts_columns(file: MetricsFile) -> None:
    text = file.path.read_text(encoding="utf-8")
    assert text.startswith(HEADER)
    assert text.count("\n") == 5
    assert {"step", "train_loss", "val_loss", "tokens_per_second"} <= set(COLUMNS)
    first, *_, last = read_metrics(file.path)
    assert (first["step"], first["tokens"], first["val_loss"]) == ("1", "10", "")
    assert (last["step"], last["val_bleu"], last["train_loss"]) == ("3", "2.5", "")


@pytest.mark.parametrize("value", [1 / 3, 1e-300, 123456789.123456789, math.pi])
def test_floats_are_unrounded(value: float, file: MetricsFile) -> None:
    file.log_metrics({"train_loss": value}, 4)
    assert float(read_metrics(file.path)[-1]["train_loss"]) == value


def test_cut_forgets_what_came_after_a_checkpoint(file: MetricsFile) -> None:
    before = file.path.read_text(encoding="utf-8").splitlines()
    file.cut(2)
    assert file.path.read_text(encoding="utf-8").splitlines() == before[:3]
    file.log_metrics({"train_loss": 0.25}, 3)
    assert steps(file) == [1, 2, 3]
    file.cut(0)
    assert file.path.read_text(encoding="utf-8") == HEADER
    assert [path.name for path in file.path.parent.iterdir()] == ["metrics.csv"]


def test_cut_makes_the_file_where_there_is_none(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.csv", BLEU)
    assert read_metrics(file.path) == []
    file.cut(7)
    assert file.path.read_text(encoding="utf-8") == HEADER


@pytest.mark.parametrize("lost", range(1, 12))
def test_half_a_line_of_a_kill_is_dropped(lost: int, file: MetricsFile) -> None:
    whole = file.path.read_bytes()
    file.path.write_bytes(whole[:-lost])
    assert steps(file) == [1, 2, 3]
    file.cut(3)
    file.log_metrics({"val_loss": 0.1, "val_bleu": 2.5}, 3)
    assert file.path.read_bytes() == whole


def test_a_kill_inside_the_first_line(file: MetricsFile) -> None:
    file.path.write_text(HEADER[:9], encoding="utf-8")
    assert steps(file) == []
    file.cut(0)
    assert file.path.read_text(encoding="utf-8") == HEADER


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"step,loss\n1,2\n", "must have the columns"),
        (b"\xff\xfe\x00\n", "must have the columns"),
        (HEADER.encode() + b"1,0,,,,,,,,\nhello\n", "line 3 is not a row"),
        (HEADER.encode() + b"x,0,,,,,,,,\n", "line 2 is not a row"),
        (HEADER.encode() + b"1,0,,,,,,,,,,,\n", "line 2 is not a row"),
    ],
)
def test_a_foreign_file_is_refused_and_kept(content: bytes, message: str, tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.csv", BLEU)
    file.path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        file.cut(1)
    assert file.path.read_bytes() == content


def test_what_cannot_be_written_is_a_failure_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    file = MetricsFile(tmp_path / "file" / "metrics.csv")
    with pytest.raises(RunError, match="metrics.csv"):
        file.log_metrics({"train_loss": 1.0}, 1)


class Steps:
    """A trainer that does ``accumulate`` batches a step."""

    def __init__(self, accumulate: int) -> None:
        self.accumulate, self.batches = accumulate, 0
        self.max_steps, self.world_size = 1000, 1
        self.rows: list[tuple[int, dict[str, Any]]] = []
        self.loggers = [
            SimpleNamespace(log_metrics=lambda row, step: self.rows.append((step, row)))
        ]
        self.optimizers = [SimpleNamespace(param_groups=[{"lr": 0.5}])]
        self.strategy = SimpleNamespace(reduce=lambda value, reduce_op: value)
        self.train_dataloader = SimpleNamespace(epoch=0)
        self.fit_loop = SimpleNamespace(_should_accumulate=lambda: self.batches % self.accumulate)

    @property
    def global_step(self) -> int:
        return self.batches // self.accumulate

    def train(self, recorder: Recorder, losses: list[float]) -> None:
        module: Any = SimpleNamespace(
            gradient_norm=torch.tensor(2.0),
            step_scale=1.0,
            count_targets=TranslationModule.count_targets,
        )
        for loss in losses:
            self.batches += 1
            target = torch.tensor([[5, 2, 0], [7, 8, 2]])  # 5 real tokens
            batch = {"target_out": target}
            out = {"loss": torch.tensor(loss)}
            recorder.on_train_batch_end(self, module, out, batch, self.batches)  # type: ignore[arg-type]


def test_the_recorder_sums_accumulated_losses_and_counts_real_tokens() -> None:
    trainer: Any = Steps(accumulate=2)
    recorder = Recorder(log_every=2, accumulate=2)
    recorder.on_train_start(trainer, trainer)
    trainer.train(recorder, [9.0, 9.0, 0.5, 1.0, 9.0, 9.0, 0.25, 0.5])  # each already halved
    assert [(step, row["train_loss"], row["tokens"]) for step, row in trainer.rows] == [
        (2, 1.5, 20),
        (4, 0.75, 40),
    ]
    assert all(row["tokens_per_second"] > 0 for _, row in trainer.rows)
    again = Recorder(log_every=2, accumulate=2)
    saved: dict[str, Any] = {}
    module: Any = SimpleNamespace(gradient_norm=torch.tensor(2.0), step_scale=1.0)
    recorder.on_save_checkpoint(trainer, module, saved)
    again.on_load_checkpoint(trainer, trainer, saved)
    trainer.train(again, [1.0, 1.0, 1.0, 1.0])
    assert trainer.rows[-1][1]["tokens"] == 60


def test_a_nan_loss_ends_the_run() -> None:
    trainer: Any = Steps(accumulate=1)
    with pytest.raises(RunError, match=r"the loss is nan at step 2; lower optim\.lr"):
        trainer.train(Recorder(log_every=1), [1.0, math.nan])
    assert len(trainer.rows) == 1
