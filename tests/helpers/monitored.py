"""Small models to watch, and what watches them."""

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers.logger import Logger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from normtrain import build_norm

NUMBERS = {
    *("input_mean", "input_rms", "input_std", "near_zero_rows", "output_rms"),
    *("gain_mean", "gain_min", "gain_max", "gain_std", "gradient_norm"),
}


class Memory(Logger):
    """A logger that keeps what it gets."""

    name, version = "memory", "0"

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing."""


class Net(nn.Module):
    """Two norms, and two that share one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.norm1, self.norm2 = nn.LayerNorm(8), build_norm("rmsnorm", 8)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.first(self.norm1(x)))
        return x + self.second(self.norm2(x))


class Task(pl.LightningModule):
    """Trains any net on random rows; remembers losses."""

    def __init__(self, net: nn.Module | None = None, step: Callable | None = None) -> None:
        super().__init__()
        self.net, self.step = Net() if net is None else net, step
        self.losses: list[float] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.net(batch).float().square().sum()
        if self.step is not None:
            self.step(self, batch_idx)
        self.losses.append(float(loss))
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        assert not hooks_in(self)
        self.net(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-3)


def hooks_in(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_hooks_with_kwargs) for m in model.modules())


def rows(seed: int = 1, shape: tuple[int, ...] = (8,), count: int = 24) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed)) + 0.5


def fit(task: pl.LightningModule, *callbacks: Any, **options: Any) -> pl.Trainer:
    data = options.pop("data", rows())
    size = options.pop("batch_size", 4)
    resume = options.pop("ckpt_path", None)
    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "max_steps": 6,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    trainer = pl.Trainer(callbacks=list(callbacks), **{**quiet, **options})
    trainer.fit(task, DataLoader(data, batch_size=size), ckpt_path=resume)
    return trainer
