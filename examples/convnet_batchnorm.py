"""A convolutional net whose BatchNorm is replaced by an L1, L∞ or top-k batch norm.

    python examples/convnet_batchnorm.py --norm l1batchnorm

The task: in which of four directions do the stripes of an image run? The layers are built in
``configure_model``, as those of large models are; NormSwap replaces them there too.
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

SIZE, DIRECTIONS = 16, 4


class ConvNet(pl.LightningModule):
    """Three convolutions with BatchNorm, and a linear layer on their average."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net: nn.Sequential | None = None

    def configure_model(self) -> None:
        """Build the layers; Lightning may call this more than once."""
        if self.net is not None:
            return
        width, blocks = self.hparams["channels"], []
        for inputs in (1, width, width):
            blocks += [nn.Conv2d(inputs, width, 3, padding=1, bias=False)]
            blocks += [nn.BatchNorm2d(width), nn.ReLU()]
        self.net = nn.Sequential(
            *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, DIRECTIONS)
        )

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the cross-entropy of a batch."""
        assert self.net is not None
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Log the share of right answers."""
        assert self.net is not None
        self.log("accuracy", (self.net(batch[0]).argmax(-1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD on all parameters, those of the new norms included."""
        return torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)


def images(count: int, seed: int) -> DataLoader:
    """Draw images ``(1, size, size)`` of noisy stripes, with their direction."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randint(DIRECTIONS, (count,), generator=generator)
    phase = torch.rand(count, generator=generator)[:, None, None] * 6.3
    noise = torch.randn(count, SIZE, SIZE, generator=generator)
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    along = torch.stack([x, y, x + y, x - y])[direction]
    return DataLoader(
        TensorDataset((torch.sin(along * 1.2 + phase) + noise)[:, None], direction), batch_size=64
    )


def trainer(epochs: int, batches: int, *callbacks: pl.Callback) -> pl.Trainer:
    """Return a Trainer on one CPU that prints and saves nothing by itself."""
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        limit_train_batches=batches,
        callbacks=[*callbacks],
        **dict.fromkeys(off, False),
    )


def accuracy(model: ConvNet, *callbacks: pl.Callback) -> float:
    """Return the accuracy on unseen images."""
    return trainer(1, 1, *callbacks).test(model, images(1000, seed=2), verbose=False)[0]["accuracy"]


def main() -> None:
    """Train before and after the swap, resume, and evaluate a checkpoint."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument(
        "--norm", default="l1batchnorm", help="l1batchnorm, linfbatchnorm or topkbatchnorm:k=10"
    )
    options.add_argument("--epochs", type=int, default=2)
    options.add_argument("--batches", type=int, default=60, help="batches of a training epoch")
    options.add_argument("--out", type=Path, default=Path("runs/convnet_batchnorm"))
    args = options.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    data, checkpoint = images(4000, seed=1), args.out / "half.ckpt"

    pl.seed_everything(1)
    model = ConvNet()
    trainer(args.epochs, args.batches).fit(model, data)
    print(f"before: BatchNorm, accuracy {accuracy(model):.3f}")

    pl.seed_everything(1)
    model, swap = ConvNet(), NormSwap(args.norm)
    half = trainer(args.epochs // 2, args.batches, swap)
    half.fit(model, data)
    half.save_checkpoint(checkpoint)
    print(f"after: {len(swap.report.replaced)} norms are now {args.norm}")
    print(swap.report)

    model = ConvNet()
    whole = trainer(args.epochs, args.batches, NormSwap(args.norm))
    whole.fit(model, data, ckpt_path=checkpoint)
    print(f"resume: {args.norm}, accuracy {accuracy(model):.3f}")

    loaded = load_checkpoint(ConvNet, checkpoint)
    print(f"evaluate: loaded from {checkpoint.name}, accuracy {accuracy(loaded):.3f}")


if __name__ == "__main__":
    main()
