"""A convolutional net whose BatchNorm gives way to one without squares: L1, L∞ or top-k.

    python examples/convnet_batchnorm.py --norm l1batchnorm

The task: which way do the stripes of an image run? The layers are built in ``configure_model``,
as large models are; NormSwap finds them there too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from normtrain import NormSwap, load_checkpoint

SIZE, WAYS = 16, 4


class ConvNet(pl.LightningModule):
    """Three convolutions with BatchNorm, and a linear layer on the average."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net: nn.Sequential | None = None

    def configure_model(self) -> None:
        """Build the layers, once."""
        if self.net is not None:
            return
        wide, blocks = self.hparams["channels"], []
        for before in (1, wide, wide):
            blocks += [nn.Conv2d(before, wide, 3, padding=1, bias=False)]
            blocks += [nn.BatchNorm2d(wide), nn.ReLU()]
        self.net = nn.Sequential(
            *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide, WAYS)
        )

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of a batch."""
        assert self.net is not None
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Share of right answers."""
        assert self.net is not None
        self.log("accuracy", (self.net(batch[0]).argmax(-1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD on all that is in the model when Lightning asks, new norms included."""
        return torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)


def images(count: int, seed: int) -> DataLoader:
    """Noisy stripes (1, size, size) in one of four directions, and which."""
    draw = torch.Generator().manual_seed(seed)
    way = torch.randint(WAYS, (count,), generator=draw)
    phase = torch.rand(count, generator=draw)[:, None, None] * 6.3
    noise = torch.randn(count, SIZE, SIZE, generator=draw)
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    along = torch.stack([x, y, x + y, x - y])[way]
    return DataLoader(
        TensorDataset((torch.sin(along * 1.2 + phase) + noise)[:, None], way), batch_size=64
    )


def trainer(epochs: int, batches: int, *callbacks: pl.Callback) -> pl.Trainer:
    """A quiet Trainer on one CPU."""
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        limit_train_batches=batches,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def accuracy(model: ConvNet, *callbacks: pl.Callback) -> float:
    """On images that were not trained on."""
    return trainer(1, 1, *callbacks).test(model, images(1000, seed=2), verbose=False)[0]["accuracy"]


def main() -> None:
    """Before, after, resume, evaluate."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument(
        "--norm", default="l1batchnorm", help="l1batchnorm, linfbatchnorm or topkbatchnorm:k=10"
    )
    options.add_argument("--epochs", type=int, default=2)
    options.add_argument("--batches", type=int, default=60, help="a training epoch")
    options.add_argument("--out", type=Path, default=Path("runs/convnet_batchnorm"))
    given = options.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    data, checkpoint = images(4000, seed=1), given.out / "half.ckpt"

    pl.seed_everything(1)
    model = ConvNet()
    trainer(given.epochs, given.batches).fit(model, data)
    print(f"before: BatchNorm, accuracy {accuracy(model):.3f}")

    pl.seed_everything(1)
    model, swap = ConvNet(), NormSwap(given.norm)
    half = trainer(given.epochs // 2, given.batches, swap)
    half.fit(model, data)
    half.save_checkpoint(checkpoint)
    print(f"after: {len(swap.report.replaced)} norms are now {given.norm}")
    print(swap.report)

    model = ConvNet()
    whole = trainer(given.epochs, given.batches, NormSwap(given.norm))
    whole.fit(model, data, ckpt_path=checkpoint)
    print(f"resume: {given.norm}, accuracy {accuracy(model):.3f}")

    loaded = load_checkpoint(ConvNet, checkpoint)
    print(f"evaluate: loaded from {checkpoint.name}, accuracy {accuracy(loaded):.3f}")


if __name__ == "__main__":
    main()
