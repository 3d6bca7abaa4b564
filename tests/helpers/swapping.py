"""A small task for NormSwap, in each way of building it, and a quiet Trainer."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from normtrain.swap.callback.method_patch import is_patch
from normtrain.swap.sites import find_sites


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Dropout(0.1), nn.Linear(8, 1))


class Task(pl.LightningModule):
    """Trains on squared outputs; remembers losses."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.save_hyperparameters()
        torch.manual_seed(width)
        self.net: Any = net()
        self.losses: list[float] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.net(batch).float().square().mean()
        self.losses.append(float(loss))
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.net(batch).float().square().mean()
        self.log("loss", loss)
        return loss

    test_step = validation_step

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.net(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-2)


class Lazy(Task):
    """Built in configure_model."""

    def __init__(self) -> None:
        super().__init__()
        self.net = None

    def configure_model(self) -> None:
        if self.net is None:
            self.net = net()


class InSetup(Task):
    """Built in setup."""

    def __init__(self) -> None:
        super().__init__()
        self.net = None

    def setup(self, stage: str) -> None:
        if self.net is None:
            self.net = net()


def data() -> DataLoader:
    rows = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
    return DataLoader(rows, batch_size=4)


def trainer(*callbacks: Any, **options: Any) -> pl.Trainer:
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "max_epochs": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return pl.Trainer(callbacks=list(callbacks), **{**quiet, **options})


def fit(task: pl.LightningModule, *callbacks: Any, **options: Any) -> pl.Trainer:
    path = options.pop("ckpt_path", None)
    made = trainer(*callbacks, **options)
    made.fit(task, data(), data(), ckpt_path=path)
    return made


def trained(path: Path, *callbacks: Any, task: Any = None, **options: Any) -> Any:
    """Train for an epoch and save; the task."""
    task = Task() if task is None else task
    fit(task, *callbacks, **options).save_checkpoint(path)
    return task


def kinds(task: nn.Module) -> list[str]:
    return [type(site.module).__name__ for site in find_sites(task)]


def patched(module: nn.Module) -> list[str]:
    return [name for name, value in vars(module).items() if is_patch(value)]
