"""A Lightning classifier on `torch.nn.TransformerEncoder`, trained with a norm of your choice.

    python examples/encoder_classifier.py --norm rmsnorm

The task: does a sequence of digits have more even than odd ones? Only the four lines marked with an
arrow use normtrain.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from normtrain import NormSwap, load_checkpoint  # <- 1

DIGITS, LENGTH = 10, 15


class Classifier(pl.LightningModule):
    """Embedding, encoder, and a linear layer on the mean of its outputs."""

    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.embed = nn.Embedding(DIGITS, dim)
        layer = nn.TransformerEncoderLayer(dim, 4, 2 * dim, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(
            layer, 2, norm=nn.LayerNorm(dim), enable_nested_tensor=False
        )
        self.head = nn.Linear(dim, 2)

    def forward(self, digits: Tensor) -> Tensor:
        """Map digits ``(batch, time)`` to logits ``(batch, 2)``."""
        return self.head(self.encoder(self.embed(digits)).mean(1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the cross-entropy of a batch."""
        digits, answer = batch
        return F.cross_entropy(self(digits), answer)

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Log the share of right answers."""
        digits, answer = batch
        self.log("accuracy", (self(digits).argmax(-1) == answer).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW on all parameters, those of the new norms included."""
        return torch.optim.AdamW(self.parameters(), 3e-3)


def sequences(count: int, seed: int) -> DataLoader:
    """Draw sequences of digits, with whether most digits are even."""
    digits = torch.randint(DIGITS, (count, LENGTH), generator=torch.Generator().manual_seed(seed))
    even = (digits % 2 == 0).sum(1) > LENGTH // 2
    return DataLoader(TensorDataset(digits, even.long()), batch_size=64)


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


def accuracy(model: Classifier, *callbacks: pl.Callback) -> float:
    """Return the accuracy on unseen sequences."""
    return trainer(1, 1, *callbacks).test(model, sequences(1000, seed=2), verbose=False)[0][
        "accuracy"
    ]


def main() -> None:
    """Train before and after the swap, resume, and evaluate a checkpoint."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--norm", default="rmsnorm", help="any name of `normtrain norms list`")
    options.add_argument("--epochs", type=int, default=2)
    options.add_argument("--batches", type=int, default=60, help="batches of a training epoch")
    options.add_argument("--out", type=Path, default=Path("runs/encoder_classifier"))
    args = options.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    data, checkpoint = sequences(4000, seed=1), args.out / "half.ckpt"

    pl.seed_everything(1)
    model = Classifier()
    trainer(args.epochs, args.batches).fit(model, data)
    print(f"before: LayerNorm, accuracy {accuracy(model):.3f}")

    pl.seed_everything(1)
    model, swap = Classifier(), NormSwap(args.norm)  # <- 2
    half = trainer(args.epochs // 2, args.batches, swap)  # <- 3
    half.fit(model, data)
    half.save_checkpoint(checkpoint)
    print(f"after: {len(swap.report.replaced)} norms are now {args.norm}")
    print(swap.report)

    model = Classifier()
    whole = trainer(args.epochs, args.batches, NormSwap(args.norm))
    whole.fit(model, data, ckpt_path=checkpoint)
    print(f"resume: {args.norm}, accuracy {accuracy(model):.3f}")

    loaded = load_checkpoint(Classifier, checkpoint)  # <- 4
    print(f"evaluate: loaded from {checkpoint.name}, accuracy {accuracy(loaded):.3f}")


if __name__ == "__main__":
    main()
